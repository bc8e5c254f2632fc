"""A fake `restore-lab table`: makes a chain of fake jobs as tables do.

python tests/helpers/fake_table.py <store>
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from restore_lab.launch import job
from restore_lab.launch.job import Job, JobFailed
from restore_lab.storage.artefact import Artefact
from restore_lab.tables.jobs import Plan
from restore_lab.tables.make import make_artefacts

SECONDS = 0.3


def fake(store: Path, name: str, *needs: str, fail: bool = False) -> Job:
    words = (str(store / name), name, str(SECONDS), *(["fail"] if fail else []))
    artefact = Artefact(kind="fake", identity=name, folder=store / name)
    return Job(artefact=artefact, words=words, needs=needs)


def six(store: Path) -> Plan:
    """Two trainings of two stages, and what is measured of each."""
    chain = [fake(store, "a1"), fake(store, "a2", "a1"), fake(store, "a3", "a2")]
    chain += [fake(store, "b1"), fake(store, "b2", "b1"), fake(store, "b3", "b2")]
    return Plan(specs=(), seeds=1, jobs={job.artefact.identity: job for job in chain})


def made(plan: Plan, store: Path) -> dict[str, str]:
    """`make_artefacts` with a launcher that runs one job after the other in this process."""

    def launch(identities: Sequence[str]) -> list[str | None]:
        said: list[str | None] = []
        for identity in identities:
            try:
                job.run_job(plan.jobs[identity], store)
                said.append(None)
            except JobFailed as error:
                said.append(str(error))
        return said

    return make_artefacts(plan, launch=launch)


job.COMMAND = (sys.executable, str(Path(__file__).with_name("fake_job.py")))

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    place = Path(sys.argv[1])
    failed = made(six(place), place)
    raise SystemExit("\n".join(failed.values()) or 0)
