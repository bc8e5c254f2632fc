"""Processes that belong to a run, found by their command lines in /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path


def processes_of(store: Path) -> dict[int, str]:
    """The running processes whose command line names the store."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(store) in line and state != "Z":
                found[int(entry.name)] = line
    return found


def none_left(store: Path, *, within: float = 10.0) -> bool:
    """Whether the last of them ends within some seconds."""
    until = time.monotonic() + within
    while processes_of(store) and time.monotonic() < until:
        time.sleep(0.05)
    return not processes_of(store)


def history(store: Path, word: str) -> list[str]:
    """The jobs after a word in the history that fake_job.py writes: "begun" or "made"."""
    lines = (store / "history").read_text().splitlines() if (store / "history").exists() else []
    return [line.split()[1] for line in lines if line.startswith(word)]
