"""The jobs of some tables, and the cells that each job serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from restore_lab.launch.job import Job

if TYPE_CHECKING:
    from restore_lab.tables.spec import Spec


@dataclass(frozen=True, kw_only=True)
class ScoresKey:
    """One evaluation of a table."""

    table: str
    row: str
    condition: str
    seed: int


@dataclass(kw_only=True)
class Plan:
    """The jobs of some tables.

    Attributes:
        specs: the tables.
        seeds: number of seeds.
        jobs: by identity, in dependency order.
        scores: the record's identity, by evaluation.
        descriptions: the description's identity, by (table, row).
        trainings: the identity of the last training stage at seed 0, by (table, row).
        refusals: the reason why an evaluation is impossible.
        weights_dir: folder of the methods' own weights that do not ship, or None.
        data: the paths of each table's named datasets, by table and dataset.
    """

    specs: Sequence[Spec]
    seeds: int
    jobs: dict[str, Job] = field(default_factory=dict)
    scores: dict[ScoresKey, str] = field(default_factory=dict)
    descriptions: dict[tuple[str, str], str] = field(default_factory=dict)
    trainings: dict[tuple[str, str], str] = field(default_factory=dict)
    refusals: dict[ScoresKey, str] = field(default_factory=dict)
    weights_dir: str | None = None
    data: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, job: Job) -> str:
        """Add a job unless there is one for the same artefact; the artefact's identity."""
        self.jobs.setdefault(job.artefact.identity, job)
        return job.artefact.identity

    def missing(self) -> list[Job]:
        """The jobs to run, in dependency order.

        A dependency is needed only while a job that reads it is missing: complete records need no weights.
        """
        wanted = self.jobs.keys() - {need for job in self.jobs.values() for need in job.needs}
        found: list[Job] = []
        for identity, job in reversed(self.jobs.items()):
            if identity in wanted and not job.artefact.is_complete():
                found.append(job)
                wanted |= set(job.needs)
        return found[::-1]


def with_dependencies(plan: Plan, identities: Sequence[str]) -> list[Job]:
    """The jobs of these artefacts and of all their dependencies, each once."""
    found: dict[str, Job] = {}
    queue = list(identities)
    while queue:
        identity = queue.pop()
        if identity not in found:
            found[identity] = plan.jobs[identity]
            queue += [need for need in plan.jobs[identity].needs if need in plan.jobs]
    return list(found.values())
