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
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
HUB_FILES = ["model_index.json", *(f"{part}/*" for part in ("unet", "vae", "text_encoder*", "tokenizer*", "scheduler"))]
NOT_FROM_HUB = ["*.bin", "*.fp16.safetensors", "*.non_ema.safetensors", "*.msgpack", "*.onnx*", "*openvino*"]


class BackboneError(ValueError):
    """A backbone that cannot be found or read: one line with the place and what to do instead."""


def find_folder(places: Sequence[str], *, meta: bool) -> Path:
    """The first place that holds a UNet prior.

    Raises:
        BackboneError: one line that lists what was tried and why it did not do.
    """
    tried = []
    for place in places:
        try:
            return _resolve(place, meta=meta)
        except BackboneError as error:
            tried.append(str(error))
    hint = "set backbone.path to a diffusers-format folder, or fetch one: hf download " + _example(places)
    raise BackboneError(f"no backbone found: {'; '.join(tried) or 'path is empty'}; {hint}")


def _resolve(place: str, *, meta: bool) -> Path:
    """One place to the folder that it stands for."""
    kind, _, name = place.partition(":")
    if kind == "asset":
        return _checked(PACKAGE / "assets" / name, place)
    if kind == "config":
        if not meta:
            raise BackboneError(f"{place} holds configs but no weights")
        return _checked(PACKAGE / "backbones" / "configs" / name, place)
    folder = Path(place).expanduser()
    if folder.exists() or not _is_hub_id(place):
        return _checked(folder, place)
    return _checked(_from_hub(place, local_only=meta), place)


def _is_hub_id(place: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None and not place.startswith((".", "~"))


def _example(places: Sequence[str]) -> str:
    return next((place for place in places if _is_hub_id(place)), "OWNER/NAME")


def _from_hub(name: str, *, local_only: bool) -> Path:
    """The snapshot of a hub id: the local cache's, else downloaded (never for meta, which needs no weights)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    problems = (OSError, ValueError, HfHubHTTPError)
    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if local_only or all(_has_weights(cached / part) for part in ("unet", "vae", "text_encoder")):
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


def _checked(folder: Path, place: str) -> Path:
    """The folder, if a UNet prior in diffusers format is in it."""
    if not folder.is_dir():
        raise BackboneError(f"{place}: there is no folder {folder}")
    if (folder / "transformer").is_dir() and not (folder / "unet").is_dir():
        raise BackboneError(f"{place}: holds a transformer, not a unet; this family is not supported")
    for part in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        if not (folder / part).is_file():
            raise BackboneError(f"{place}: no UNet prior in diffusers format, {folder / part} is missing")
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
