"""`extend=RUN max_steps=N`: continues the training of a complete run, with the result of N uninterrupted steps.

The last chosen stage starts from RUN's state: weights, optimiser, average, schedule and position in the data. (All
other randomness of a step comes from its samples' seeds.) All settings that can change the weights must be equal to
RUN's, except for the end of training; the new artefact has RUN among its parents. The earlier stages are RUN's, even if
the present settings would give them another identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from restore_lab.config.compose import OVERRIDES_KEY
from restore_lab.config.trainer import ENDS
from restore_lab.storage.artefact import Manifest, is_complete
from restore_lab.storage.identity import identity
from restore_lab.storage.paths import place_of
from restore_lab.training.plan import TrainingStage, plan_stages, stage_folder, stage_names

_MAX_DIFFERENCES = 3  # per error message
_EXTENDS_KEY = "extends"  # in the settings: the identity of the extended run


def plan_extension(cfg: DictConfig) -> list[TrainingStage]:
    """The stages of `extend=RUN`: RUN's earlier stages, and its last one with the new end.

    Raises:
        ValueError: if RUN is not complete, of another stage, without a state, or trained with other settings.
    """
    from restore_lab.training.checkpoints import last_state

    run = place_of(str(cfg.extend))
    if not is_complete(run):
        raise ValueError(f"extend={run}: not a complete run; the command that began it continues it")
    manifest, last = Manifest.read(run), stage_names(cfg)[-1]
    if manifest.kind != last:
        raise ValueError(f"extend={run}: made by stage {manifest.kind}, not by {last}; set stage={manifest.kind}")
    before = stage_names(cfg)[:-1]
    stage = plan_stages(cfg, earlier=dict(zip(before, manifest.parents, strict=False)))[-1]
    if stage.debug:
        raise ValueError(f"extend={run}: {stage.debug} leaves no weights; take one of the two")
    _require_same(manifest, stage, run)
    earlier = [_earlier_stage(cfg, name, parent, run) for name, parent in zip(before, manifest.parents, strict=False)]
    settings = {**stage.settings, _EXTENDS_KEY: manifest.identity}
    parents = (*stage.parents, manifest.identity)
    identity_ = identity(settings, parents)
    folder = stage_folder(cfg, last, identity_, last=True)
    if not is_complete(folder, identity=identity_) and last_state(folder) is None:
        require_longer(run, steps=stage.steps, done=_last_step(run))
    return [
        *earlier,
        replace(stage, identity=identity_, settings=settings, parents=parents, folder=folder, extends=run),
    ]


def require_longer(run: Path, *, steps: int, done: int) -> None:
    """Require an end after RUN's last step.

    Args:
        run: RUN.
        steps: the last step of the new training; 0 or less if only the time or a callback ends it.
        done: RUN's last step.

    Raises:
        ValueError: with both numbers.
    """
    if 0 < steps <= done:
        raise ValueError(f"extend={run}: it was trained for {done} steps; give more (max_steps=N), not {steps}")


def learning_rate_warning(node: Mapping[str, Any], *, steps: int, done: int) -> str | None:
    """A warning if the learning rate differs from that of one uninterrupted training; None if it does not.

    Args:
        node: the stage's.
        steps, done: as for `require_longer`.
    """
    decay = (node.get("optimisation") or {}).get("decay", "constant")
    if decay == "constant":
        return None
    return (
        f"optimisation.decay={decay}: the learning rate falls until step {steps}; before, it fell until step {done}, "
        f"so the result is not that of one training of {steps} steps"
    )


def _earlier_stage(cfg: DictConfig, name: str, identity_: str, run: Path) -> TrainingStage:
    """An earlier stage of RUN; its artefact must exist."""
    folder = stage_folder(cfg, name, identity_, last=False)
    if not is_complete(folder, identity=identity_):
        raise ValueError(f"extend={run}: stage {name}, from which it was made, is not in {folder}")
    return TrainingStage(kind=name, identity=identity_, folder=folder)


def _require_same(manifest: Manifest, stage: TrainingStage, run: Path) -> None:
    """Require RUN's settings, except for the end of training."""
    differing = list(setting_differences(_without_end(manifest.settings), _without_end(stage.settings)))
    if not differing:
        return
    first = "; ".join(f"{place}={here} here, {there} there" for place, there, here in differing[:_MAX_DIFFERENCES])
    more = f"; and {len(differing) - _MAX_DIFFERENCES} more" if len(differing) > _MAX_DIFFERENCES else ""
    words = " ".join(str(word) for word in manifest.extra.get(OVERRIDES_KEY, ()))
    raise ValueError(f"extend={run}: other settings than it was trained with: {first}{more}; its own words: {words}")


def _without_end(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that end a training, and without `extends`."""
    trainer = {name: value for name, value in (settings.get("trainer") or {}).items() if name not in ENDS}
    return {**{name: value for name, value in settings.items() if name != _EXTENDS_KEY}, "trainer": trainer}


def setting_differences(first: Any, second: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The settings that give two nodes different identities: dotted name, value in the first, value in the second."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if identity({"": first}) == identity({"": second}):
            return
        for name in dict.fromkeys([*first, *second]):
            yield from setting_differences(first.get(name), second.get(name), f"{place}.{name}" if place else str(name))
    elif identity(_named(place, first)) != identity(_named(place, second)):
        yield place, first, second


def _named(place: str, value: Any) -> dict[str, Any]:
    """A value under its last name; the identity of a path, by its name, is that of its content."""
    return {place.rpartition(".")[2]: value}


def _last_step(run: Path) -> int:
    """The step of a run's last checkpoint.

    Raises:
        ValueError: if the run has no checkpoint.
    """
    from restore_lab.training.checkpoints import checkpoint_step, last_state

    state = last_state(run)
    if state is None:
        raise ValueError(
            f"extend={run}: it has no state to continue from (it was trained with keep_state=false, or by an older "
            f"version); weights={run} starts a new training from its weights"
        )
    return checkpoint_step(state)
