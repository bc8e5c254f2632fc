"""The files that a backbone needs, present or missing, for `restore-lab doctor`, without network access.

Sizes of missing files are computed from the parameters on the meta device and the repository's dtype; licences and
gating are from hub_facts.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import yaml

from restore_lab.backbones.loading.diffusers_folder import BackboneError, Folder, find_weights
from restore_lab.backbones.loading.places import DENOISERS, as_list, find_codec, is_hub_id, resolve_place
from restore_lab.backbones.text.loading import ENCODERS

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone

HUB_FACTS = Path(__file__).with_name("hub_facts.yaml")
STORED = {"float32": 4, "float16": 2}
HUB = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True)
class Need:
    """A requirement of a run.

    Attributes:
        what: its name.
        at: its path; None if it is missing.
        size: bytes on disk, estimated if it is missing; None if unknown.
        gap: the problem; empty for none.
        licence: the hub's name of it, marked if it is not verified.
        access: how to get it; empty if it is present.
        optional: whether a run works without it.
    """

    what: str
    at: str | None
    size: int | None = None
    gap: str = ""
    licence: str = ""
    access: str = ""
    optional: bool = False

    @property
    def missing(self) -> bool:
        """Whether a run lacks it."""
        return self.at is None and not self.optional


class HubEntry(TypedDict):
    """The entry of a repository in hub_facts.yaml; its head explains the keys."""

    licence: str
    stored: Literal["float32", "float16"]
    seen: bool
    gated: NotRequired[bool]
    note: NotRequired[str]


def hub_facts(place: str) -> HubEntry | None:
    """The entry of a repository in hub_facts.yaml; None if it has none."""
    return yaml.safe_load(HUB_FACTS.read_text(encoding="utf-8")).get(place) if is_hub_id(place) else None


def licence_of(place: str) -> str:
    """A repository's licence, marked if it is not verified."""
    facts = hub_facts(place)
    return "unknown" if facts is None else facts["licence"] + ("" if facts["seen"] else " (not verified)")


def access_to(places: Sequence[str]) -> str:
    """How to get the first of the repositories that still exists."""
    ids = [place for place in places if is_hub_id(place)]
    facts = {place: hub_facts(place) for place in ids}
    open_ids = [place for place, entry in facts.items() if entry is None or "taken down" not in entry.get("note", "")]
    if not open_ids:
        return "no known repository; give a folder"
    name = open_ids[0]
    entry = facts[name]
    gated = entry is not None and entry.get("gated", False)
    gate = f"gated: accept its licence at {HUB}/{name}, then hf auth login, then " if gated else ""
    return f"{gate}hf download {name} (licence {licence_of(name)})"


def part_sizes(backbone: Backbone) -> dict[str, int]:
    """Number of parameters by folder of a diffusers repository."""
    encoders = [*backbone.text.encoders, *([t5] if (t5 := getattr(backbone.text, "t5", None)) is not None else [])]
    modules = {DENOISERS[backbone.family]: backbone.denoiser, "vae": backbone.codec}
    present = getattr(backbone.text, "present", [True] * len(encoders))
    names = [name for name, there in zip(ENCODERS, [*present, True], strict=False) if there]
    modules |= dict(zip(names, encoders, strict=False))
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


def backbone_needs(settings: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Need]:
    """The required parts of a backbone.

    Args:
        settings: of `load_backbone`.
        sizes: number of parameters by part, from `part_sizes`.
    """
    places, reasons = as_list(settings["path"]), []
    for place in places:
        try:
            prior = resolve_place(
                place,
                family=settings["family"],
                meta=False,
                config_path=settings.get("config_path"),
                without=as_list(settings.get("without", ())),
                download=False,
            )
        except BackboneError as error:
            reasons += [] if place.startswith("config:") else [str(error)]
            continue
        return _present(prior, place, settings, sizes)
    stored = STORED[next((facts["stored"] for facts in map(hub_facts, places) if facts), "float32")]
    first, *rest = [(part, count * stored) for part, count in sizes.items()]
    why = Need(what=first[0], at=None, size=first[1], gap="; ".join(reasons), access=access_to(places))
    return [why, *(Need(what=part, at=None, size=size, gap=f"comes with the {first[0]}") for part, size in rest)]


def _present(prior: Folder, place: str, settings: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Need]:
    """The parts of an existing prior."""
    own = settings.get("codec_path")
    found = [_part(prior, part, place) for part in sizes if not (part == "vae" and own)]
    first = {need.at: need for need in reversed(found)}  # count a single file's size once
    found = [need if need is first[need.at] else replace(need, size=None) for need in found]
    found += [_codec(own, sizes["vae"])] if own else []
    return found + [_tokenizer(prior, part) for part in sizes if part in ENCODERS]


def _part(prior: Folder, part: str, place: str) -> Need:
    files = prior.files(part)
    licence = licence_of(place) if is_hub_id(place) else ""
    if not files:
        return Need(what=part, at=None, gap=f"no whole set of safetensors for it in {prior.root}", licence=licence)
    at = files[0] if len(files) == 1 else files[0].parent
    return Need(what=part, at=str(at), size=sum(file.stat().st_size for file in files), licence=licence)


def _codec(place: str, count: int) -> Need:
    try:
        folder, part = find_codec(place, download=False)
        files = folder.files(part)
    except BackboneError as error:
        return Need(what="codec", at=None, size=4 * count, gap=str(error), access=access_to([place]))
    size = sum(file.stat().st_size for file in files)
    return Need(what="codec", at=str(files[0]) if files else None, size=size, licence=licence_of(place))


def _tokenizer(prior: Folder, part: str) -> Need:
    name = part.replace("text_encoder", "tokenizer")
    try:
        prior.tokenizer(part)
    except BackboneError as error:
        return Need(what=name, at=None, gap=str(error))
    home = prior.root / name
    return Need(what=name, at=str(home), size=sum(f.stat().st_size for f in home.glob("*") if f.is_file()))


def model_need(what: str, place: str) -> Need:
    """A model other than the backbone (an image encoder, a captioner), by folder, asset or hub id."""
    from restore_lab.storage.paths import place_of

    folder = place_of(place)
    if not folder.exists() and is_hub_id(place):
        folder = _cached(place) or folder
    files = _weights_in(folder)
    if files:
        size = sum(file.stat().st_size for file in files)
        return Need(what=what, at=str(folder), size=size, licence=licence_of(place) if is_hub_id(place) else "")
    gap = f"{place}: nothing in the local hub cache" if is_hub_id(place) else f"{place}: no weights there"
    return Need(what=what, at=None, gap=gap, access=access_to([place]))


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError, HfHubHTTPError):
        return None


def _weights_in(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    found = find_weights(folder) if folder.is_dir() else None
    named = [folder / name for name in found[1]] if found else sorted(folder.glob("*.safetensors"))
    return [file for file in named if file.is_file()]
