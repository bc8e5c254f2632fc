"""Jobs: an artefact, the command that makes it, and how that command is run.

A job runs in a process group of its own under a supervisor (supervisor.py), so nothing of it outlives whoever waits for
it, nor the command that all jobs belong to, whatever launcher is between the two. The lock on its artefact is taken by
the command itself (restore_lab.storage.locks): two tables never make one thing twice. Of each finished job
`<store>/jobs/<identity>.json` holds what it took, `<identity>.log` what it wrote.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restore_lab.storage.artefact import PACKAGE, complete, write_json_atomic
from restore_lab.storage.foreign import json_of
from restore_lab.storage.locks import first_rank

COMMAND = (sys.executable, "-m", "restore_lab.cli.main")
SCORES, DESCRIPTION, IMAGES, CAPTIONS = "scores", "description", "images", "captions"
NOT_WEIGHTS = (SCORES, DESCRIPTION, IMAGES, CAPTIONS)  # any other kind is a stage of training
OWNER_VARIABLE = "RESTORE_LAB_OWNER"  # host and process of the command that all jobs belong to; workers inherit it


@dataclass(frozen=True, kw_only=True)
class Job:
    """What makes one artefact.

    Attributes:
        identity: of the artefact.
        kind: the stage's name, or one of `NOT_WEIGHTS`.
        folder: where it is, or will be.
        words: of the command, behind `restore-lab`.
        needs: identities of the artefacts that have to be there first.
        like: what jobs of about this speed have in common, for estimates.
        steps: how much there is to do: optimiser steps, or sampling steps an image.
    """

    identity: str
    kind: str
    folder: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    like: str = ""
    steps: int = 0

    @property
    def done(self) -> bool:
        """Whether the artefact is there and whole."""
        if self.kind == SCORES:
            from restore_lab.evaluation.records import has_record

            return has_record(self.folder, identity=self.identity)
        return complete(self.folder, identity=self.identity)


class JobFailed(ValueError):
    """A job whose command failed; the text is its last line and where its log is."""


def own() -> None:
    """Say that the jobs which this process or a launcher's workers start from now on belong to this process."""
    os.environ[OWNER_VARIABLE] = f"{socket.gethostname()} {os.getpid()}"


def run(job: Job, store: Path, *, again: bool = False) -> None:
    """Make the artefact, if it is not there, and wait for it; the job ends when its owner does.

    Where a launcher starts several tasks for a job, one a rank (SLURM), a training's command runs in each of them, that
    of anything else in the first; the first says what became of it.

    Args:
        job: what to make.
        store: where logs and facts are kept.
        again: whether to run the command although the artefact is there.

    Raises:
        JobFailed: if the command fails.
    """
    if (job.done and not again) or (job.kind in NOT_WEIGHTS and not first_rank()):
        return
    folder = store / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    facts, log = folder / f"{job.identity}.json", folder / f"{job.identity}.log"
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
        with contextlib.suppress(ProcessLookupError):  # the supervisor itself was killed, or we are interrupted
            os.killpg(process.pid, signal.SIGKILL)
        os.close(write_end)
    if not _owned():
        os._exit(1)  # nobody waits for an answer any more, and a launcher's worker would wait for the next job
    found = _facts(facts)
    if found is not None:
        write_json_atomic(facts, {**asdict(job), **found, "bytes": _size(Path(job.folder))})
    failed = not job.done or (again and (found is None or found["rc"]))
    if failed and first_rank():
        status = "it was killed" if found is None else f"exit status {found['rc']}"
        raise JobFailed(f"{job.kind} {job.identity}: {_last_line(log)} ({status}; {log})")


def took(store: Path) -> list[Mapping[str, Any]]:
    """The facts of every finished job that succeeded."""
    found = [_facts(file) for file in sorted((store / "jobs").glob("*.json"))]
    return [facts for facts in found if facts is not None and facts.get("rc") == 0 and "like" in facts]


def facts_of(job: Job) -> Mapping[str, Any] | None:
    """The facts of one finished job, kept beside its artefact; None if it was not made as a table's job."""
    return _facts(Path(job.folder).parent / "jobs" / f"{job.identity}.json")


def config_folders() -> list[Path]:
    """The config folders of the running Hydra: the package's, then the user's."""
    from hydra.core.hydra_config import HydraConfig

    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file" and source.path]


def config_flags() -> list[str]:
    """What brings the user's config folder to another command."""
    return [f"--config-dir={folder.resolve()}" for folder in config_folders()[1:]]


def _environment() -> dict[str, str]:
    """This process's, without what ranks are told, and with this package in reach."""
    ranks = {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK", "SLURM_STEP_NUM_TASKS"}
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    paths = [str(PACKAGE.parent), *kept.get("PYTHONPATH", "").split(os.pathsep)]
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path))}


def _owned() -> bool:
    """Whether the owner is still there, as far as this machine can tell."""
    host, _, pid = os.environ.get(OWNER_VARIABLE, "").partition(" ")
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's now
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
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:300] if said else "it said nothing"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
