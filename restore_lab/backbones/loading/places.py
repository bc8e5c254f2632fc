"""Resolve a backbone's path to a prior on disk.

A path is a folder, a single `.safetensors` file, `asset:NAME` (a prior in restore_lab/assets), `config:NAME` (configs
without weights in restore_lab/backbones/configs, for `meta=True`), or a hub id, which is looked up in the local cache
before the network. A list of paths is tried in order. Config line: `backbone.path=...`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restore_lab.backbones.loading.diffusers_folder import SHIPPED, BackboneError, Folder, find_weights, weight_files
from restore_lab.backbones.loading.single_file import SUFFIX, SingleFile
from restore_lab.system.faults import describe_fault

_ASSETS = Path(__file__).resolve().parents[2] / "assets"
DENOISERS = {"unet": "unet", "mmdit": "transformer"}  # families, and the folders of their denoisers
PART_FOLDERS = re.compile(r"(unet|transformer|vae|text_encoder(_\d)?|tokenizer(_\d)?|scheduler)")
SMALL = (".json", ".txt", ".model")  # configs, vocabularies, sentencepiece models


def find_prior(
    places: Sequence[str], *, family: str, meta: bool, config_path: str | None = None, without: Sequence[str] = ()
) -> Folder:
    """The first place that holds a prior of the family.

    Args:
        places: tried in order.
        family: of the denoiser.
        meta: accept configs without weights.
        config_path: the configs and tokenizers of a single file: a place that is no file.
        without: parts whose weights are not needed.

    Raises:
        BackboneError: for an unknown family, or if no place has one, with the reason for each.
    """
    if family not in DENOISERS:
        known = "unet (SD 1.5, SD 2.1, SDXL shapes), mmdit (SD3, SD3.5)"
        raise BackboneError(f"backbone family {family!r} is not known; one of {known}")
    tried = []
    for place in places:
        try:
            return resolve_place(place, family=family, meta=meta, config_path=config_path, without=without)
        except BackboneError as error:
            tried.append(str(error))
    hint = "set backbone.path to a diffusers-format folder, or fetch one: hf download " + _example(places)
    raise BackboneError(f"no backbone found: {'; '.join(tried) or 'path is empty'}; {hint}")


def as_list(value: str | Sequence[str]) -> list[str]:
    """A string, or a sequence of strings, as a list."""
    return [value] if isinstance(value, str) else list(value)


def is_hub_id(place: str) -> bool:
    """Whether a place has the form OWNER/NAME."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None and not place.startswith((".", "~"))


def resolve_place(
    place: str,
    *,
    family: str,
    meta: bool,
    config_path: str | None,
    without: Sequence[str] = (),
    download: bool = True,
) -> Folder:
    """The prior at one place; arguments as for `find_prior`.

    Without `download` only the local hub cache is used.

    Raises:
        BackboneError: if there is no prior of the family.
    """
    kind, _, name = place.partition(":")
    if kind == "asset":
        return _checked(_ASSETS / name, place, family=family)
    if kind == "config":
        if not meta:
            raise BackboneError(f"{place} holds configs but no weights")
        return _checked(SHIPPED / name, place, family=family)
    folder = Path(place).expanduser()
    if folder.is_file():
        return _single(folder, family=family, meta=meta, config_path=config_path)
    if folder.exists() or not is_hub_id(place):
        return _checked(folder, place, family=family)
    found = _from_hub(place, family=family, meta=meta, without=without, download=download)
    return _checked(found, place, family=family)


def _single(file: Path, *, family: str, meta: bool, config_path: str | None) -> Folder:
    """The prior in a single file."""
    if file.suffix != SUFFIX:
        raise BackboneError(f"{file}: a single file is read as {SUFFIX} alone; a {file.suffix} is a pickle")
    if config_path is None:
        raise BackboneError(f"{file}: set backbone.config_path to its configs: a diffusers folder, or config:sdxl")
    if Path(config_path).expanduser().is_file():
        raise BackboneError(f"backbone.config_path={config_path} is a file; give a folder of configs, or config:sdxl")
    configs = resolve_place(config_path, family=family, meta=True, config_path=None, download=False)
    return configs if meta else SingleFile(file, configs.root)


def _example(places: Sequence[str]) -> str:
    return next((place for place in places if is_hub_id(place)), "OWNER/NAME")


def _from_hub(name: str, *, family: str, meta: bool, without: Sequence[str], download: bool) -> Path:
    """The snapshot of a hub id, from the local cache or downloaded; never downloaded with `meta`."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if meta or not missing_parts(cached, family=family, without=without):
            return cached
    except Exception as error:  # exception types differ between versions of huggingface_hub
        if meta:
            raise BackboneError(f"{name}: not in the local hub cache") from error
        cached = None
    if not download:
        lacks = (
            "is not"
            if cached is None
            else f"({', '.join(missing_parts(cached, family=family, without=without))}) is not whole"
        )
        raise BackboneError(f"{name}: {lacks} in the local hub cache")
    try:
        return Path(
            snapshot_download(name, allow_patterns=files_to_download(HfApi().list_repo_files(name), without=without))
        )
    except GatedRepoError as error:
        raise BackboneError(
            f"{name}: is gated; accept its licence at https://huggingface.co/{name}, then hf auth login"
        ) from error
    except Exception as error:  # no network, no such repository, a full disk
        raise BackboneError(f"{name}: {_refused(error)}") from error


def _refused(error: Exception) -> str:
    """The reason for a failed download.

    Raises:
        OSError: the same error, if the cause is this machine (a full disk, for example).
    """
    if describe_fault(error) is not None:
        raise error
    return "no such folder, not in the local hub cache, and no hub gave it"


def files_to_download(files: Sequence[str], *, without: Sequence[str] = ()) -> list[str]:
    """The files of a repository to download: configs, vocabularies, and one set of safetensors weights per part.

    For the parts in `without`, only the configs, so that a later run can find the missing weights.
    """
    parts: dict[str, list[str]] = defaultdict(list)
    for file in files:
        part, _, name = file.partition("/")
        if PART_FOLDERS.fullmatch(part) and "/" not in name:
            parts[part].append(name)
    chosen = [file for file in files if file == "model_index.json"]
    for part, names in parts.items():
        found = None if part in without else weight_files(names)
        small = [name for name in names if name.endswith(SMALL) and ".index." not in name]
        chosen += [f"{part}/{name}" for name in (*small, *(found[1] if found else ()))]
    return chosen


def missing_parts(folder: Path, *, family: str, without: Sequence[str] = ()) -> list[str]:
    """The parts of a snapshot with missing or incomplete weights."""
    parts = [DENOISERS[family], "vae", *sorted(part.name for part in folder.glob("text_encoder*"))]
    return [part for part in parts if part not in without and find_weights(folder / part) is None]


def _checked(folder: Path, place: str, *, family: str) -> Folder:
    """The folder, checked for a prior of the family in diffusers format."""
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
    return Folder(folder)


def find_codec(place: str, *, download: bool = True) -> tuple[Folder, str]:
    """The folder and part of a separate codec, such as madebyollin/sdxl-vae-fp16-fix.

    The place is a folder with the codec in it or in its subfolder `vae`, or the hub id of such a repository.
    """
    folder = Path(place).expanduser()
    if not folder.exists() and is_hub_id(place):
        folder = _codec_from_hub(place, download=download)
    part = "vae" if (folder / "vae").is_dir() else "."
    if not (folder / part / "config.json").is_file():
        raise BackboneError(f"backbone.codec_path={place}: no codec in diffusers format in {folder}")
    return Folder(folder), part


def _codec_from_hub(name: str, *, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    files: Any = ["config.json", "diffusion_pytorch_model.safetensors", "vae/*.json", "vae/*model.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=True))
    except Exception as error:
        if not download:
            raise BackboneError(f"{name}: not in the local hub cache") from error
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:
        raise BackboneError(f"{name}: {_refused(error)}") from error
