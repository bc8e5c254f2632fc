"""One job over several processes: distribution and merging of its parts. `devices=2`, torchrun, srun.

A parallel job has numbered parts, each of which writes a file when it is done; a part's content does not depend on the
number of processes. A process does every world-th unfinished part; the last one to finish finds all files and merges
them. There is no barrier, so a killed process loses only its unfinished part, and the same command continues with any
number of processes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Rank, world size and local rank, as torchrun and srun set them.
VARIABLES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
LAUNCHED_VARIABLE = "RESTORE_LAB_LAUNCHED"
FIRST_RANK_VARIABLE = "RESTORE_LAB_FIRST_RANK"  # process id of the rank that started the others


def rank_and_world() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) for a single process."""
    for rank, world, _ in VARIABLES:
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def own_parts(count: int, *, done: Callable[[int], bool]) -> list[int]:
    """The unfinished parts, out of `count`, of this process."""
    rank, world = rank_and_world()
    return [number for number in range(rank, count, world) if not done(number)]


@contextlib.contextmanager
def merge_lock(folder: Path) -> Iterator[None]:
    """A lock for steps that one process at a time does in a folder, such as merging all parts."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".one.lock"):
        yield


def device(name: str) -> str:
    """The device of a setting; "auto" gives each process of a machine its own GPU, or the CPU without GPUs."""
    import torch

    if name != "auto":
        check_device(name)
        return name
    if not torch.cuda.is_available():
        return "cpu"
    local = next((int(os.environ[v]) for _, world, v in VARIABLES if world in os.environ and v in os.environ), 0)
    return "cuda" if rank_and_world()[1] == 1 else f"cuda:{local % torch.cuda.device_count()}"


def check_device(name: str | None) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        ValueError: with the devices that exist.
    """
    if name in (None, "auto", "cpu"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(f"cuda:{n}" for n in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name not in there and not (name == "cuda" and count):
        raise ValueError(f"device={name}: not on this machine; there are: {', '.join(there)}; auto takes the best")


def is_launched_rank() -> bool:
    """Whether `launch_ranks` started this process; its caller then reports the result."""
    return os.environ.get(LAUNCHED_VARIABLE) is not None


def launch_ranks(devices: int, *more: str, quiet: bool = False) -> bool:
    """Run the current command once per device and wait for all.

    Returns False without running anything for one device, or if this process is a rank already.

    Args:
        devices: number of devices.
        more: overrides after those of the command line.
        quiet: discard the ranks' stdout.

    Raises:
        ValueError: if a rank fails; the others' results are kept.
    """
    if devices == 1 or rank_and_world()[1] > 1:
        return False
    command = [sys.executable, "-m", "restore_lab.cli.main", *sys.argv[1:], *more]
    ranks = [
        {"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": str(devices), LAUNCHED_VARIABLE: ""}
        for n in range(devices)
    ]
    here = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(path for path in (here, os.environ.get("PYTHONPATH", "")) if path)
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **one, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL if quiet else None,
            preexec_fn=_die_with_parent,
        )
        for one in ranks
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
def first_rank_id() -> Iterator[None]:
    """Context that passes this process's id to the ranks that Lightning starts, for `end_with_first_rank`."""
    os.environ[FIRST_RANK_VARIABLE] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[FIRST_RANK_VARIABLE]


def end_with_first_rank() -> None:
    """Let this process end with the rank that started it, so a killed rank 0 leaves no ranks waiting for it.

    Raises:
        SystemExit: if that rank has ended already.
    """
    first = os.environ.pop(FIRST_RANK_VARIABLE, None)
    if first is None:
        return
    _die_with_parent()
    if os.getppid() != int(first):
        raise SystemExit("the process that started this one is gone")


def _die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends (Linux only)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
