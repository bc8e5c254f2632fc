"""Columns without a metric: parameter and FLOP counts of `restore-lab describe`, and time and memory of training.

Counts follow from the config. Minutes and memory are measured over the whole job of the row's last training stage,
start-up and imports included, on the machine that ran it; rows whose weights no table's job made have neither. A
resumed job counts the minutes of its last run only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from restore_lab.inspection.describe import DESCRIPTION_FILE
from restore_lab.launch.job import read_facts
from restore_lab.storage.foreign import json_of
from restore_lab.tables.jobs import Plan
from restore_lab.tables.spec import TRAINING_COSTS, Spec


def description_column(plan: Plan, spec: Spec, what: str | None) -> dict[str, float]:
    """A column's values by row, in the unit that its name ends in; empty where `what` is None."""
    if what is None:
        return {}
    facts = {row: found for row in spec.rows if (found := _facts(plan, (spec.name, row), what)) is not None}
    values = {row: READERS[what](found) for row, found in facts.items()}
    if what == "relative_adaptor":
        base = values.get(next(iter(spec.rows)))
        values = {} if base is None else {row: value / base for row, value in values.items()}
    return values


def _facts(plan: Plan, row: tuple[str, str], what: str) -> Mapping[str, Any] | None:
    identity = (plan.trainings if what in TRAINING_COSTS else plan.descriptions).get(row)
    if identity is None or not plan.jobs[identity].artefact.is_complete():
        return None
    job = plan.jobs[identity]
    if what in TRAINING_COSTS:
        return read_facts(job)
    return json_of(job.artefact.folder / DESCRIPTION_FILE)


def _adaptor(facts: Mapping[str, Any]) -> float:
    return sum(count for name, count in facts["parameters"].items() if name.startswith("adaptor.")) / 1e6


READERS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "trainable_millions": lambda facts: facts["trainable_parameters"] / 1e6,
    "adaptor_millions": _adaptor,
    "relative_adaptor": _adaptor,
    "step_gflops": lambda facts: facts["flops_per_step"] / 1e9,
    "minutes_per_100_steps": lambda facts: facts["seconds"] / facts["steps"] * 100 / 60,
    "peak_gigabytes": lambda facts: facts["peak_bytes"] / 1e9,
}
