"""Estimates of a job's time, memory and disk: from jobs that ran here, else from the machine of the shipped tables.

    python -m restore_lab.launch.cost runs/tables

rewrites `cost.json`, one line per kind of job (its median speed), from the facts that finished jobs wrote. Facts of
this machine always come first.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restore_lab.launch.job import Job, finished_facts
from restore_lab.storage.atomic import write_bytes_atomic

COST_FILE = Path(__file__).with_name("cost.json")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated cost of a job; None where no similar job has run. `other_machine`: measured on another machine."""

    seconds: float | None
    peak_bytes: int | None
    disk_bytes: int | None
    other_machine: bool = False


def estimate(job: Job, here: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]] = ()) -> Estimate:
    """The cost of a job, per step: from similar jobs of this machine, else of another, else from all of its kind here.

    Args:
        job: the job to estimate.
        here: facts of the jobs that ran on this machine (restore_lab.launch.job).
        there: facts from another machine.
    """
    alike, elsewhere = ([f for f in facts if f["like"] == job.like] for facts in (here, there))
    same = alike or elsewhere or [f for f in here if f["kind"] == job.artefact.kind]
    if not same:
        return Estimate(seconds=None, peak_bytes=None, disk_bytes=None)
    rates = [facts["seconds"] / max(facts["steps"], 1) for facts in same]
    return Estimate(
        seconds=statistics.median(rates) * max(job.steps, 1),
        peak_bytes=max(facts["peak_bytes"] for facts in same),
        disk_bytes=int(statistics.median(facts["bytes"] for facts in same)),
        other_machine=not alike and bool(elsewhere),
    )


def shipped_facts() -> list[Mapping[str, Any]]:
    """The facts that ship with the package, in the form of `finished_facts`, one entry per kind of job."""
    return json.loads(COST_FILE.read_text(encoding="utf-8"))


def rates(facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Facts merged over similar jobs: median speed, peak memory, median disk."""
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
    lines = ",\n".join(json.dumps(rate) for rate in rates(finished_facts(Path(sys.argv[1]))))
    write_bytes_atomic(COST_FILE, f"[\n{lines}\n]\n".encode())
