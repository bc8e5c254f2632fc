"""Jobs: an artefact, the command that makes it, and how that command runs.

A job runs in its own process group under a supervisor (supervisor.py), so none of its processes outlives the process
that waits for it, nor the command that owns all jobs, whatever launcher is in between. The command itself locks its
artefact (restore_lab.storage.locks), so two tables never make one artefact twice. For each finished job
`<store>/jobs/<identity>.json` holds time, memory and disk, `<identity>.log` its output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restore_lab.storage.artefact import SCORES, Artefact
from restore_lab.storage.atomic import write_json_atomic
from restore_lab.storage.foreign import json_of
from restore_lab.storage.locks import first_rank
from restore_lab.storage.paths import PACKAGE

COMMAND = (sys.executable, "-m", "restore_lab.cli.main")
OWNER_VARIABLE = "RESTORE_LAB_OWNER"  # host and process id of the command that owns all jobs; workers inherit it


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that makes one artefact.

    Attributes:
        artefact: what it makes.
        words: the command line after `restore-lab`.
        needs: identities of the artefacts that must be complete before.
        like: key of jobs with about the same cost per step, for estimates.
        steps: optimiser steps, or sampling steps per image.
    """

    artefact: Artefact
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    like: str = ""
    steps: int = 0

    def as_json(self) -> dict[str, Any]:
        """The job without its artefact's settings."""
        made = {"identity": self.artefact.identity, "kind": self.artefact.kind, "folder": str(self.artefact.folder)}
        return {**made, "words": self.words, "needs": self.needs, "like": self.like, "steps": self.steps}


class JobFailed(ValueError):
    """A job's command failed; the message has the last line of its output and the path of its log."""


def write_job(job: Job, store: Path) -> None:
    """Write a job to the store, where a task on any machine reads it."""
    write_json_atomic(store / "jobs" / f"{job.artefact.identity}.job.json", job.as_json())


def read_job(identity: str, store: Path) -> Job:
    """A job that `write_job` wrote.

    Raises:
        FileNotFoundError: if there is none.
    """
    from restore_lab.evaluation.plan import Scores

    found = json_of(store / "jobs" / f"{identity}.job.json")
    made = {"identity": found["identity"], "folder": Path(found["folder"])}
    return Job(
        artefact=Scores(**made) if found["kind"] == SCORES else Artefact(kind=found["kind"], **made),
        words=tuple(found["words"]),
        needs=tuple(found["needs"]),
        like=found["like"],
        steps=found["steps"],
    )


def take_ownership() -> None:
    """Make this process the owner of all jobs that it or a launcher's workers start from now on."""
    os.environ[OWNER_VARIABLE] = f"{socket.gethostname()} {os.getpid()}"


def run_job(job: Job, store: Path, *, again: bool = False) -> None:
    """Make the artefact unless it exists, and wait for it; the job ends when its owner does.

    Where a launcher starts several tasks per job, one per rank (SLURM), a training runs in each of them and any other
    command in the first only; the first reports the result.

    Args:
        job: the job.
        store: folder of logs and facts.
        again: run the command even if the artefact exists.

    Raises:
        JobFailed: if the command fails.
    """
    artefact = job.artefact
    if (artefact.is_complete() and not again) or not (artefact.has_weights or first_rank()):
        return
    folder = store / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    facts, log = folder / f"{artefact.identity}.json", folder / f"{artefact.identity}.log"
    facts.unlink(missing_ok=True)
    read_end, write_end = os.pipe()
    supervisor = [sys.executable, "-m", "restore_lab.launch.supervisor", str(read_end), str(facts), str(log)]
    process = subprocess.Popen(
        [*supervisor, *COMMAND, *job.words], start_new_session=True, pass_fds=(read_end,), env=_environment()
    )
    os.close(read_end)
    try:
        while _owned():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                break
    finally:
        with contextlib.suppress(ProcessLookupError):  # the supervisor is dead already
            os.killpg(process.pid, signal.SIGKILL)
        os.close(write_end)
    if not _owned():
        os._exit(1)  # the owner is gone, and a launcher's worker would wait for the next job
    found = _facts(facts)
    if found is not None:
        write_json_atomic(facts, {**job.as_json(), **found, "bytes": _size(artefact.folder)})
    failed = not artefact.is_complete() or (again and (found is None or found["rc"]))
    if failed and first_rank():
        status = "it was killed" if found is None else f"exit status {found['rc']}"
        raise JobFailed(f"{artefact}: {_last_line(log)} ({status}; {log})")


def finished_facts(store: Path) -> list[Mapping[str, Any]]:
    """The facts of every finished job that succeeded."""
    found = [_facts(file) for file in sorted((store / "jobs").glob("*.json"))]
    return [facts for facts in found if facts is not None and facts.get("rc") == 0 and "like" in facts]


def read_facts(job: Job) -> Mapping[str, Any] | None:
    """The facts of one finished job, stored next to its artefact; None if no job of a table made it."""
    return _facts(job.artefact.folder.parent / "jobs" / f"{job.artefact.identity}.json")


def config_folders() -> list[Path]:
    """The config folders of the running Hydra: the package's, then the user's."""
    from hydra.core.hydra_config import HydraConfig

    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file" and source.path]


def config_flags() -> list[str]:
    """The flags that pass the user's config folder on to another command."""
    return [f"--config-dir={folder.resolve()}" for folder in config_folders()[1:]]


def _environment() -> dict[str, str]:
    """This process's environment without the variables of ranks, with this package on PYTHONPATH."""
    ranks = {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK", "SLURM_STEP_NUM_TASKS"}
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    paths = [str(PACKAGE.parent), *kept.get("PYTHONPATH", "").split(os.pathsep)]
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path))}


def _owned() -> bool:
    """Whether the owner is alive; an owner on another host counts as alive."""
    host, _, pid = os.environ.get(OWNER_VARIABLE, "").partition(" ")
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process has this id now
        return False
    return True


def _facts(file: Path) -> dict[str, Any] | None:
    try:
        found = json_of(file)
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    output = [line.strip() for line in lines if line.strip()]
    return output[-1][:300] if output else "it printed nothing"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
