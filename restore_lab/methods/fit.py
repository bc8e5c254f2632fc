"""Runs the training stages of a config and leaves one artefact folder a stage; resumes what was interrupted.

A stage is a node of `stages`: its module, its data module, its trainer settings. A string "stage:NAME" inside it stands
for the folder of an earlier stage's artefact. Folders are `<runs_dir>/<name>/<stage>-<identity>`; a complete one is
used as it is. What a stage `ignores` (the sampler, say) changes nothing of what it trains, nor its identity. Inside:
`state/*.ckpt` (all that an exact resume needs), `losses.jsonl`, the weights, `manifest.json`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from restore_lab.config.build import build
from restore_lab.config.composing import MADE_BY, typed
from restore_lab.machine.faults import Fault, told
from restore_lab.machine.shares import starting_ranks, tied
from restore_lab.machine.xla import check_trainer
from restore_lab.storage.artefacts import Manifest, complete, identity, write_bytes_atomic
from restore_lab.storage.hashes import HASHES, hashes
from restore_lab.storage.locks import first_rank, locked
from restore_lab.tracking import tracked

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)
log.addFilter(lambda record: record.levelno > logging.INFO or first_rank())  # of all ranks one says how it goes
STATE = "state"
LOSSES = "losses.jsonl"
CLAIM = "unfinished"  # the file with the identity of the run that is at work here


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage's artefact, known before it is made.

    Attributes:
        name: of the stage.
        identity: of the artefact.
        folder: where it is, or will be.
        settings: what its identity is made of, beside `parents`.
        parents: identities of the earlier stages.
        node: what to build; each "stage:NAME" in it stands for an earlier folder.
    """

    name: str
    identity: str
    folder: Path
    settings: Mapping[str, Any]
    parents: tuple[str, ...]
    node: Mapping[str, Any]


def fit(cfg: DictConfig) -> Path:
    """Train the chosen stages in order.

    Args:
        cfg: the composed config of `restore-lab train`.

    Returns:
        The artefact folder of the last stage.

    Raises:
        ValueError: for an unknown stage.
    """
    tied()
    made: dict[str, Path] = {}
    for stage in planned(cfg):
        if not complete(stage.folder, identity=stage.identity):
            with locked(stage.folder):  # what another run makes meanwhile is found complete
                _make(cfg, stage, made)
        else:
            log.info("stage %s is complete: %s", stage.name, stage.folder)
        made[stage.name] = stage.folder
    return list(made.values())[-1]


def planned(cfg: DictConfig) -> list[Stage]:
    """The chosen stages in order, with the artefacts that they make; nothing is built or run.

    Raises:
        ValueError: for an unknown stage, or a setting without a value.
    """
    names = [name for name in cfg.stages if cfg.stages[name] is not None]
    if cfg.stage != "all" and cfg.stage not in names:
        raise ValueError(f"stage={cfg.stage!r} is not known here; one of {', '.join([*names, 'all'])}")
    last = names[-1] if cfg.stage == "all" else cfg.stage
    stages: list[Stage] = []
    for name in names[: names.index(last) + 1]:
        try:
            node: Any = OmegaConf.to_container(cfg.stages[name], resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            plain: Any = OmegaConf.to_container(cfg, resolve=False)
            unset = list(_unset({key: node for key, node in plain.items() if key != "hydra"}))
            raise ValueError(f"not set: {', '.join(unset)}; give {unset[0]}=...") from error
        if cfg.trainer.max_steps is not None:
            node["trainer"]["max_steps"] = cfg.trainer.max_steps
        earlier = {stage.name: stage.identity for stage in stages}
        settings = {**_replaced(node, {k: f"stage:{v}" for k, v in earlier.items()}), "seed": cfg.seed}
        for place in settings.pop("ignores", ()):
            settings = _without(settings, place.split("."))
        parents = tuple(earlier.values())
        identity_ = identity(settings, parents)
        own = cfg.run_dir if name == last else None
        folder = Path(own) if own else Path(cfg.runs_dir) / cfg.name / f"{name}-{identity_}"
        stages.append(
            Stage(name=name, identity=identity_, folder=folder, settings=settings, parents=parents, node=node)
        )
    return stages


def _make(cfg: DictConfig, stage: Stage, earlier: Mapping[str, Path]) -> None:
    """Make one stage's artefact, or find it made."""
    folder = stage.folder
    if complete(folder, identity=stage.identity):
        log.info("stage %s is complete: %s", stage.name, folder)
        return
    if complete(folder):
        raise ValueError(f"{folder} holds another run's result; choose another run_dir, or delete it")
    _claim(folder, stage.identity)
    node = _replaced(stage.node, {k: str(v) for k, v in earlier.items()})
    node["partial"] = str(stage.node.get("weights")).startswith("stage:")  # an earlier stage knows fewer parts
    with tracked(cfg, identity=stage.identity, kind=stage.name, settings=stage.settings) as logger:
        _train(cfg, node, folder, logger)
    Manifest(
        identity=stage.identity,
        kind=stage.name,
        settings=stage.settings,
        parents=stage.parents,
        extra={MADE_BY: typed(), HASHES: hashes(folder)},
    ).write(folder)
    shutil.rmtree(folder / STATE, ignore_errors=True)
    (folder / CLAIM).unlink(missing_ok=True)
    log.info("stage %s: %s", stage.name, folder)


def _claim(folder: Path, identity_: str) -> None:
    """Say whose checkpoints these are, so that another run's are never continued by mistake.

    Raises:
        ValueError: if the folder holds an unfinished run with other settings.
    """
    claim = folder / CLAIM
    if claim.exists() and claim.read_text() != identity_:
        raise ValueError(f"{folder} holds an unfinished run with other settings; choose another run_dir, or delete it")
    write_bytes_atomic(claim, identity_.encode())


def _train(cfg: DictConfig, node: Mapping[str, Any], folder: Path, logger: Logger | None) -> None:
    """Build the stage's objects, train from the last checkpoint if there is one, and write the result."""
    import lightning as L
    import torch
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from restore_lab.methods.ema import EMA
    from restore_lab.methods.finite import Finite
    from restore_lab.methods.half import with_precision
    from restore_lab.methods.history import History
    from restore_lab.methods.keeping import Checkpoints, Moved, last_state, room_for
    from restore_lab.methods.progress import StepBar
    from restore_lab.methods.sharding import gather, whole
    from restore_lab.methods.shown import page_callbacks
    from restore_lab.methods.terminating import Terminating
    from restore_lab.methods.weights import weights_file

    check_trainer({**cfg.trainer, **node["trainer"]})
    folder.mkdir(parents=True, exist_ok=True)
    # Deterministic mode would otherwise also write NaN into every fresh tensor, a debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    module, data = build(node["module"]), build(node["datamodule"])
    if node.get("weights"):
        module.load_weights(weights_file(node["weights"]), partial=node["partial"])
    module = build(cfg.speed).settle(module)
    room_for(module, folder, average=bool(node.get("ema")))
    ema = EMA(decay=node["ema"]) if node.get("ema") else None
    plugins = [] if cfg.trainer.accelerator == "tpu" else [Moved()]  # XLA's strategy takes its own writer alone
    ending = Terminating()
    checkpoints = Checkpoints(folder=folder, every=cfg.checkpoint_every, terminated=ending.now)
    finite = Finite(folder=folder, every=cfg.log_every, checkpoint_every=cfg.checkpoint_every, terminated=ending.now)
    history = History(file=folder / LOSSES, every=cfg.log_every)
    callbacks = [c for c in (ending, ema, checkpoints, finite, history) if c]
    callbacks += page_callbacks(every=cfg.log_every, pictures=cfg.pictures) if logger else []
    callbacks += ([StepBar()] if cfg.progress else []) + (build(cfg.callbacks) or [])
    _hush()
    try:
        trainer = build(
            cfg.trainer,
            callbacks=callbacks,
            logger=logger or False,
            default_root_dir=str(folder),
            **with_precision(node["trainer"], average=ema is not None, plugins=plugins),
        )
    except MisconfigurationException as error:  # devices that are not there, a strategy that is not installed
        raise ValueError(f"trainer: {error}") from error
    state = last_state(folder)
    if state is not None:
        log.info("resuming from %s", state)
    with starting_ranks(), going_on(folder):
        trainer.fit(module, data, ckpt_path=state, weights_only=True)
    if trainer.interrupted or trainer.global_step < trainer.max_steps:
        raise KeyboardInterrupt(f"stopped at step {trainer.global_step}; the same command continues")
    gather(module)
    average = {} if ema is None else {name: whole(value).cpu() for name, value in ema.average.items()}
    with going_on(folder):
        if trainer.is_global_zero:
            _export(module, ema, average, folder)
        trainer.strategy.barrier()


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Within the context what the machine does to a training is told with the step at which the same command continues.

    Raises:
        Fault: so; a ValueError says itself what is to be done.
    """
    from restore_lab.methods.keeping import last_state, step_of

    try:
        yield
    except Exception as error:
        why = None if isinstance(error, ValueError) else told(error, where=folder)
        if why is None:
            raise
        state = last_state(folder)
        where = "begins again" if state is None else f"continues behind step {step_of(state)}"
        raise Fault(f"{why}; the same command {where}") from error


def _export(module: Any, ema: Any, average: dict[str, Any], folder: Path) -> None:
    """Write the averaged weights if there is an average."""
    if ema is None:
        module.export(folder)
        return
    ema.average = average
    with ema.applied(module):
        module.export(folder)


def _hush() -> None:
    """Lightning's notes on hardware and its tips would bury what the run says; a frozen prior is in eval mode."""
    import warnings

    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    warnings.filterwarnings(
        "ignore", message="You're resuming from a checkpoint that ended before the epoch"
    )  # ours can
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="You passed in a `val_dataloader` but have no `validation_step`")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # nothing to validate on
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.* is deprecated")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


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


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    """The node with each "stage:NAME[/rest]" replaced by what NAME stands for.

    Raises:
        ValueError: for a stage that has not been made.
    """
    if isinstance(value, Mapping):
        return {key: _replaced(entry, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [_replaced(entry, names) for entry in value]
    if not isinstance(value, str) or not value.startswith("stage:"):
        return value
    name, slash, rest = value.removeprefix("stage:").partition("/")
    if name not in names:
        raise ValueError(f"{value!r}: there is no earlier stage {name!r}; earlier stages: {', '.join(names) or 'none'}")
    return names[name] + slash + rest
