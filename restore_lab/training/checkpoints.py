"""Training checkpoints: the last two of a run, written atomically, each with its hash.

A checkpoint is written next to its final path and then moved, so a killed process leaves a whole one or none.
(Lightning's writer builds it in memory and copies it from the system's folder of temporary files.) Failing disks and
incomplete copies can still damage one; `last_state` returns the newest checkpoint whose hash matches.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.free_space import require
from restore_lab.storage.hashes import hash_of
from restore_lab.storage.locks import first_rank
from restore_lab.system.faults import Termination, name_errors
from restore_lab.training.plan import STATE

if TYPE_CHECKING:
    import lightning as L

    from restore_lab.training.module import TrainingModule

log = logging.getLogger(__name__)
NUM_CHECKPOINTS = 2  # per run, while training
HASH_SUFFIX = ".sha256"
ADAM_MOMENTS = 2


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint as a whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(place.name + ".part")
        try:
            with name_errors(place), open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, place)
        except BaseException:  # on a full disk the next attempt needs the space
            part.unlink(missing_ok=True)
            raise


class Checkpoints(ModelCheckpoint):
    """Lightning's checkpoints every n steps and on termination, with hashes; only the last two are kept.

    Args:
        folder: the run's folder.
        every: steps between two checkpoints.
        pending_signal: the signal that ends the run after this step, None for none.
        last: also write one after the last step, from which the run can be extended.
    """

    def __init__(
        self, *, folder: Path, every: int, pending_signal: Callable[[], int | None] = lambda: None, last: bool = False
    ) -> None:
        super().__init__(dirpath=folder / STATE, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        self.pending_signal, self.last = pending_signal, last

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint if one is due.

        Raises:
            Termination: with the step, if a signal ends the run.
        """
        super().on_train_batch_end(trainer, *args, **kwargs)
        at_end, number = 0 < trainer.max_steps <= trainer.global_step, self.pending_signal()
        if self.last if at_end else number:
            self._save_now(trainer)
        if not number:
            return
        total = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        raise Termination(number, f" at step {trainer.global_step}{total}; the same command continues")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last checkpoint of a run that ends before its last step."""
        super().on_train_end(trainer, pl_module)
        if self.last:
            self._save_now(trainer)

    def _save_now(self, trainer: L.Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step:  # the same in all processes, which save together
            self._save_checkpoint(trainer, str(Path(self.dirpath or "") / f"step={trainer.global_step}.ckpt"))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        place = Path(filepath)
        if not trainer.is_global_zero:
            return
        if place.is_file():  # DeepSpeed's checkpoint is a folder and is not hashed
            write_bytes_atomic(place.with_name(place.name + HASH_SUFFIX), hash_of(place).encode())
        prune(place.parent, keep=NUM_CHECKPOINTS)


def prune(folder: Path, *, keep: int) -> None:
    """Delete all checkpoints in a folder but the newest `keep`."""
    for old in states(folder)[:-keep]:
        old.with_name(old.name + HASH_SUFFIX).unlink(missing_ok=True)
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def require_room(module: TrainingModule, folder: Path, *, average: bool) -> None:
    """Require free disk space for the weights and for the checkpoints that exist at the same time.

    Args:
        module: the training module; the size follows from its trainable parameters.
        folder: the run's folder; its existing checkpoints count as free.
        average: whether a checkpoint holds an average of the weights.

    Raises:
        ValueError: with the required and the free space.
    """
    weights = sum(p.numel() * p.element_size() for p in module.trainable().values())
    checkpoint = weights * (1 + ADAM_MOMENTS + average)
    existing = sum(file.stat().st_size for file in (folder / STATE).glob("*") if file.is_file())
    needed = max(0, checkpoint * (NUM_CHECKPOINTS + 1) + weights - existing)
    if first_rank():
        require(folder, needed=needed, what=f"the weights and {NUM_CHECKPOINTS + 1} checkpoints")


def last_state(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a run; None if it has none. Damaged ones are logged."""
    for state in reversed(states(folder / STATE)):
        reason = damage(state)
        if reason is None:
            return state
        log.warning("%s is damaged (%s); continuing from the one before it, or from the start", state, reason)
    return None


def states(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest step first."""
    return sorted(folder.glob("*.ckpt"), key=lambda path: (checkpoint_step(path), path.stat().st_mtime))


def damage(state: Path) -> str | None:
    """Why a checkpoint is damaged; None if it is not, or if it is a folder."""
    if state.is_dir():
        return None
    hash_file = state.with_name(state.name + HASH_SUFFIX)
    if hash_file.is_file():
        return None if hash_of(state) == hash_file.read_text().strip() else "its hash is another"
    try:  # written by an older version, or by a process that was killed before it wrote the hash
        with zipfile.ZipFile(state) as archive:
            bad = archive.testzip()
        return None if bad is None else f"{bad} in it does not have its checksum"
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return " ".join(str(error).split()) or type(error).__name__


def checkpoint_step(path: Path) -> int:
    """The step after which a checkpoint was written; -1 if its name has none."""
    match = re.search(r"step=(\d+)", path.name)
    return int(match[1]) if match else -1
