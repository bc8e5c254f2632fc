"""What PyTorch/XLA (TPUs) asks of the rest: where its programs end, and torch and torch-xla of one minor version.

XLA records what happens to its tensors and compiles a record that it has not met yet. A loop is therefore cut after
each round, or all rounds would be one program; and every round has to be the same record: numbers that differ from step
to step reach the device as data, and tensors that the host knows (times, a solver's coefficients) stay on the host.
`trainer=tpu`, docs/tpu.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LOCK = "requirements-xla.lock"


def cut(tensor: Tensor) -> None:
    """The end of a round: what was recorded is run, compiled before if it is new. Nothing for tensors elsewhere."""
    if tensor.device.type == "xla":
        import torch_xla

        torch_xla.sync()


def at_rest(tensor: Tensor) -> Tensor:
    """What is remembered beyond its step: on the host where it is XLA's, so that all steps put it together alike."""
    return tensor.cpu() if tensor.device.type == "xla" else tensor


def doubled(map_BCHW: Tensor) -> Tensor:
    """Nearest-neighbour doubling without `interpolate`, whose gradient torch-xla leaves to the host."""
    count, channels, height, width = map_BCHW.shape
    each = map_BCHW[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return each.reshape(count, channels, 2 * height, 2 * width)


def check_versions() -> None:
    """torch-xla works with torch of its own minor version alone, and nothing else says so: imports just fail.

    Raises:
        ValueError: for another pair.
    """
    xla, torch = _version("torch-xla"), _version("torch")
    if xla is not None and (torch is None or _minor(xla) != _minor(torch)):
        raise ValueError(
            f"torch-xla {xla} is installed beside torch {torch}, and works with torch {_minor(xla)} alone; "
            f"make an environment from {LOCK}, or uninstall torch-xla"
        )


def check_trainer(settings: Mapping[str, Any]) -> None:
    """What a trainer on a TPU has to be like; says nothing of another.

    Args:
        settings: Lightning's, by name.

    Raises:
        ValueError: if torch-xla is not there, for several devices, or for a precision that XLA does not have.
    """
    if settings.get("accelerator") != "tpu":
        return
    if _version("torch-xla") is None:
        raise ValueError(f"trainer=tpu: torch-xla is not installed here; make an environment from {LOCK}")
    devices = settings.get("devices")
    if devices not in (1, "1") and not (isinstance(devices, Sequence) and len(devices) == 1):
        raise ValueError(
            f"trainer=tpu trainer.devices={devices}: several cores are not supported, since their processes would not "
            "hand the averaged weights back; set trainer.devices=1"
        )
    precision = settings.get("precision")
    if precision != "32-true":
        raise ValueError(
            f"trainer=tpu precision={precision}: XLA computes in the weights' own type; set precision=32-true, and "
            "backbone.dtype=bfloat16 for a prior in 16 bits"
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    """ "2.9" of "2.9.1+cu128"."""
    return ".".join(version.split(".")[:2])
