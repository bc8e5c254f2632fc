"""A method's exported weights: safetensors with the method's tensors, and the prior's fingerprint in the header."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restore_lab.backbones.loading.places import DENOISERS, as_list, find_prior
from restore_lab.storage.foreign import leads_inside
from restore_lab.storage.hashes import matches_manifest
from restore_lab.storage.paths import place_of

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)
WEIGHTS = "adaptor.safetensors"
LQ_ENCODER = "lq_encoder."  # prefix of the LQ encoder's tensors
DECODER = "decoder."  # prefix of the decoder's tensors
_FINGERPRINT_VALUES = 16  # per tensor


def weights_file(place: str) -> Path:
    """The file of weights given as a safetensors file, a run's folder, or asset:NAME for shipped weights.

    Raises:
        ValueError: for a folder whose weights are a link to a file outside of it.
    """
    path = place_of(place)
    if not path.is_dir():
        return path
    if not leads_inside(path / WEIGHTS, path):
        raise ValueError(f"{path / WEIGHTS}: is a link that leads out of the folder; give the file itself as weights")
    return path / WEIGHTS


def write_weights(state: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype | None, base: str | None) -> None:
    """Write tensors by name into an existing folder, atomically.

    Args:
        state: the tensors.
        folder: the folder.
        dtype: dtype of all tensors; None keeps theirs.
        base: the prior's fingerprint, if known.
    """
    from safetensors.torch import save_file

    tensors = {name: value.cpu().to(dtype or value.dtype).contiguous() for name, value in state.items()}
    part = folder / f".{WEIGHTS}.part"
    try:
        save_file(tensors, part, metadata=None if base is None else {"base": base})
        part.replace(folder / WEIGHTS)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_weights(file: Path, *, base: str | None, meta: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name; a warning is logged if they were trained on another prior.

    Args:
        file: a file written by `write_weights`.
        base: the prior's fingerprint; None for no check.
        meta: read only names and shapes.

    Raises:
        ValueError: if there is no such file, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"{file}: no such weights; train some with restore-lab train, then give weights=FOLDER")
    if not meta and not matches_manifest(file):
        raise ValueError(f"{file}: not what its manifest says was written; train or copy it again")
    try:
        tensors = read_shapes(file) if meta else load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: no adaptor weights, or damaged ({error}); train or copy it again") from error
    trained_on = None if meta else base_of(file)
    if None not in (base, trained_on) and trained_on != base:
        log.warning("%s: trained on another prior than this one; results will be poor", file)
    return tensors


def read_shapes(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the meta device; only the header is read."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def base_of(file: Path) -> str | None:
    """The fingerprint of the prior that weights were trained on, if their header has it."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return (opened.metadata() or {}).get("base")


def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor], *, file: Path) -> None:
    """Copy tensors into others of the same names and shapes.

    Raises:
        ValueError: if the names or shapes differ; the message names `file`.
    """
    missing, unknown = [k for k in target if k not in source], [k for k in source if k not in target]
    reshaped = [k for k in target if k in source and source[k].shape != target[k].shape]
    if wrong := [*reshaped, *missing, *unknown]:
        counts = {
            f"of another shape than its {len(target)} tensors": reshaped,
            f"missing of its {len(target)} tensors": missing,
            f"unknown of the file's {len(source)}": unknown,
        }
        reasons = ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names)
        raise ValueError(
            f"{file}: does not fit this adaptor: {reasons}; the first is {wrong[0]}; use the backbone and adaptor "
            "settings that it was trained with"
        )
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(source[name])


def fingerprint_of(denoiser: nn.Module, *, values: Callable[[str], Tensor] | None = None) -> str:
    """16 hex characters that identify a prior's weights, from names, shapes and the first values of all tensors.

    The values are rounded to bfloat16, so a prior has the same fingerprint in float32 and in bfloat16. LoRA's tensors
    are not included.

    Args:
        denoiser: the prior's denoiser.
        values: returns a tensor, or its first rows, by name, for a denoiser on the meta device.
    """
    digest = hashlib.sha256()
    for name, p in denoiser.state_dict().items():
        if is_lora_tensor(name):
            continue
        value = p.detach() if values is None else values(strip_base_layer(name))
        first = value.flatten()[:_FINGERPRINT_VALUES].cpu().to(torch.bfloat16).float().numpy().tobytes()
        digest.update(f"{strip_base_layer(name)}{tuple(p.shape)}".encode() + first)
    return digest.hexdigest()[:16]


def stored_fingerprint(denoiser: nn.Module, path: str | Sequence[str], *, family: str) -> str | None:
    """The fingerprint of a prior on disk, without loading it; None if its safetensors are not on disk.

    Args:
        denoiser: the prior's denoiser, possibly on the meta device.
        path: as `backbone.path`; nothing is downloaded.
        family: as `backbone.family`.
    """
    from safetensors import safe_open

    files = find_prior(as_list(path), family=family, meta=True).files(DENOISERS[family])
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

        def first_rows(name: str) -> Tensor:
            rows = where[name].get_slice(name)
            row_size = math.prod(rows.get_shape()[1:])
            return rows[: -(-_FINGERPRINT_VALUES // row_size)] if rows.get_shape() else where[name].get_tensor(name)

        complete = all(is_lora_tensor(name) or strip_base_layer(name) in where for name in denoiser.state_dict())
        return fingerprint_of(denoiser, values=first_rows) if files and complete else None


def strip_base_layer(name: str) -> str:
    """A tensor's name before peft wrapped its layer."""
    return name.replace(".base_layer.", ".")


def is_lora_tensor(name: str) -> bool:
    """Whether a tensor is one that peft added to the layer it changes."""
    return ".lora_A." in name or ".lora_B." in name


def part_name(name: str) -> str:
    """The part of a method that a tensor belongs to: the first component of its name."""
    return name.partition(".")[0]
