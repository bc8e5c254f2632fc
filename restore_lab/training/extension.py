"""`extend=RUN max_steps=N`: a complete run is trained further, to what N steps without a break would have made.

The last chosen stage starts from RUN's state: weights, optimiser, average, schedule, place in the data. (All else that
a step draws comes from its samples' own seeds.) Everything that can change the weights has to be as it was, but for the
end; the new artefact has RUN among its parents. RUN's own earlier stages are used, whatever `max_steps` would make of
them now.
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

SHOWN = 3  # differences in a line
EXTENDS = "extends"  # in the settings: the identity of the run that is trained further


def extended(cfg: DictConfig) -> list[TrainingStage]:
    """The plan of `extend=RUN`: RUN's own earlier stages, and its last one with the new end.

    Raises:
        ValueError: if RUN is not complete, of another stage, has no state, or was made with other settings.
    """
    from restore_lab.training.checkpoints import last_state

    run = place_of(str(cfg.extend))
    if not is_complete(run):
        raise ValueError(f"extend={run}: not a complete run; the command that began it continues it")
    made, last = Manifest.read(run), stage_names(cfg)[-1]
    if made.kind != last:
        raise ValueError(f"extend={run}: made by stage {made.kind}, not by {last}; set stage={made.kind}")
    before = stage_names(cfg)[:-1]
    stage = plan_stages(cfg, earlier=dict(zip(before, made.parents, strict=False)))[-1]
    if stage.debug:
        raise ValueError(f"extend={run}: {stage.debug} leaves no weights; take one of the two")
    _require_same(made, stage, run)
    earlier = [_earlier(cfg, name, own, run) for name, own in zip(before, made.parents, strict=False)]
    settings = {**stage.settings, EXTENDS: made.identity}
    parents = (*stage.parents, made.identity)
    identity_ = identity(settings, parents)
    folder = stage_folder(cfg, last, identity_, last=True)
    if not is_complete(folder, identity=identity_) and last_state(folder) is None:
        require_longer(run, steps=stage.steps, done=_state_of(run))
    return [
        *earlier,
        replace(stage, identity=identity_, settings=settings, parents=parents, folder=folder, extends=run),
    ]


def require_longer(run: Path, *, steps: int, done: int) -> None:
    """Refuse an end that does not lie after RUN's.

    Args:
        run: RUN.
        steps: at which the new training ends; 0 or less where only the time, or a callback, ends it.
        done: RUN's own.

    Raises:
        ValueError: with both numbers.
    """
    if 0 < steps <= done:
        raise ValueError(f"extend={run}: it was trained for {done} steps; give more (max_steps=N), not {steps}")


def other_rate(node: Mapping[str, Any], *, steps: int, done: int) -> str | None:
    """What to say where the learning rate is not that of one training without a break; None where it is.

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


def _earlier(cfg: DictConfig, name: str, identity_: str, run: Path) -> TrainingStage:
    """A stage that RUN was made from, which has to be there."""
    folder = stage_folder(cfg, name, identity_, last=False)
    if not is_complete(folder, identity=identity_):
        raise ValueError(f"extend={run}: stage {name}, from which it was made, is not in {folder}")
    return TrainingStage(kind=name, identity=identity_, folder=folder)


def _require_same(made: Manifest, stage: TrainingStage, run: Path) -> None:
    """Refuse settings that are not RUN's, but for its end."""
    odd = list(differences(_but_the_end(made.settings), _but_the_end(stage.settings)))
    if not odd:
        return
    shown = "; ".join(f"{place}={here} here, {there} there" for place, there, here in odd[:SHOWN])
    more = f"; and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
    words = " ".join(str(word) for word in made.extra.get(OVERRIDES_KEY, ()))
    raise ValueError(f"extend={run}: other settings than it was trained with: {shown}{more}; its own words: {words}")


def _but_the_end(settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in (settings.get("trainer") or {}).items() if name not in ENDS}
    return {**{name: value for name, value in settings.items() if name != EXTENDS}, "trainer": kept}


def differences(first: Any, second: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two nodes differ as identities do: place, the first's value, the second's."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if identity({"": first}) == identity({"": second}):
            return
        for name in dict.fromkeys([*first, *second]):
            yield from differences(first.get(name), second.get(name), f"{place}.{name}" if place else str(name))
    elif identity(_named(place, first)) != identity(_named(place, second)):
        yield place, first, second


def _named(place: str, value: Any) -> dict[str, Any]:
    """A value under its own name, by which a path counts as what it holds."""
    return {place.rpartition(".")[2]: value}


def _state_of(run: Path) -> int:
    """The step of a run's state.

    Raises:
        ValueError: if it was deleted.
    """
    from restore_lab.training.checkpoints import last_state, step_of

    state = last_state(run)
    if state is None:
        raise ValueError(
            f"extend={run}: it has no state to continue from (it was trained with keep_state=false, or by an older "
            f"version); weights={run} starts a new training from its weights"
        )
    return step_of(state)
