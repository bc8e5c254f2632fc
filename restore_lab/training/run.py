"""Runs the training stages of a config; each leaves one artefact. Resumes what was interrupted.

All stages are planned and checked before the first begins (plan.py, preflight.py). A complete folder is used as it
is. A folder has `state/*.ckpt` (what an exact resume or `extend` needs), `losses.jsonl`, the weights, `manifest.json`.
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
from restore_lab.storage.artefact import Manifest, is_complete
from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.hashes import HASHES, hashes
from restore_lab.storage.locks import first_rank, lock
from restore_lab.storage.outputs import take_folder
from restore_lab.system.faults import Fault, describe_fault
from restore_lab.system.processes import end_with_first_rank, first_rank_id
from restore_lab.tracking import logger_note, track
from restore_lab.training.ending import ENDING_KEY, ending_of, epochs_to_steps
from restore_lab.training.extension import learning_rate_warning, plan_extension, require_longer
from restore_lab.training.plan import LOSSES, STATE, TrainingStage, plan_stages, replace_stages

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers import Logger

    from restore_lab.training.ema import EMA
    from restore_lab.training.module import TrainingModule

log = logging.getLogger(__name__)
log.addFilter(lambda record: record.levelno > logging.INFO or first_rank())  # only one rank logs progress
CLAIM = "unfinished"  # file with the identity of the run that works in a folder
TRAINER = "trainer"  # in a manifest's extra: facts of the trainer


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
    stages = plan_training(cfg)
    todo = [stage for stage in stages if stage.debug or not stage.is_complete()]
    if todo:
        from restore_lab.training.preflight import check_stages

        _silence_lightning(cfg)
        check_stages(todo)
    folders: dict[str, Path] = {}
    for stage in stages:
        if stage not in todo:
            log.info("stage %s is complete: %s%s", stage.kind, stage.folder, logger_note(cfg))
        else:
            with lock(stage.folder):  # another run may complete the stage meanwhile
                _make(cfg, stage, folders)
        folders[stage.kind] = stage.folder
    if not stages[-1].debug:
        return stages[-1].folder
    if first_rank():
        for stage in stages:
            if stage.debug:  # an earlier stage may have been trained in earnest
                shutil.rmtree(stage.folder, ignore_errors=True)
        with suppress(OSError):  # another debug run may work there
            stages[-1].folder.parent.rmdir()
    log.info("a debug run (%s): no weights are kept", stages[-1].debug)
    return None


def plan_training(cfg: DictConfig) -> list[TrainingStage]:
    """The stages in order: the config's own, or those of the run that it extends."""
    return plan_stages(cfg) if cfg.extend is None else plan_extension(cfg)


def _make(cfg: DictConfig, stage: TrainingStage, earlier: Mapping[str, Path]) -> None:
    """Make one stage's artefact unless it is complete; `earlier` are the folders of earlier stages by name."""
    folder = stage.folder
    if stage.debug:
        log.info("stage %s, a debug run (%s): it leaves no artefact", stage.kind, stage.debug)
    elif stage.is_complete():
        log.info("stage %s is complete: %s", stage.kind, folder)
        return
    elif is_complete(folder):
        why = Manifest.read(folder).changes(stage.settings)
        raise ValueError(f"{folder} holds another run's result{why}; choose another run_dir, or delete it")
    else:
        take_folder(folder, setting="run_dir")
        _claim(folder, stage.identity)
    node = replace_stages(stage.node, {name: str(place) for name, place in earlier.items()})
    node["partial"] = str(stage.node.get("weights")).startswith("stage:")  # an earlier stage has fewer parts
    page = f"debug-{stage.identity}" if stage.debug else stage.identity
    with track(cfg, identity=page, kind=stage.kind, settings=stage.settings) as logger:
        facts = _train(cfg, node, folder, logger, extends=stage.extends, debug=bool(stage.debug))
    if stage.debug:
        return
    stage.finish(**{OVERRIDES_KEY: command_overrides(), HASHES: hashes(folder), **facts})
    _tidy(folder, keep=cfg.keep_state)
    (folder / CLAIM).unlink(missing_ok=True)
    log.info("stage %s: %s", stage.kind, folder)


def _tidy(folder: Path, *, keep: bool) -> None:
    """Delete a complete run's states, but for the last with `keep`; only one rank does."""
    from restore_lab.training.checkpoints import prune

    if not first_rank():
        return
    if keep:
        prune(folder / STATE, keep=1)
    else:
        shutil.rmtree(folder / STATE, ignore_errors=True)


def _claim(folder: Path, identity: str) -> None:
    """Mark the folder with the run's identity, so that another run's checkpoints are never continued by mistake.

    Raises:
        ValueError: if the folder holds an unfinished run with other settings.
    """
    claim = folder / CLAIM
    if claim.exists() and claim.read_text() != identity:
        raise ValueError(f"{folder} holds an unfinished run with other settings; choose another run_dir, or delete it")
    write_bytes_atomic(claim, identity.encode())


def _train(
    cfg: DictConfig,
    node: Mapping[str, Any],
    folder: Path,
    logger: Logger | None,
    *,
    extends: Path | None = None,
    debug: bool = False,
) -> dict[str, Any]:
    """Train a stage from its last checkpoint, if there is one, and write the weights.

    Args:
        cfg: the composed config.
        node: of the stage, with the earlier stages' folders in place.
        folder: of the run.
        logger: for losses and images.
        extends: a complete run from whose state this one starts.
        debug: write no state.

    Returns:
        For the manifest: facts of the trainer, and how the training ended.
    """
    import lightning as L
    import torch

    from restore_lab.training.checkpoints import require_room
    from restore_lab.training.ema import EMA
    from restore_lab.training.trainer import fit_errors, trainer_facts, trainer_for

    folder.mkdir(parents=True, exist_ok=True)
    # Deterministic mode would also write NaN into every fresh tensor, a debugging aid that costs time.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    training, data = _build(cfg, node)
    ema = EMA(decay=node["ema"]) if node.get("ema") else None
    require_room(training, folder, average=ema is not None)
    settings = epochs_to_steps(node["trainer"], data)
    if not training.module.has_validation():
        settings["limit_val_batches"] = 0
    trainer = trainer_for(
        settings,
        folder=folder,
        average=ema is not None,
        callbacks=_callbacks(cfg, folder, ema, debug=debug, pages=logger is not None),
        logger=logger,
    )
    state = None if debug else _find_state(trainer, node, folder, extends)
    with first_rank_id(), explain_faults(folder), fit_errors():
        trainer.fit(training, data, ckpt_path=state, weights_only=True)
    ending = ending_of(trainer, node["trainer"])
    if ending is None:
        raise KeyboardInterrupt(f"at step {trainer.global_step}; the same command continues")
    if ending.by != "max_steps":
        log.info("ended: %s", ending)
    _export(trainer, training, ema, folder)
    return {ENDING_KEY: ending.as_json(), TRAINER: trainer_facts(trainer)}


def _build(cfg: DictConfig, node: Mapping[str, Any]) -> tuple[TrainingModule, L.LightningDataModule]:
    """The module of a stage, with the weights that it starts from, and its data module.

    Raises:
        ValueError: for a module that cannot be trained.
    """
    from restore_lab.methods.trainable import Trainable
    from restore_lab.methods.weights import weights_file
    from restore_lab.training.module import TrainingModule

    module, data = build(node["module"]), build(node["datamodule"])
    if not isinstance(module, Trainable):
        raise ValueError(
            f"module: {type(module).__name__} is no Trainable (restore_lab.methods.trainable); give it a loss"
        )
    if node.get("weights"):
        module.load_weights(weights_file(node["weights"]), partial=node["partial"])
    return TrainingModule(build(cfg.speed).apply(module), optimisation=build(node["optimisation"])), data


def _callbacks(cfg: DictConfig, folder: Path, ema: EMA | None, *, debug: bool, pages: bool) -> list[L.Callback]:
    """The callbacks of a stage, the config's own last.

    Args:
        cfg: the composed config.
        folder: of the run.
        ema: the average of the weights.
        debug: write no state.
        pages: show losses and images on the logger's page.
    """
    from restore_lab.training.checkpoints import Checkpoints
    from restore_lab.training.finite import FiniteLossCheck
    from restore_lab.training.history import History
    from restore_lab.training.monitor import logger_callbacks
    from restore_lab.training.progress import StepBar
    from restore_lab.training.termination import TerminationHandler

    ending = TerminationHandler()
    common: dict[str, Any] = {"folder": folder, "pending_signal": ending.pending_signal}
    checkpoints = None if debug else Checkpoints(every=cfg.checkpoint_every, last=cfg.keep_state, **common)
    finite = FiniteLossCheck(every=cfg.log_every, checkpoint_every=cfg.checkpoint_every, **common)
    history = History(file=folder / LOSSES, every=cfg.log_every)
    callbacks = [c for c in (ending, ema, checkpoints, finite, history) if c]
    callbacks += logger_callbacks(every=cfg.log_every, pictures=cfg.pictures) if pages else []
    return callbacks + ([StepBar()] if cfg.progress else []) + build_nodes(cfg.callbacks, where="callbacks")


def _find_state(trainer: L.Trainer, node: Mapping[str, Any], folder: Path, extends: Path | None) -> Path | None:
    """The state to start from: the run's last, else that of the run that it extends, whose losses are copied."""
    from restore_lab.training.checkpoints import checkpoint_step, last_state

    state = last_state(folder)
    if state is not None:
        log.info("resuming from %s", state)
        return state
    if extends is None:
        return None
    state = last_state(extends)
    done = checkpoint_step(state) if state is not None else 0
    require_longer(extends, steps=trainer.max_steps, done=done)
    log.info("extending %s from step %d", extends, done)
    if warning := learning_rate_warning(node, steps=trainer.max_steps, done=done):
        log.warning("%s", warning)
    if first_rank() and (extends / LOSSES).is_file():
        shutil.copyfile(extends / LOSSES, folder / LOSSES)
    return state


@contextmanager
def explain_faults(folder: Path) -> Iterator[None]:
    """Context that adds to a fault of the machine the step from which the same command continues.

    Raises:
        Fault: for a fault of the machine, such as a full disk.
        KeyboardInterrupt: for Ctrl-C between two steps.
    """
    try:
        yield
    except Exception as error:
        why = None if isinstance(error, ValueError) else describe_fault(error, where=folder)
        if why is None:
            raise
        raise Fault(f"{why}; the same command {_continuation(folder)}") from error
    except SystemExit as stop:  # Lightning's way to end on Ctrl-C outside of a step
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(f"between two steps; the same command {_continuation(folder)}") from stop


def _continuation(folder: Path) -> str:
    """What the same command does next, for messages."""
    from restore_lab.training.checkpoints import checkpoint_step, last_state

    state = last_state(folder)
    return "begins again" if state is None else f"continues after step {checkpoint_step(state)}"


def _export(trainer: L.Trainer, training: TrainingModule, ema: EMA | None, folder: Path) -> None:
    """Write the weights in one rank, averaged if there is an average."""
    from restore_lab.training.sharding import full_tensor, gather_weights

    gather_weights(training)
    average = {} if ema is None else {name: full_tensor(value).cpu() for name, value in ema.average.items()}
    with explain_faults(folder):
        if trainer.is_global_zero:
            if ema is None:
                training.module.export(folder)
            else:
                ema.average = average
                with ema.averaged_weights(training):
                    training.module.export(folder)
        trainer.strategy.barrier()


def _silence_lightning(cfg: DictConfig) -> None:
    """Hide Lightning's notes on hardware and its tips, which would bury the run's own messages."""
    import warnings

    for message in (
        "Found .* in eval mode at the start of training",  # a frozen prior is
        "You're resuming from a checkpoint that ended before the epoch",  # our data module can
        "Checkpoint directory .* exists and is not empty",
        "The dirpath has changed from",  # an extension's
        "You passed in a `val_dataloader` but have no `validation_step`",
        "Total length of `list` across ranks is zero",  # there is nothing to validate on
        ".*isinstance.treespec, LeafSpec.* is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if cfg.trainer.enable_model_summary:
        logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)
