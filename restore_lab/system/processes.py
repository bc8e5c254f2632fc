"""One job over several processes: whose parts are whose, and who puts them together. `devices=2`, torchrun, srun.

A job that splits has numbered parts, each of which leaves a file when it is done; what a part holds never depends on
how many processes there are. A process does every world-th part that is not done; the last to finish finds all of them
there and puts them together. Nobody waits for anybody, so a process that was killed costs its unfinished part, and the
same command, with as many processes or fewer or more, continues.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Rank, number of processes, and place among those of one machine: as torchrun says it, and srun.
VARIABLES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
LAUNCHED = "RESTORE_LAB_LAUNCHED"
FIRST_RANK = "RESTORE_LAB_FIRST_RANK"  # the number of the process that started the other ranks


def place() -> tuple[int, int]:
    """(rank, world) of this process: (0, 1) for one that is alone."""
    for rank, world, _ in VARIABLES:
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def mine(count: int, *, done: Callable[[int], bool]) -> list[int]:
    """The numbers of the parts, of `count`, that this process has to do."""
    rank, world = place()
    return [number for number in range(rank, count, world) if not done(number)]


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """For what one process alone may do in a folder: the last that finds all parts there puts them together."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".one.lock"):
        yield


def device(name: str) -> str:
    """The device that a setting names; with "auto" each process of a machine has a GPU of its own, if there are any."""
    import torch

    if name != "auto":
        check_device(name)
        return name
    if not torch.cuda.is_available():
        return "cpu"
    local = next((int(os.environ[v]) for _, world, v in VARIABLES if world in os.environ and v in os.environ), 0)
    return "cuda" if place()[1] == 1 else f"cuda:{local % torch.cuda.device_count()}"


def check_device(name: str | None) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        ValueError: with those that are there.
    """
    if name in (None, "auto", "cpu"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(f"cuda:{n}" for n in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name not in there and not (name == "cuda" and count):
        raise ValueError(f"device={name}: not on this machine; there are: {', '.join(there)}; auto takes the best")


def watched() -> bool:
    """Whether this process was started by `launched`, whose caller says what came of it."""
    return os.environ.get(LAUNCHED) is not None


def launched(devices: int, *more: str, quiet: bool = False) -> bool:
    """Run the typed command once a device and wait for all; False, and nothing done, for one device or in a share.

    Args:
        devices: how many.
        more: overrides behind those that were typed.
        quiet: whether what they print is not shown.

    Raises:
        ValueError: if one of them fails; what the others did stays.
    """
    if devices < 1:
        raise ValueError(f"devices={devices}: at least one is needed")
    if devices == 1 or place()[1] > 1:
        return False
    command = [sys.executable, "-m", "restore_lab.cli.main", *sys.argv[1:], *more]
    told = [{"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": str(devices), LAUNCHED: ""} for n in range(devices)]
    here = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(path for path in (here, os.environ.get("PYTHONPATH", "")) if path)
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **one, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL if quiet else None,
            preexec_fn=_die_with_parent,
        )
        for one in told
    ]
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [number for number, code in enumerate(codes) if code]
    if failed:
        raise ValueError(
            f"process {failed[0]} of {devices} failed (status {codes[failed[0]]}); the same command continues"
        )
    return True


@contextlib.contextmanager
def starting_ranks() -> Iterator[None]:
    """Whatever process starts here can tie itself to this one (`tied`): Lightning's first rank starts the others."""
    os.environ[FIRST_RANK] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[FIRST_RANK]


def tied() -> None:
    """End with the first rank, if that started this process: were it killed, the others would wait for it for long.

    Raises:
        SystemExit: if it is gone already.
    """
    first = os.environ.pop(FIRST_RANK, None)
    if first is None:
        return
    _die_with_parent()
    if os.getppid() != int(first):
        raise SystemExit("the process that started this one is gone")


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, however it does; elsewhere nothing does."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
