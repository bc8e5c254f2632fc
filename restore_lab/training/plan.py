"""The stages of a training before anything is built: what each trains, with which trainer, under which identity.

A stage is a node of `stages`: its module, its data module, its trainer settings. A string "stage:NAME" inside it stands
for the folder of an earlier stage's artefact. Folders are `<runs_dir>/<name>/<stage>-<identity>`. What a stage
`ignores` (the sampler, say) changes nothing of what it trains, nor its identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from restore_lab.config import trainer
from restore_lab.config.build import resolve_target
from restore_lab.config.compose import command_overrides
from restore_lab.storage.artefact import identity

STATE = "state"  # the folder of a run's checkpoints, in its own
LOSSES = "losses.jsonl"
DEBUG = "debug"  # the folder of what leaves no artefact
LIGHTNINGS = "lightning.pytorch.callbacks."
HARMLESS = frozenset(  # of Lightning's callbacks those that change no weight and end nothing
    ("BasePredictionWriter", "Callback", "Checkpoint", "DeviceStatsMonitor", "LearningRateMonitor", "ModelCheckpoint")
    + ("ModelSummary", "OnExceptionCheckpoint", "ProgressBar", "RichModelSummary", "RichProgressBar")
    + ("ThroughputMonitor", "TQDMProgressBar")
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage's artefact before it is made.

    Attributes:
        name: of the stage.
        identity: of the artefact.
        folder: where it is, or will be.
        settings: what its identity is made of, with `parents`.
        parents: identities of the earlier stages, and of the run that it extends.
        node: what to build; each "stage:NAME" in it stands for an earlier folder, `trainer` is the whole node.
        debug: the settings by which this is a part of a training that leaves no artefact; empty for a whole one.
        extends: the complete run that this one trains further.
    """

    name: str
    identity: str
    folder: Path
    settings: Mapping[str, Any]
    parents: tuple[str, ...]
    node: Mapping[str, Any]
    debug: str = ""
    extends: Path | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps at most; 0 where only something else ends it."""
        return int(self.node["trainer"].get("max_steps") or 0)


def planned(cfg: DictConfig, *, earlier: Mapping[str, str] | None = None) -> list[Stage]:
    """The chosen stages in order, with the artefacts that they make; nothing is built or run.

    Args:
        cfg: the composed config of `restore-lab train`.
        earlier: identities, by stage, in place of those that the config gives the stages before the last.

    Raises:
        ValueError: for an unknown stage, a setting without a value, or a trainer's setting that is none.
    """
    names = chosen_stages(cfg)
    common: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    trainer.check_trainer_arguments("trainer", common)
    callbacks = counted_callbacks(cfg.callbacks)
    stages: list[Stage] = []
    for name in names:
        node = _node(cfg, name)
        own = node.get("trainer") or {}
        trainer.check_trainer_arguments(f"stages.{name}.trainer", own)
        node["trainer"] = trainer.trainer_of(name, own, common, words=command_overrides())
        before = {stage.name: stage.identity for stage in stages}
        settings = settings_of(cfg, node, own, before, callbacks)
        parents = tuple(before.values())
        debug = trainer.debug_of(node["trainer"])
        for stage in stages if not debug else ():
            if stage.debug:
                raise ValueError(
                    f"stage {name} starts from stage {stage.name}, whose {stage.debug} leaves no weights; set it for "
                    f"all stages, or stage={stage.name}"
                )
        identity_ = (earlier or {}).get(name) or identity(settings, parents)
        folder = folder_of(cfg, name, identity_, last=name == names[-1], debug=bool(debug))
        stages.append(
            Stage(
                name=name,
                identity=identity_,
                folder=folder,
                settings=settings,
                parents=parents,
                node=node,
                debug=debug,
            )
        )
    return stages


def chosen_stages(cfg: DictConfig) -> list[str]:
    """The names of the stages to the chosen one.

    Raises:
        ValueError: for an unknown stage.
    """
    names = [str(name) for name in cfg.stages if cfg.stages[name] is not None]
    if cfg.stage != "all" and cfg.stage not in names:
        raise ValueError(f"stage={cfg.stage!r} is not known here; one of {', '.join([*names, 'all'])}")
    last = names[-1] if cfg.stage == "all" else cfg.stage
    return names[: names.index(last) + 1]


def settings_of(
    cfg: DictConfig,
    node: Mapping[str, Any],
    own: Mapping[str, Any],
    earlier: Mapping[str, str],
    callbacks: list[Any],
) -> dict[str, Any]:
    """What a stage's identity is made of: all that can change the weights.

    Args:
        cfg: the composed config.
        node: the stage's, with its whole trainer node.
        own: what of the trainer the stage says itself.
        earlier: the identities of the stages before it, by name.
        callbacks: those that can change the weights.
    """
    chosen = node["trainer"]
    counted = trainer.identity_arguments(chosen, own)
    if callbacks:  # they may act on what validation finds
        counted |= {name: chosen[name] for name in trainer.VALIDATION if name in chosen}
    node = {**node, "trainer": counted, **({"callbacks": callbacks} if callbacks else {})}
    settings = {**replaced(node, {name: f"stage:{value}" for name, value in earlier.items()}), "seed": cfg.seed}
    for place in settings.pop("ignores", ()):
        settings = _without(settings, place.split("."))
    return settings


def counted_callbacks(node: Any) -> list[Any]:
    """The callbacks that may change the weights, or end the training: all but Lightning's that watch.

    A callback of your own that only watches says so with a class attribute: `changes_weights = False`.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if isinstance(plain, Mapping):
        plain = [plain] if "_target_" in plain else list(plain.values())
    counted = []
    for one in plain or ():
        target = one.get("_target_", "") if isinstance(one, Mapping) else ""
        home, _, name = str(target).rpartition(".")
        watches = f"{home}." == LIGHTNINGS and name in HARMLESS
        if target and not watches and getattr(resolve_target(target), "changes_weights", True):
            counted.append(one)
    return counted


def folder_of(cfg: DictConfig, name: str, identity_: str, *, last: bool, debug: bool = False) -> Path:
    """Where a stage's artefact lies; what leaves none works in a folder of its own."""
    if cfg.run_dir and last and not debug:
        return Path(cfg.run_dir)
    return Path(cfg.runs_dir) / cfg.name / (DEBUG if debug else "") / f"{name}-{identity_}"


def replaced(value: Any, names: Mapping[str, str]) -> Any:
    """The node with each "stage:NAME[/rest]" replaced by what NAME stands for.

    Raises:
        ValueError: for a stage that has not been made.
    """
    if isinstance(value, Mapping):
        return {key: replaced(entry, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [replaced(entry, names) for entry in value]
    if not isinstance(value, str) or not value.startswith("stage:"):
        return value
    name, slash, rest = value.removeprefix("stage:").partition("/")
    if name not in names:
        raise ValueError(f"{value!r}: there is no earlier stage {name!r}; earlier stages: {', '.join(names) or 'none'}")
    return names[name] + slash + rest


def _node(cfg: DictConfig, name: str) -> dict[str, Any]:
    """A stage's node, resolved.

    Raises:
        ValueError: for a setting without a value.
    """
    try:
        node: Any = OmegaConf.to_container(cfg.stages[name], resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        plain: Any = OmegaConf.to_container(cfg, resolve=False)
        unset = list(_unset({key: node for key, node in plain.items() if key != "hydra"}))
        raise ValueError(f"not set: {', '.join(unset)}; give {unset[0]}=...") from error
    return node


def _unset(node: Any, place: str = "") -> Iterator[str]:
    """The settings that wait for a value, by dotted name."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _unset(value, f"{place}.{key}" if place else str(key))
    elif node == "???":
        yield place


def _without(node: Mapping[str, Any], place: Sequence[str]) -> dict[str, Any]:
    """The node without the entry at a place; one that is not there is none."""
    first, *rest = place
    inner = node.get(first)
    if rest and isinstance(inner, Mapping):
        return {**node, first: _without(inner, rest)}
    return {key: value for key, value in node.items() if key != first or rest}
