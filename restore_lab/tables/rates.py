"""What jobs took on the machine that made the shipped tables: for estimates where nothing like them was ever run.

    python -m restore_lab.tables.rates runs/tables

writes `rates.json` anew, one line for each kind of job (the median of its speeds), from the facts that finished jobs
left. Jobs of another machine take another time; what was run here is always preferred (restore_lab.tables.plan).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from restore_lab.artefacts import write_bytes_atomic
from restore_lab.tables.jobs import took

FILE = Path(__file__).with_name("rates.json")


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
