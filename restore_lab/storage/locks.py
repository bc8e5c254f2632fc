"""Locks on artefacts: one command at a time makes an artefact."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

log = logging.getLogger(__name__)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # torchrun's, Lightning's, SLURM's


def first_rank() -> bool:
    """Whether this process is rank 0 of its job, or its only process."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)


@contextlib.contextmanager
def lock(folder: str | PurePath) -> Iterator[None]:
    """Lock an artefact's folder while it is made; wait while another process holds the lock.

    The lock ends with its process. In a job of several processes only rank 0 takes it.
    """
    from filelock import FileLock, Timeout

    if not first_rank():
        yield
        return
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    held = FileLock(place / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("another run makes %s; waiting for it", folder)
        held.acquire()
    try:
        yield
    finally:
        held.release()
