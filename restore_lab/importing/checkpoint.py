"""Reads untrusted checkpoints without executing code: safetensors, or torch pickles with `weights_only`.

A pickle may hold tensors, numbers and their containers; one with any other class or function is refused before loading
it. Wrappers are removed: {"state_dict": ...}, a "module." prefix of every key, and nested dictionaries
({"image_proj": {...}} becomes "image_proj....").
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.storage.foreign import json_of, parse_json

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".ckpt", ".pth", ".pt", ".bin")
LORA_HEADER = "lora_adapter_metadata"  # diffusers' name in a safetensors header


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint as read: tensors by key, and settings stored with them (a LoRA's alpha)."""

    file: Path
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)


def checkpoint_files(place: Path) -> list[Path]:
    """The checkpoints at a place: the file itself, or those in a folder.

    In a folder safetensors take precedence over pickles, and full precision over `.fp16.`.

    Raises:
        ValueError: if there is no checkpoint.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f"{place}: no such file or folder; give a checkpoint that you have downloaded")
    safe = sorted(place.glob("*.safetensors"))
    found = safe or sorted(file for ending in PICKLES for file in place.glob(f"*{ending}"))
    full = [file for file in found if ".fp16." not in file.name]
    if not found:
        raise ValueError(f"{place}: no checkpoint in this folder (safetensors, {', '.join(PICKLES)})")
    return full or found


def read_checkpoint(file: Path) -> Checkpoint:
    """A checkpoint's tensors on the CPU, memory-mapped where possible.

    Raises:
        ValueError: for a file that is no checkpoint, is damaged, or holds other objects than tensors.
    """
    if file.suffix == ".safetensors":
        raw, settings = _safetensors(file)
    else:
        raw, settings = _pickled(file), _beside(file)
    if isinstance(raw, Mapping) and isinstance(raw.get("state_dict"), Mapping):
        raw = raw["state_dict"]
    tensors = dict(_flat(raw, file=file))
    if not tensors:
        raise ValueError(f"{file}: no tensors in it")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return Checkpoint(file=file, tensors=tensors, settings=settings)


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        found = load_file(file)
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get(LORA_HEADER)
        return found, (_settings(parse_json(header, name="header")) if header else _beside(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file}: damaged or no safetensors ({_first(error)}); download it again") from error


def _pickled(file: Path) -> object:
    import torch

    def load(*, mmap: bool) -> object:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        try:
            return load(mmap=True)
        except RuntimeError:  # torch's legacy format cannot be memory-mapped; a damaged file fails again
            return load(mmap=False)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file}: refused: this pickle holds more than tensors, and nothing in it was run ({_reason(error)}); "
            "get it as safetensors from those who made it"
        ) from error
    except Exception as error:  # torch may raise any exception on damaged bytes
        raise ValueError(f"{file}: damaged or no checkpoint ({_first(error)}); download it again") from error


def _beside(file: Path) -> dict[str, Any]:
    """PEFT's settings of a LoRA, from the file next to it."""
    config = file.parent / "adapter_config.json"
    if not file.name.startswith("adapter_model.") or not config.is_file():
        return {}
    try:
        return _settings(json_of(config))
    except OSError as error:
        raise ValueError(f"{config}: no JSON ({_first(error)})") from error


def _settings(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"expected a LoRA's settings, got {type(found).__name__}")
    return found


def _flat(node: object, *, file: Path, place: str = "") -> list[tuple[str, Tensor]]:
    """Tensors by dotted key; numbers become tensors."""
    import torch

    if isinstance(node, torch.Tensor):
        return [(place, node)]
    if isinstance(node, bool | int | float):
        return [(place, torch.tensor(node))]
    if not isinstance(node, Mapping):
        raise ValueError(f"{file}: {place or 'its content'} is {type(node).__name__}, not tensors by name")
    return [
        found
        for key, value in node.items()
        for found in _flat(value, file=file, place=f"{place}.{key}" if place else str(key))
    ]


def _reason(error: Exception) -> str:
    """Torch's reason for refusing the pickle, without its advice to load it anyway."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    return line.partition(" was not an allowed")[0][:200]


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
