"""A method's finished weights: safetensors with its own tensors alone and the prior's fingerprint in the header."""

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
from restore_lab.storage.artefact import place_of
from restore_lab.storage.foreign import leads_inside
from restore_lab.storage.hashes import matches_manifest

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)
WEIGHTS = "adaptor.safetensors"
LQ_ENCODER = "lq_encoder."  # before the names of the LQ encoder's tensors
DECODER = "decoder."  # and of the decoder's
_FINGERPRINT_VALUES = 16  # numbers of each tensor that a fingerprint reads


def weights_file(place: str) -> Path:
    """The weights at a place: a safetensors file, a run's folder, or asset:NAME for shipped ones.

    Raises:
        ValueError: for a folder whose weights are a link out of it.
    """
    path = place_of(place)
    if not path.is_dir():
        return path
    if not leads_inside(path / WEIGHTS, path):
        raise ValueError(f"{path / WEIGHTS}: is a link that leads out of the folder; give the file itself as weights")
    return path / WEIGHTS


def write_weights(state: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype | None, base: str | None) -> None:
    """Write tensors by name into an existing folder, with the prior's fingerprint if it is known; None keeps dtypes."""
    from safetensors.torch import save_file

    own = {k: v.cpu().to(dtype or v.dtype).contiguous() for k, v in state.items()}
    part = folder / f".{WEIGHTS}.part"
    try:
        save_file(own, part, metadata=None if base is None else {"base": base})
        part.replace(folder / WEIGHTS)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_weights(file: Path, *, base: str | None, meta: bool = False) -> dict[str, Tensor]:
    """Tensors by name; says so if they were trained on another prior.

    Args:
        file: what `write_weights` wrote.
        base: the prior's fingerprint; None where no prior is run.
        meta: read names and shapes only.

    Raises:
        ValueError: if there is no such file, or it holds no weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"{file}: no such weights; train some with restore-lab train, then give weights=FOLDER")
    if not meta and not matches_manifest(file):
        raise ValueError(f"{file}: not what its manifest says was written; train or copy it again")
    try:
        found = read_shapes(file) if meta else load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: no adaptor weights, or damaged ({error}); train or copy it again") from error
    trained_on = None if meta else base_of(file)
    if None not in (base, trained_on) and trained_on != base:
        log.warning("%s: trained on another prior than this one; results will be poor", file)
    return found


def read_shapes(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the meta device: their header is read, and nothing else."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def base_of(file: Path) -> str | None:
    """The fingerprint of the prior that some weights were trained on, if their header says it."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return (opened.metadata() or {}).get("base")


def copy_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, file: Path) -> None:
    """Copy what was found into the tensors that are wanted: all of them and nothing else.

    Raises:
        ValueError: if they do not fit.
    """
    missing, unknown = [k for k in wanted if k not in found], [k for k in found if k not in wanted]
    reshaped = [k for k in wanted if k in found and found[k].shape != wanted[k].shape]
    if odd := [*reshaped, *missing, *unknown]:
        counts = {
            f"of another shape than its {len(wanted)} tensors": reshaped,
            f"missing of its {len(wanted)} tensors": missing,
            f"unknown of the file's {len(found)}": unknown,
        }
        said = ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names)
        raise ValueError(
            f"{file}: does not fit this adaptor: {said}; the first is {odd[0]}; use the backbone and adaptor settings "
            "that it was trained with"
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])


def fingerprint_of(denoiser: nn.Module, *, values: Callable[[str], Tensor] | None = None) -> str:
    """16 hex characters for a prior's weights: names, shapes and the first numbers of every tensor, as bfloat16.

    Rounded so, a prior loaded in float32 and in bfloat16 is the same prior; LoRA in it does not count.

    Args:
        denoiser: the prior's.
        values: gives a tensor, or its first rows, by name, for a denoiser on the meta device.
    """
    total = hashlib.sha256()
    for name, p in denoiser.state_dict().items():
        if is_lora_tensor(name):
            continue
        value = p.detach() if values is None else values(strip_base_layer(name))
        first = value.flatten()[:_FINGERPRINT_VALUES].cpu().to(torch.bfloat16).float().numpy().tobytes()
        total.update(f"{strip_base_layer(name)}{tuple(p.shape)}".encode() + first)
    return total.hexdigest()[:16]


def stored_fingerprint(denoiser: nn.Module, path: str | Sequence[str], *, family: str) -> str | None:
    """The fingerprint of a prior on disk, without loading it; None if its safetensors are not here.

    Args:
        denoiser: the prior's, perhaps on the meta device.
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
            each = math.prod(rows.get_shape()[1:])
            return rows[: -(-_FINGERPRINT_VALUES // each)] if rows.get_shape() else where[name].get_tensor(name)

        known = all(is_lora_tensor(name) or strip_base_layer(name) in where for name in denoiser.state_dict())
        return fingerprint_of(denoiser, values=first_rows) if files and known else None


def strip_base_layer(name: str) -> str:
    """A tensor's name as it was before peft wrapped its layer."""
    return name.replace(".base_layer.", ".")


def is_lora_tensor(name: str) -> bool:
    """Whether a tensor is one of peft's, seen from the layer that it changes."""
    return ".lora_A." in name or ".lora_B." in name


def part_name(name: str) -> str:
    """The part of a method that a tensor belongs to: the first word of its name."""
    return name.partition(".")[0]
