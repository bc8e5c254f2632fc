"""Runs the training stages of a config and leaves one artefact folder a stage; resumes what was interrupted.

All stages are planned and checked before the first begins (plan.py, preflight.py). A complete folder is used as it
is. Inside: `state/*.ckpt` (all that an exact resume, or `extend`, needs), `losses.jsonl`, the weights, `manifest.json`.
A debug run (trainer.fast_dev_run, overfit_batches, limit_*_batches) works below `debug/` and leaves nothing.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from restore_lab.config.build import build, build_nodes
from restore_lab.config.compose import OVERRIDES_KEY, command_overrides
from restore_lab.storage.artefact import Manifest, differences, is_complete, write_bytes_atomic
from restore_lab.storage.hashes import HASHES, hashes
from restore_lab.storage.locks import first_rank, lock
from restore_lab.storage.outputs import take_folder
from restore_lab.system.faults import Fault, describe_fault
from restore_lab.system.processes import end_with_first_rank, first_rank_id
from restore_lab.tracking import logger_note, track
from restore_lab.training.ending import ENDING_KEY, ending_of, epochs_to_steps
from restore_lab.training.extension import learning_rate_warning, plan_extension, require_longer
from restore_lab.training.plan import LOSSES, STATE, Stage, planned, replaced

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from restore_lab.training.module import TrainingModule

log = logging.getLogger(__name__)
log.addFilter(lambda record: record.levelno > logging.INFO or first_rank())  # of all ranks one says how it goes
CLAIM = "unfinished"  # the file with the identity of the run that is at work here
TRAINER = "trainer"  # in a manifest's extra: what ran


def fit(cfg: DictConfig) -> Path | None:
    """Train the chosen stages in order.

    Args:
        cfg: the composed config of `restore-lab train`.

    Returns:
        The artefact folder of the last stage; None for a debug run, which leaves none.

    Raises:
        ValueError: for an unknown stage, or anything that any of the stages would refuse.
    """
    end_with_first_rank()
    stages = plan(cfg)
    todo = [s for s in stages if s.debug or not is_complete(s.folder, identity=s.identity)]
    if todo:
        from restore_lab.training.preflight import check_stages

        _hush(cfg)
        check_stages(todo)
    made: dict[str, Path] = {}
    for stage in stages:
        if stage not in todo:
            log.info("stage %s is complete: %s%s", stage.name, stage.folder, logger_note(cfg))
        else:
            with lock(stage.folder):  # what another run makes meanwhile is found complete
                _make(cfg, stage, made)
        made[stage.name] = stage.folder
    if not stages[-1].debug:
        return made[stages[-1].name]
    if first_rank():
        for stage in stages:
            if stage.debug:  # an earlier stage may have been trained in earnest
                shutil.rmtree(stage.folder, ignore_errors=True)
        with suppress(OSError):  # another debug run may be at work there
            stages[-1].folder.parent.rmdir()
    log.info("a debug run (%s): no weights are kept", stages[-1].debug)
    return None


def plan(cfg: DictConfig) -> list[Stage]:
    """The stages in order: the config's own, or those of the run that it extends."""
    return planned(cfg) if cfg.extend is None else plan_extension(cfg)


def _make(cfg: DictConfig, stage: Stage, earlier: Mapping[str, Path]) -> None:
    """Make one stage's artefact, or find it made."""
    folder = stage.folder
    if stage.debug:
        log.info("stage %s, a debug run (%s): it leaves no artefact", stage.name, stage.debug)
    elif is_complete(folder, identity=stage.identity):
        log.info("stage %s is complete: %s", stage.name, folder)
        return
    elif is_complete(folder):
        why = differences(folder, stage.settings)
        raise ValueError(f"{folder} holds another run's result{why}; choose another run_dir, or delete it")
    else:
        take_folder(folder, setting="run_dir")
        _claim(folder, stage.identity)
    node = replaced(stage.node, {k: str(v) for k, v in earlier.items()})
    node["partial"] = str(stage.node.get("weights")).startswith("stage:")  # an earlier stage knows fewer parts
    page = f"debug-{stage.identity}" if stage.debug else stage.identity
    with track(cfg, identity=page, kind=stage.name, settings=stage.settings) as logger:
        ran = _train(cfg, node, folder, logger, extends=stage.extends, debug=bool(stage.debug))
    if stage.debug:
        return
    Manifest(
        identity=stage.identity,
        kind=stage.name,
        settings=stage.settings,
        parents=stage.parents,
        extra={OVERRIDES_KEY: command_overrides(), HASHES: hashes(folder), **ran},
    ).write(folder)
    _tidy(folder, keep=cfg.keep_state)
    (folder / CLAIM).unlink(missing_ok=True)
    log.info("stage %s: %s", stage.name, folder)


def _tidy(folder: Path, *, keep: bool) -> None:
    """Of a complete run's states the last is kept, or none; one of all ranks sees to it."""
    from restore_lab.training.checkpoints import prune

    if not first_rank():
        return
    if keep:
        prune(folder / STATE, keep=1)
    else:
        shutil.rmtree(folder / STATE, ignore_errors=True)


def _claim(folder: Path, identity_: str) -> None:
    """Say whose checkpoints these are, so that another run's are never continued by mistake.

    Raises:
        ValueError: if the folder holds an unfinished run with other settings.
    """
    claim = folder / CLAIM
    if claim.exists() and claim.read_text() != identity_:
        raise ValueError(f"{folder} holds an unfinished run with other settings; choose another run_dir, or delete it")
    write_bytes_atomic(claim, identity_.encode())


def _train(
    cfg: DictConfig,
    node: Mapping[str, Any],
    folder: Path,
    logger: Logger | None,
    *,
    extends: Path | None = None,
    debug: bool = False,
) -> dict[str, Any]:
    """Build the stage's objects, train from the last checkpoint if there is one, and write the result.

    Args:
        cfg: the composed config.
        node: the stage's, with the earlier stages' folders in place.
        folder: the run's.
        logger: where losses are shown.
        extends: a complete run from whose state this one starts.
        debug: write no state.

    Returns:
        What ran and how it ended, for the manifest.
    """
    import lightning as L
    import torch

    from restore_lab.methods.trainable import Trainable
    from restore_lab.methods.weights import weights_file
    from restore_lab.training.checkpoints import Checkpoints, checkpoint_step, last_state, require_room
    from restore_lab.training.ema import EMA
    from restore_lab.training.finite import FiniteLossCheck
    from restore_lab.training.history import History
    from restore_lab.training.module import TrainingModule
    from restore_lab.training.monitor import logger_callbacks
    from restore_lab.training.progress import StepBar
    from restore_lab.training.sharding import full_tensor, gather_weights
    from restore_lab.training.termination import TerminationHandler
    from restore_lab.training.trainer import fit_errors, trainer_facts, trainer_for

    folder.mkdir(parents=True, exist_ok=True)
    # Deterministic mode would otherwise also write NaN into every fresh tensor, a debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    module, data = build(node["module"]), build(node["datamodule"])
    if not isinstance(module, Trainable):
        raise ValueError(
            f"module: {type(module).__name__} is no Trainable (restore_lab.methods.trainable); give it a loss"
        )
    if node.get("weights"):
        module.load_weights(weights_file(node["weights"]), partial=node["partial"])
    training = TrainingModule(build(cfg.speed).apply(module), optimisation=build(node["optimisation"]))
    require_room(training, folder, average=bool(node.get("ema")))
    ema = EMA(decay=node["ema"]) if node.get("ema") else None
    ending = TerminationHandler()
    every: dict[str, Any] = {"folder": folder, "pending_signal": ending.pending_signal}
    checkpoints = None if debug else Checkpoints(every=cfg.checkpoint_every, last=cfg.keep_state, **every)
    finite = FiniteLossCheck(every=cfg.log_every, checkpoint_every=cfg.checkpoint_every, **every)
    history = History(file=folder / LOSSES, every=cfg.log_every)
    callbacks = [c for c in (ending, ema, checkpoints, finite, history) if c]
    callbacks += logger_callbacks(every=cfg.log_every, pictures=cfg.pictures) if logger else []
    callbacks += ([StepBar()] if cfg.progress else []) + build_nodes(cfg.callbacks, where="callbacks")
    settings = epochs_to_steps(node["trainer"], data)
    if not module.has_validation():
        settings["limit_val_batches"] = 0
    trainer = trainer_for(settings, folder=folder, average=ema is not None, callbacks=callbacks, logger=logger)
    state = None if debug else last_state(folder)
    if state is not None:
        log.info("resuming from %s", state)
    elif extends is not None:
        state = last_state(extends)
        done = checkpoint_step(state) if state is not None else 0
        require_longer(extends, steps=trainer.max_steps, done=done)
        log.info("extending %s from step %d", extends, done)
        if said := learning_rate_warning(node, steps=trainer.max_steps, done=done):
            log.warning("%s", said)
        if first_rank() and (extends / LOSSES).is_file():
            shutil.copyfile(extends / LOSSES, folder / LOSSES)
    with first_rank_id(), going_on(folder), fit_errors():
        trainer.fit(training, data, ckpt_path=state, weights_only=True)
    ended = ending_of(trainer, node["trainer"])
    if ended is None:
        raise KeyboardInterrupt(f"at step {trainer.global_step}; the same command continues")
    if ended.by != "max_steps":
        log.info("ended: %s", ended)
    gather_weights(training)
    average = {} if ema is None else {name: full_tensor(value).cpu() for name, value in ema.average.items()}
    with going_on(folder):
        if trainer.is_global_zero:
            _export(training, ema, average, folder)
        trainer.strategy.barrier()
    return {ENDING_KEY: ended.as_json(), TRAINER: trainer_facts(trainer)}


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Report a fault of the machine within the context with the step at which the same command continues.

    Raises:
        Fault: for a fault of the machine, such as a full disk.
        KeyboardInterrupt: for Ctrl-C between two steps.
    """
    from restore_lab.training.checkpoints import checkpoint_step, last_state

    try:
        yield
    except Exception as error:
        why = None if isinstance(error, ValueError) else describe_fault(error, where=folder)
        if why is None:
            raise
        state = last_state(folder)
        where = "begins again" if state is None else f"continues after step {checkpoint_step(state)}"
        raise Fault(f"{why}; the same command {where}") from error
    except SystemExit as stop:  # Lightning's way to end on Ctrl-C outside of a step
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        state = last_state(folder)
        where = "begins again" if state is None else f"continues after step {checkpoint_step(state)}"
        raise KeyboardInterrupt(f"between two steps; the same command {where}") from stop


def _export(training: TrainingModule, ema: Any, average: dict[str, Any], folder: Path) -> None:
    """Write the averaged weights if there is an average."""
    if ema is None:
        training.module.export(folder)
        return
    ema.average = average
    with ema.averaged_weights(training):
        training.module.export(folder)


def _hush(cfg: DictConfig) -> None:
    """Lightning's notes on hardware and its tips would bury what the run says; a frozen prior is in eval mode."""
    import warnings

    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    warnings.filterwarnings(
        "ignore", message="You're resuming from a checkpoint that ended before the epoch"
    )  # ours can
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")  # an extension's
    warnings.filterwarnings("ignore", message="You passed in a `val_dataloader` but have no `validation_step`")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # nothing to validate on
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.* is deprecated")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if cfg.trainer.enable_model_summary:
        logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)
