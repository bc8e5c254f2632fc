"""Locks on artefacts: what one command is making, no other makes beside it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

log = logging.getLogger(__name__)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # torchrun's, Lightning's, SLURM's


def first_rank() -> bool:
    """Whether this process is the first, or the only one, of those that do its job."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)


@contextlib.contextmanager
def locked(folder: str | PurePath) -> Iterator[None]:
    """Hold an artefact's folder while it is made; wait for whoever holds it.

    The lock is the process's: it goes with it, however it ends. Of a job of several processes the first alone holds it.
    """
    from filelock import FileLock, Timeout

    if not first_rank():
        yield
        return
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another run makes %s; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
