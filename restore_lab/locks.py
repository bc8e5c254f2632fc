"""Locks on artefacts: what one command is making, no other makes beside it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: str | PurePath) -> Iterator[None]:
    """Hold an artefact's folder while it is made; wait for whoever holds it.

    The lock is the process's: it goes with it, however it ends. Of a job of several processes the first alone holds it.
    """
    from filelock import FileLock, Timeout

    if os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("NODE_RANK", "0") != "0":
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
