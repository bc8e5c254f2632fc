"""Support for PyTorch/XLA (TPUs): graph boundaries, and matching versions of torch and torch-xla.

XLA traces operations lazily and compiles each new graph. So a loop syncs after every iteration, or all iterations would
be one graph; and every iteration must trace the same graph: numbers that change between steps reach the device as
tensors, and values that the host computes (times, a solver's coefficients) stay on the host. `trainer=tpu`,
docs/tpu.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOCK = "requirements-xla.lock"


def sync(tensor: Tensor) -> None:
    """End the traced graph and run it, compiled if it is new; does nothing for tensors of other devices."""
    if tensor.device.type == "xla":
        import_module("torch_xla").sync()


def to_host(tensor: Tensor) -> Tensor:
    """A tensor that outlives its step, moved to the host if it is XLA's, so every step traces the same graph."""
    return tensor.cpu() if tensor.device.type == "xla" else tensor


def upsample_nearest_2x(map_BCHW: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by 2 without `interpolate`, whose gradient torch-xla computes on the host."""
    count, channels, height, width = map_BCHW.shape
    each = map_BCHW[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return each.reshape(count, channels, 2 * height, 2 * width)


def check_versions() -> None:
    """Refuse a torch-xla whose minor version differs from torch's; without this check its import fails obscurely.

    Raises:
        ValueError: for versions that do not match.
    """
    xla, torch = _version("torch-xla"), _version("torch")
    if xla is not None and (torch is None or _minor(xla) != _minor(torch)):
        raise ValueError(
            f"torch-xla {xla} is installed beside torch {torch}, and works with torch {_minor(xla)} alone; "
            f"make an environment from {LOCK}, or uninstall torch-xla"
        )


def check_trainer(settings: Mapping[str, object]) -> None:
    """Refuse unsupported settings of a TPU trainer; other accelerators are not checked.

    Args:
        settings: arguments of Lightning's Trainer, by name.

    Raises:
        ValueError: without torch-xla, for several devices, or for a precision that XLA lacks.
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
