"""Checks all stages before the first one starts, so an error in the last one appears at once and not after days.

For each stage: its end, its trainer (devices, precision), its batch size per process, and its prompts. For all but the
first also its data, and its module with its weights, built on the meta device, where tensors have shapes only. The
weights of an earlier stage are those that its module would export. (The first stage is built right after the check.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from restore_lab.config.build import build, resolve_target
from restore_lab.methods.meta import STAGE_PREFIX, check_module, find_parts, needs_earlier_stage
from restore_lab.training.ending import epochs_to_steps
from restore_lab.training.plan import TrainingStage

if TYPE_CHECKING:
    from torch import Tensor


def check_stages(todo: Sequence[TrainingStage]) -> None:
    """Check the stages that will be trained.

    Raises:
        ValueError: with the first error and the name of its stage.
    """
    checked: list[Any] = []  # nodes of data modules
    earlier: dict[str, dict[str, Tensor]] = {}
    needed = {str(stage.node.get("weights")) for stage in todo}
    for stage in todo:
        with _name_stage(stage.kind if len(todo) > 1 else ""):
            _check_end(stage)
            _check_words(stage.node)
            _check_trainer(stage)
            data, later = stage.node["datamodule"], bool(checked)
            if later and data not in checked and not needs_earlier_stage(data):
                build(data).setup("fit")
            checked.append(data)
            is_needed = f"{STAGE_PREFIX}{stage.kind}" in needed
            module = check_module(stage.node, earlier=earlier) if later or is_needed else None
            if module is not None and (tensors := module.export_state()) is not None:
                earlier[stage.kind] = tensors


@contextmanager
def _name_stage(stage: str) -> Iterator[None]:
    """Add the name of the stage to a ValueError raised in the context."""
    try:
        yield
    except ValueError as error:
        if stage and len(error.args) == 1:
            error.args = (f"stage {stage}: {error.args[0]}",)
        raise


def _check_end(stage: TrainingStage) -> None:
    """Require an end, and for a decaying learning rate a known last step."""
    from restore_lab.training.module import unknown_end_message

    settings = stage.node["trainer"]
    steps = settings.get("max_steps") or settings.get("max_epochs") or stage.debug
    if not steps and not settings.get("max_time") and "callbacks" not in stage.settings:
        raise ValueError("nothing ends this training; give max_steps, trainer.max_epochs or trainer.max_time")
    decay = (stage.node.get("optimisation") or {}).get("decay", "constant")
    if not steps and decay != "constant":
        raise ValueError(unknown_end_message(decay))


def _check_words(node: Any) -> None:
    """Refuse prompts that exist only when images are restored."""
    from restore_lab.prompts.vlm import TRAINING_HINT

    for part in find_parts(node):
        if getattr(resolve_target(part["_target_"]), "for_restoring", False):
            raise ValueError(f"prompt/semantic=vlm captions what is restored; {TRAINING_HINT}")


def _check_trainer(stage: TrainingStage) -> None:
    """Require the devices, and a batch that they can share."""
    from restore_lab.training.trainer import trainer_for

    node = stage.node
    world = trainer_for(
        epochs_to_steps(node["trainer"], None), folder=stage.folder, average=bool(node.get("ema"))
    ).world_size
    batch = node["datamodule"].get("batch_size") or world
    if batch % world:
        raise ValueError(
            f"batch_size={batch} does not divide among {world} processes, whose samples it counts all together; choose "
            f"a multiple of {world}, or another trainer.devices"
        )
    target = resolve_target(node["module"]["_target_"])
    if world > 1 and not getattr(target, "divisible", True):
        raise ValueError(f"{target.__name__} looks at a batch as a whole; train it with trainer.devices=1")
