"""The stages of a training, planned before anything is built: what each trains, how, and under which identity.

A stage is a node of `stages`: its module, its data module, its trainer settings. A string "stage:NAME" inside it stands
for the folder of an earlier stage's artefact. Folders are `<runs_dir>/<name>/<stage>-<identity>`. What a stage
`ignores`, such as the sampler, changes nothing of what it trains and does not enter its identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from restore_lab.config import trainer
from restore_lab.config.build import resolve_target
from restore_lab.config.compose import command_overrides
from restore_lab.storage.artefact import Artefact
from restore_lab.storage.identity import identity

STATE = "state"  # folder of the checkpoints, in the run's folder
LOSSES = "losses.jsonl"
DEBUG_FOLDER = "debug"  # where debug runs work
LIGHTNING_CALLBACKS = "lightning.pytorch.callbacks"
PASSIVE_CALLBACKS = frozenset(  # Lightning's callbacks that change no weights and end nothing
    ("BasePredictionWriter", "Callback", "Checkpoint", "DeviceStatsMonitor", "LearningRateMonitor", "ModelCheckpoint")
    + ("ModelSummary", "OnExceptionCheckpoint", "ProgressBar", "RichModelSummary", "RichProgressBar")
    + ("ThroughputMonitor", "TQDMProgressBar")
)


@dataclass(frozen=True, kw_only=True)
class TrainingStage(Artefact):
    """The artefact of a stage; its `kind` is the stage's name.

    Attributes:
        node: what to build; "stage:NAME" stands for the folder of an earlier stage, `trainer` is complete.
        debug: the settings that make this a debug run, which leaves no artefact; empty for a whole training.
        extends: folder of the complete run that this one trains further.
    """

    node: Mapping[str, Any] = field(default_factory=dict)
    debug: str = ""
    extends: Path | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps at most; 0 if something else ends the training."""
        return int(self.node["trainer"].get("max_steps") or 0)


def plan_stages(cfg: DictConfig, *, earlier: Mapping[str, str] | None = None) -> list[TrainingStage]:
    """The stages up to the chosen one, in order, without `extend` (extension.py).

    Args:
        cfg: the composed config of `restore-lab train`.
        earlier: identities by stage, to use instead of those that follow from the config.

    Raises:
        ValueError: for an unknown stage, a setting without a value, or an invalid setting of the trainer.
    """
    names = stage_names(cfg)
    common: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    trainer.check_trainer_arguments("trainer", common)
    callbacks = active_callbacks(cfg.callbacks)
    stages: list[TrainingStage] = []
    for name in names:
        node = _node(cfg, name)
        own = node.get("trainer") or {}
        trainer.check_trainer_arguments(f"stages.{name}.trainer", own)
        node["trainer"] = trainer.trainer_of(name, own, common, words=command_overrides())
        identities = {stage.kind: stage.identity for stage in stages}
        settings = stage_settings(cfg, node, own, identities, callbacks)
        parents = tuple(identities.values())
        debug = trainer.debug_of(node["trainer"])
        for stage in stages if not debug else ():
            if stage.debug:
                raise ValueError(
                    f"stage {name} starts from stage {stage.kind}, whose {stage.debug} leaves no weights; set it for "
                    f"all stages, or stage={stage.kind}"
                )
        identity_ = (earlier or {}).get(name) or identity(settings, parents)
        folder = stage_folder(cfg, name, identity_, last=name == names[-1], debug=bool(debug))
        stages.append(
            TrainingStage(
                kind=name,
                identity=identity_,
                folder=folder,
                settings=settings,
                parents=parents,
                node=node,
                debug=debug,
            )
        )
    return stages


def stage_names(cfg: DictConfig) -> list[str]:
    """The names of the stages up to the chosen one.

    Raises:
        ValueError: for an unknown stage.
    """
    names = [str(name) for name in cfg.stages if cfg.stages[name] is not None]
    if cfg.stage != "all" and cfg.stage not in names:
        raise ValueError(f"stage={cfg.stage!r} is not known here; one of {', '.join([*names, 'all'])}")
    last = names[-1] if cfg.stage == "all" else cfg.stage
    return names[: names.index(last) + 1]


def stage_settings(
    cfg: DictConfig,
    node: Mapping[str, Any],
    own: Mapping[str, Any],
    earlier: Mapping[str, str],
    callbacks: list[Any],
) -> dict[str, Any]:
    """The settings of a stage's identity: all that can change the weights.

    Args:
        cfg: the composed config.
        node: of the stage, with its complete trainer node.
        own: the stage's own settings of the trainer.
        earlier: the identities of the earlier stages, by name.
        callbacks: those that can change the weights.
    """
    chosen = node["trainer"]
    counted = trainer.identity_arguments(chosen, own)
    if callbacks:  # they may act on what validation finds
        counted |= {name: chosen[name] for name in trainer.VALIDATION if name in chosen}
    node = {**node, "trainer": counted, **({"callbacks": callbacks} if callbacks else {})}
    references = {name: f"stage:{value}" for name, value in earlier.items()}
    settings = {**replace_stages(node, references), "seed": cfg.seed}
    for place in settings.pop("ignores", ()):
        settings = _without(settings, place.split("."))
    return settings


def active_callbacks(node: Any) -> list[Any]:
    """The callbacks that may change the weights or end the training: all but Lightning's passive ones.

    A callback of your own that only watches says so with a class attribute: `changes_weights = False`.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if isinstance(plain, Mapping):
        plain = [plain] if "_target_" in plain else list(plain.values())
    found = []
    for one in plain or ():
        target = one.get("_target_", "") if isinstance(one, Mapping) else ""
        home, _, name = str(target).rpartition(".")
        passive = home == LIGHTNING_CALLBACKS and name in PASSIVE_CALLBACKS
        if target and not passive and getattr(resolve_target(target), "changes_weights", True):
            found.append(one)
    return found


def stage_folder(cfg: DictConfig, name: str, identity_: str, *, last: bool, debug: bool = False) -> Path:
    """The folder of a stage's artefact; a debug run works in another one."""
    if cfg.run_dir and last and not debug:
        return Path(cfg.run_dir)
    return Path(cfg.runs_dir) / cfg.name / (DEBUG_FOLDER if debug else "") / f"{name}-{identity_}"


def replace_stages(value: Any, names: Mapping[str, str]) -> Any:
    """The node with each "stage:NAME[/rest]" replaced by `names[NAME]`[/rest].

    Raises:
        ValueError: for a name that is not an earlier stage.
    """
    if isinstance(value, Mapping):
        return {key: replace_stages(entry, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [replace_stages(entry, names) for entry in value]
    if not isinstance(value, str) or not value.startswith("stage:"):
        return value
    name, slash, rest = value.removeprefix("stage:").partition("/")
    if name not in names:
        raise ValueError(f"{value!r}: there is no earlier stage {name!r}; earlier stages: {', '.join(names) or 'none'}")
    return names[name] + slash + rest


def _node(cfg: DictConfig, name: str) -> dict[str, Any]:
    """A stage's node as plain values.

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
    """Dotted names of the settings without a value."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _unset(value, f"{place}.{key}" if place else str(key))
    elif node == "???":
        yield place


def _without(node: Mapping[str, Any], place: Sequence[str]) -> dict[str, Any]:
    """The node without the entry at a place, if there is one."""
    first, *rest = place
    inner = node.get(first)
    if rest and isinstance(inner, Mapping):
        return {**node, first: _without(inner, rest)}
    return {key: value for key, value in node.items() if key != first or rest}
