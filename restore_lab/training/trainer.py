"""Lightning's Trainer from a stage's trainer node, with what this package sets itself.

`trainer_for` refuses in one line what a machine or Lightning does not have: absent devices, an unknown strategy.
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

PROFILERS = {"simple": "SimpleProfiler", "advanced": "AdvancedProfiler"}
PROFILE = "profile"  # the file, with Lightning's own prefix and ending


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
        settings: its trainer node, with epochs as steps (ending.py).
        folder: the run's.
        average: whether an average of the weights is kept.
        callbacks: all that there are.
        logger: where losses are shown.

    Raises:
        ValueError: for devices that are not there, a strategy that is not installed, a precision without a meaning.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import Checkpoint

    from restore_lab.training.checkpoints import Moved
    from restore_lab.training.precision import with_precision

    check_trainer(settings)
    settings = {name: value for name, value in settings.items() if value is not None or name != "precision"}
    plugins = [] if settings.get("accelerator") == "tpu" else [Moved()]  # XLA's strategy takes its own writer alone
    node = with_precision(settings, average=average, plugins=plugins)
    if isinstance(word := node.get("profiler"), str):
        target = f"lightning.pytorch.profilers.{PROFILERS[word]}"
        node["profiler"] = build({"_target_": target, "dirpath": str(folder), "filename": PROFILE})
    live = {name: node.pop(name) for name in ("plugins", "profiler") if name in node}
    try:
        return build(
            node,
            **live,
            callbacks=list(callbacks),
            logger=logger or False,
            default_root_dir=str(folder),
            enable_checkpointing=any(isinstance(one, Checkpoint) for one in callbacks),
            use_distributed_sampler=False,  # the data module shares each batch among the devices
        )
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error


@contextmanager
def whole_fit() -> Iterator[None]:
    """Within the context what Lightning only refuses when it trains is bad input too.

    Raises:
        ValueError: with Lightning's words.
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


def facts_of(trainer: L.Trainer) -> dict[str, Any]:
    """What a trainer ran with, for a manifest."""
    return {
        "precision": str(trainer.precision),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "strategy": type(trainer.strategy).__name__,
        "accelerator": type(trainer.accelerator).__name__,
        "processes": trainer.world_size,
    }
