"""Where backbones live: a place named in a config to a diffusers-format folder on disk.

A place is a folder, `asset:NAME` (a prior shipped in restore_lab/assets), `config:NAME` (the configs alone, shipped in
restore_lab/backbones/configs, which serve `meta=True`), or a hub id, looked up in the local cache before the network.
A yaml may list several, tried in order. Config line: `backbone.path=...`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.quiet import quiet

if TYPE_CHECKING:
    import torch

PACKAGE = Path(__file__).resolve().parent.parent
DENOISERS = {"unet": "unet", "mmdit": "transformer"}  # families, and the folders of their denoisers
PARTS = (*DENOISERS.values(), "vae", "text_encoder*", "tokenizer*", "scheduler")
HUB_FILES = ["model_index.json", *(f"{part}/*" for part in PARTS)]
NOT_FROM_HUB = ["*.bin", "*.fp16.safetensors", "*.fp16-*.safetensors", "*.non_ema.safetensors", "*.msgpack", "*.onnx*"]
NOT_FROM_HUB += ["*openvino*"]


class BackboneError(ValueError):
    """A backbone that cannot be found or read: one line with the place and what to do instead."""


def find_folder(places: Sequence[str], *, family: str, meta: bool) -> Path:
    """The first place that holds a prior of the family.

    Raises:
        BackboneError: one line that lists what was tried and why it did not do.
    """
    tried = []
    for place in places:
        try:
            return _resolve(place, family=family, meta=meta)
        except BackboneError as error:
            tried.append(str(error))
    hint = "set backbone.path to a diffusers-format folder, or fetch one: hf download " + _example(places)
    raise BackboneError(f"no backbone found: {'; '.join(tried) or 'path is empty'}; {hint}")


def _resolve(place: str, *, family: str, meta: bool) -> Path:
    """One place to the folder that it stands for."""
    kind, _, name = place.partition(":")
    if kind == "asset":
        return _checked(PACKAGE / "assets" / name, place, family=family)
    if kind == "config":
        if not meta:
            raise BackboneError(f"{place} holds configs but no weights")
        return _checked(PACKAGE / "backbones" / "configs" / name, place, family=family)
    folder = Path(place).expanduser()
    if folder.exists() or not _is_hub_id(place):
        return _checked(folder, place, family=family)
    return _checked(_from_hub(place, family=family, local_only=meta), place, family=family)


def _is_hub_id(place: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None and not place.startswith((".", "~"))


def _example(places: Sequence[str]) -> str:
    return next((place for place in places if _is_hub_id(place)), "OWNER/NAME")


def _from_hub(name: str, *, family: str, local_only: bool) -> Path:
    """The snapshot of a hub id: the local cache's, else downloaded (never for meta, which needs no weights)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    problems = (OSError, ValueError, HfHubHTTPError)
    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if local_only or all(_has_weights(cached / part) for part in (DENOISERS[family], "vae")):
            return cached
    except problems as error:
        if local_only:
            raise BackboneError(f"{name}: not in the local hub cache") from error
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=NOT_FROM_HUB))
    except problems as error:
        raise BackboneError(f"{name}: no such folder, not in the local hub cache, and no hub gave it") from error


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _checked(folder: Path, place: str, *, family: str) -> Path:
    """The folder, if a prior of the family in diffusers format is in it."""
    if not folder.is_dir():
        raise BackboneError(f"{place}: there is no folder {folder}")
    denoiser = DENOISERS[family]
    for other, part in DENOISERS.items():
        if other != family and (folder / part).is_dir() and not (folder / denoiser).is_dir():
            raise BackboneError(f"{place}: holds a {part}, not a {denoiser}; set backbone.family={other}")
    text = ("text_encoder/config.json",) if family == "unet" else ()  # an SD3's may be absent
    for part in (f"{denoiser}/config.json", "vae/config.json", *text, "scheduler/scheduler_config.json"):
        if not (folder / part).is_file():
            raise BackboneError(f"{place}: no {denoiser} prior in diffusers format, {folder / part} is missing")
    return folder


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        BackboneError: naming the file, if it is absent or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{file}: cannot be read as JSON ({error})") from error


def read_part(cls: Any, folder: Path, *, dtype: torch.dtype) -> Any:
    """One part with its weights; a weight that is missing or of another shape is an error, not a warning."""
    from safetensors import SafetensorError

    files = [file.name for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin"))]
    half_only = bool(files) and all(".fp16" in name for name in files)
    try:
        with quiet():
            model, info = cls.from_pretrained(
                folder,
                torch_dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                variant="fp16" if half_only else None,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"{folder}: weights cannot be read ({first_line(error)})") from error
    wrong = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if wrong:
        raise BackboneError(f"{folder}: {len(wrong)} weights are missing or misshapen, the first is {wrong[0]}")
    return model


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
