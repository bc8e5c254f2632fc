"""One look at all stages before the first begins: what the last would refuse, after days, is refused in a moment.

Of each stage: its end, its trainer (devices, precision), how its batch divides, whether its words can be had. Of each
after the first also what is built for it: its data, and its module with its weights, on the meta device, where shapes
are all there is. Weights of an earlier stage are those that its module would write there. The first is built in earnest
right after this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from restore_lab.config.build import build, resolve_target
from restore_lab.methods.meta import EARLIER, check_module, needs_earlier, targets
from restore_lab.training.ending import in_steps
from restore_lab.training.plan import TrainingStage

if TYPE_CHECKING:
    from torch import Tensor


def check(todo: Sequence[TrainingStage]) -> None:
    """Look at the stages that are to be trained.

    Raises:
        ValueError: with the first thing that one of them would refuse, and its name.
    """
    seen: list[Any] = []
    earlier: dict[str, dict[str, Tensor]] = {}
    needed = {str(stage.node.get("weights")) for stage in todo}
    for stage in todo:
        with _naming(stage.kind if len(todo) > 1 else ""):
            _check_end(stage)
            _check_words(stage.node)
            _check_trainer(stage)
            data, later = stage.node["datamodule"], bool(seen)
            if later and data not in seen and not needs_earlier(data):
                build(data).setup("fit")
            seen.append(data)
            made = f"{EARLIER}{stage.kind}"
            module = check_module(stage.node, earlier=earlier) if later or made in needed else None
            if module is not None and (tensors := module.exported()) is not None:
                earlier[stage.kind] = tensors


@contextmanager
def _naming(stage: str) -> Iterator[None]:
    """Within the context a refusal says of which stage it is."""
    try:
        yield
    except ValueError as error:
        if stage and len(error.args) == 1:
            error.args = (f"stage {stage}: {error.args[0]}",)
        raise


def _check_end(stage: TrainingStage) -> None:
    """Refuse a training without an end, and a schedule that cannot know it."""
    from restore_lab.training.module import unknown_end

    settings = stage.node["trainer"]
    steps = settings.get("max_steps") or settings.get("max_epochs") or stage.debug
    if not steps and not settings.get("max_time") and "callbacks" not in stage.settings:
        raise ValueError("nothing ends this training; give max_steps, trainer.max_epochs or trainer.max_time")
    decay = (stage.node.get("optimisation") or {}).get("decay", "constant")
    if not steps and decay != "constant":
        raise ValueError(unknown_end(decay))


def _check_words(node: Any) -> None:
    """Refuse words that are only made when something is restored."""
    from restore_lab.prompts.vlm import TRAINING_HINT

    for part in targets(node):
        if getattr(resolve_target(part["_target_"]), "for_restoring", False):
            raise ValueError(f"prompt/semantic=vlm captions what is restored; {TRAINING_HINT}")


def _check_trainer(stage: TrainingStage) -> None:
    """Refuse devices that are not there, and a batch that they cannot share."""
    from restore_lab.training.trainer import trainer_for

    node = stage.node
    world = trainer_for(in_steps(node["trainer"], None), folder=stage.folder, average=bool(node.get("ema"))).world_size
    batch = node["datamodule"].get("batch_size") or world
    if batch % world:
        raise ValueError(
            f"batch_size={batch} does not divide among {world} processes, whose samples it counts all together; choose "
            f"a multiple of {world}, or another trainer.devices"
        )
    target = resolve_target(node["module"]["_target_"])
    if world > 1 and not getattr(target, "divides", True):
        raise ValueError(f"{target.__name__} looks at a batch as a whole; train it with trainer.devices=1")
