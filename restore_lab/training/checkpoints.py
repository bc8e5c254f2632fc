"""Checkpoints of a training that can be trusted: the last two, each with its hash, so that a damaged one is found.

A kill leaves a whole checkpoint or none: each is written beside its place and moved there. (Lightning's own writer
builds it in memory, then among the system's temporary files, from where it may be copied.) A bad copy or a bad disk may
still leave half of one. `last_state` finds the newest that is what was written.
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
KEPT = 2
ENDING = ".sha256"
MOMENTS = 2  # AdamW's


class Moved(TorchCheckpointIO):
    """Writes a checkpoint whole, or not at all."""

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
        except BaseException:  # on a full disk a part would keep the room that the next attempt needs
            part.unlink(missing_ok=True)
            raise


class Checkpoints(ModelCheckpoint):
    """Lightning's, every n steps, and where the run is terminated; beside each its hash, and no more than the last two.

    Args:
        folder: the run's.
        every: steps.
        terminated: the signal that ends the run after this step; null for none.
        last: whether one is written at the end too, so that the run can be trained further.
    """

    def __init__(
        self, *, folder: Path, every: int, terminated: Callable[[], int | None] = lambda: None, last: bool = False
    ) -> None:
        super().__init__(dirpath=folder / STATE, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        self.terminated, self.last = terminated, last

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint if it is time.

        Raises:
            Terminated: with the step, if the run is to end.
        """
        super().on_train_batch_end(trainer, *args, **kwargs)
        at_end, number = 0 < trainer.max_steps <= trainer.global_step, self.terminated()
        if self.last if at_end else number:
            self._save_now(trainer)
        if not number:
            return
        of = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        raise Termination(number, f" at step {trainer.global_step}{of}; the same command continues")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last one of a run that ended before its last step."""
        super().on_train_end(trainer, pl_module)
        if self.last:
            self._save_now(trainer)

    def _save_now(self, trainer: L.Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step:  # alike in all processes, which save together
            self._save_checkpoint(trainer, str(Path(self.dirpath or "") / f"step={trainer.global_step}.ckpt"))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        place = Path(filepath)
        if not trainer.is_global_zero:
            return
        if place.is_file():  # DeepSpeed's is a folder, which checks itself
            write_bytes_atomic(place.with_name(place.name + ENDING), hash_of(place).encode())
        prune(place.parent, keep=KEPT)


def prune(folder: Path, *, keep: int) -> None:
    """Delete the checkpoints in a folder, but for the newest."""
    for old in states(folder)[:-keep]:
        old.with_name(old.name + ENDING).unlink(missing_ok=True)
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def room_for(module: TrainingModule, folder: Path, *, average: bool) -> None:
    """See that there is room for the weights and for as many checkpoints as are there at once.

    Raises:
        ValueError: with what is needed and what is free.
    """
    weights = sum(p.numel() * p.element_size() for p in module.trainable().values())
    checkpoint = weights * (1 + MOMENTS + average)
    there = sum(file.stat().st_size for file in (folder / STATE).glob("*") if file.is_file())
    needed = max(0, checkpoint * (KEPT + 1) + weights - there)
    if first_rank():
        require(folder, needed=needed, what=f"the weights and {KEPT + 1} checkpoints")


def last_state(folder: Path) -> Path | None:
    """The newest checkpoint of a run that is whole; None if it has none. Says which ones are not."""
    for state in reversed(states(folder / STATE)):
        wrong = damage(state)
        if wrong is None:
            return state
        log.warning("%s is damaged (%s); continuing from the one before it, or from the start", state, wrong)
    return None


def states(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest step first."""
    return sorted(folder.glob("*.ckpt"), key=lambda path: (step_of(path), path.stat().st_mtime))


def damage(state: Path) -> str | None:
    """Why a checkpoint cannot be what was written; None if it is, or is a folder."""
    if state.is_dir():
        return None
    noted = state.with_name(state.name + ENDING)
    if noted.is_file():
        return None if hash_of(state) == noted.read_text().strip() else "its hash is another"
    try:  # written by an older version, or killed before the hash was
        with zipfile.ZipFile(state) as archive:
            bad = archive.testzip()
        return None if bad is None else f"{bad} in it does not have its checksum"
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return " ".join(str(error).split()) or type(error).__name__


def step_of(path: Path) -> int:
    """The step behind which a checkpoint was written; -1 where its name says none."""
    match: Any = re.search(r"step=(\d+)", path.name)
    return int(match[1]) if match else -1
