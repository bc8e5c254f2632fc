"""The jobs of some tables, and which cells each stands behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from restore_lab.launch.job import Job

if TYPE_CHECKING:
    from restore_lab.tables.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cell's block: a row of a table under a condition, with a seed."""

    table: str
    row: str
    condition: str
    seed: int


@dataclass(kw_only=True)
class Plan:
    """The jobs of some tables.

    Attributes:
        specs: the tables.
        jobs: by identity, in order of dependence.
        scores: the identity of the record behind each block that has one.
        descriptions: the identity of the description behind each row that has one, by (table, row).
        trained: the identity of the last stage of training behind each row that has one, with seed 0, by (table, row).
        refused: why a block can have none, by block.
        seeds: how many.
        weights_dir: where the methods' own weights lie that do not ship, if anywhere.
        data: the named datasets of each table and the paths that they have, by name.
    """

    specs: Sequence[Spec]
    seeds: int
    jobs: dict[str, Job] = field(default_factory=dict)
    scores: dict[Place, str] = field(default_factory=dict)
    descriptions: dict[tuple[str, str], str] = field(default_factory=dict)
    trained: dict[tuple[str, str], str] = field(default_factory=dict)
    refused: dict[Place, str] = field(default_factory=dict)
    weights_dir: str | None = None
    data: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    def missing(self) -> list[Job]:
        """The jobs to run, in order of dependence: what is wanted and not there.

        Weights are wanted for what is measured with them: once the records are there they need not be.
        """
        wanted = self.jobs.keys() - {need for job in self.jobs.values() for need in job.needs}
        found: list[Job] = []
        for job in reversed(self.jobs.values()):
            if job.identity in wanted and not job.done:
                found.append(job)
                wanted |= set(job.needs)
        return found[::-1]


def behind(planned: Plan, identities: Sequence[str]) -> list[Job]:
    """The jobs of these artefacts and of all that they need, once each."""
    found: dict[str, Job] = {}
    queue = list(identities)
    while queue:
        identity = queue.pop()
        if identity not in found:
            found[identity] = planned.jobs[identity]
            queue += [need for need in planned.jobs[identity].needs if need in planned.jobs]
    return list(found.values())
