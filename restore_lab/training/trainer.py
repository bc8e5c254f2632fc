"""Builds Lightning's Trainer from a stage's trainer node and this package's own settings.

What the machine or Lightning does not have (devices, a strategy) is reported as a ValueError of one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.config.build import build
from restore_lab.system.xla import check_trainer

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers import Logger

_PROFILERS = {"simple": "SimpleProfiler", "advanced": "AdvancedProfiler"}
_PROFILE_FILE = "profile"  # Lightning adds a prefix and a suffix


def trainer_for(
    settings: Mapping[str, Any],
    *,
    folder: Path,
    average: bool,
    callbacks: Sequence[L.Callback] = (),
    logger: Logger | None = None,
) -> L.Trainer:
    """The trainer of a stage.

    Args:
        settings: its trainer node, with epochs converted to steps (ending.py).
        folder: the run's folder.
        average: whether the stage averages its weights.
        callbacks: all callbacks.
        logger: the logger; None for none.

    Raises:
        ValueError: for missing devices, a strategy that is not installed, or a precision that is not supported.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import Checkpoint

    from restore_lab.training.checkpoints import AtomicCheckpointIO
    from restore_lab.training.precision import apply_precision

    check_trainer(settings)
    settings = {name: value for name, value in settings.items() if value is not None or name != "precision"}
    is_tpu = settings.get("accelerator") == "tpu"
    plugins = [] if is_tpu else [AtomicCheckpointIO()]  # XLA's strategy accepts only its own writer
    node = apply_precision(settings, average=average, plugins=plugins)
    if isinstance(profiler := node.get("profiler"), str):
        target = f"lightning.pytorch.profilers.{_PROFILERS[profiler]}"
        node["profiler"] = build({"_target_": target, "dirpath": str(folder), "filename": _PROFILE_FILE})
    objects = {name: node.pop(name) for name in ("plugins", "profiler") if name in node}
    try:
        return build(
            node,
            **objects,
            callbacks=list(callbacks),
            logger=logger or False,
            default_root_dir=str(folder),
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            use_distributed_sampler=False,  # the data module divides each batch among the devices
        )
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error


@contextmanager
def fit_errors() -> Iterator[None]:
    """Report errors of Lightning's configuration that appear only in `fit` as bad input.

    Raises:
        ValueError: with Lightning's message.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise ValueError(f"callbacks: {' '.join(str(error).split())}") from error


def trainer_facts(trainer: L.Trainer) -> dict[str, Any]:
    """The trainer's settings that a manifest records."""
    return {
        "precision": str(trainer.precision),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "strategy": type(trainer.strategy).__name__,
        "accelerator": type(trainer.accelerator).__name__,
        "processes": trainer.world_size,
    }
