"""What jobs will take: from those that were run here, else as on the machine that made the shipped tables.

    python -m restore_lab.launch.cost runs/tables

writes `cost.json` anew, one line for each kind of job (the median of its speeds), from the facts that finished jobs
left. What was run here is always preferred.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restore_lab.launch.job import Job, took
from restore_lab.storage.artefact import write_bytes_atomic

FILE = Path(__file__).with_name("cost.json")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job will take; None where nothing like it was ever run. `elsewhere`: as another machine ran it."""

    seconds: float | None
    peak_bytes: int | None
    disk_bytes: int | None
    elsewhere: bool = False


def estimate(job: Job, here: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]] = ()) -> Estimate:
    """From finished jobs like it, here or else elsewhere; else from all of its kind that ran here. By the step.

    Args:
        job: what is to be made.
        here: facts of the jobs that were run here (restore_lab.launch.job).
        there: facts of another machine.
    """
    alike, elsewhere = ([f for f in facts if f["like"] == job.like] for facts in (here, there))
    same = alike or elsewhere or [f for f in here if f["kind"] == job.kind]
    if not same:
        return Estimate(seconds=None, peak_bytes=None, disk_bytes=None)
    rates = [facts["seconds"] / max(facts["steps"], 1) for facts in same]
    return Estimate(
        seconds=statistics.median(rates) * max(job.steps, 1),
        peak_bytes=max(facts["peak_bytes"] for facts in same),
        disk_bytes=int(statistics.median(facts["bytes"] for facts in same)),
        elsewhere=not alike and bool(elsewhere),
    )


def shipped() -> list[Mapping[str, Any]]:
    """Facts of jobs as `took` has them, one for each kind of job."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def rates(facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The facts of one job in the place of all that are alike: median speed, largest memory, median disk."""
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for fact in facts:
        alike.setdefault(fact["like"], []).append(fact)
    found = []
    for like, group in sorted(alike.items()):
        steps = max(fact["steps"] for fact in group)
        speed = statistics.median(fact["seconds"] / max(fact["steps"], 1) for fact in group)
        found.append(
            {
                "like": like,
                "kind": group[0]["kind"],
                "steps": steps,
                "seconds": round(speed * max(steps, 1), 1),
                "peak_bytes": max(fact["peak_bytes"] for fact in group),
                "bytes": int(statistics.median(fact["bytes"] for fact in group)),
            }
        )
    return found


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(rate) for rate in rates(took(Path(sys.argv[1]))))
    write_bytes_atomic(FILE, f"[\n{lines}\n]\n".encode())
