"""Callbacks that end a run as `kill -9`, Ctrl-C or a bad disk does; they need `trusted_packages=[tests]`."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch


class KillAt(L.Callback):
    """SIGKILL after an optimiser step, before that step's checkpoint.

    Args:
        step: after which.
    """

    changes_weights = False

    def __init__(self, *, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class StopAt(KillAt):
    """Ctrl-C after an optimiser step."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class Notes(L.Callback):
    """Which images each rank saw in which step: a line [step, keys] in `<folder>/<rank>.jsonl`.

    Args:
        folder: for the files.
    """

    changes_weights = False

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps([trainer.global_step + 1, list(batch.key)]) + "\n")


class Strike(KillAt):
    """What a machine does to a run, after an optimiser step.

    Args:
        step: after which.
        how: the name of one of the methods.
        place: a file, a folder or a disk, for those that need one.
    """

    def __init__(self, *, step: int, how: str, place: str = "") -> None:
        super().__init__(step=step)
        self.how, self.place = getattr(self, how), Path(place)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.how()

    def terminate(self) -> None:
        """As a cluster does: all processes of the job, those that read data too."""
        os.killpg(0, signal.SIGTERM)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to all processes of the job."""
        os.killpg(0, signal.SIGINT)

    def kill_worker(self) -> None:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        time.sleep(5)  # torch looks when the signal comes

    def lose_device(self) -> None:
        raise torch.AcceleratorError(
            "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other "
            "API call.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
        )

    def run_out_of_memory(self) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
        )

    def fill(self) -> None:
        fill(self.place)

    def close(self) -> None:
        read_only(self.place)

    def delete(self) -> None:
        """One file of a folder."""
        sorted(self.place.iterdir())[0].unlink()

    def hide(self) -> None:
        """A whole folder; `<folder>.hidden` is what it is called then."""
        self.place.rename(f"{self.place}.hidden")


def fill(disk: Path) -> None:
    """Leave no room on a disk."""
    with contextlib.suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 2**16)
    with contextlib.suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        while True:
            file.write(b"\0")


def read_only(folder: Path) -> None:
    """Let nothing be written below a folder: it is laid over itself, read-only. `umount` takes that away."""
    for words in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        subprocess.run(["mount", *words], check=True)
