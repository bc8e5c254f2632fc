"""From tables to jobs: the artefacts that each cell needs, and which of them exist.

Every job is an ordinary `restore-lab` command. Its artefact's identity follows from the composed config before anything
runs, so an artefact that rows or tables share is one job, and an existing artefact is not made again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from restore_lab.config.compose import NO_FOLLOW
from restore_lab.evaluation import evaluate, systems
from restore_lab.inspection import describe
from restore_lab.launch.job import DESCRIPTION, SCORES, Job
from restore_lab.methods.weights import weights_file
from restore_lab.tables.job_config import job_config
from restore_lab.tables.jobs import Place, Plan
from restore_lab.tables.prerequisites import Around, like_of, place_overrides, store, training_job
from restore_lab.tables.spec import DESCRIPTION_COUNTS, Condition, Row, Spec, merge

log = logging.getLogger(__name__)


def plan(
    specs: Sequence[Spec],
    *,
    store: Path,
    seeds: int,
    words: Sequence[str] = (),
    flags: Sequence[str] = (),
    systems_dir: str | None = None,
    weights_dir: str | None = None,
) -> Plan:
    """The jobs of some tables; composes configs, builds and runs nothing.

    Args:
        specs: the tables.
        store: folder of the artefacts.
        seeds: number of repetitions, with seeds 0, 1, ...
        words: overrides for every job, after the tables' own.
        flags: flags for every command: the user's config folder.
        systems_dir: outputs or weights of external systems (restore_lab.evaluation.systems).
        weights_dir: methods' own weights that do not ship, <weights_dir>/supir_full[.safetensors].
    """
    found = Plan(specs=specs, seeds=seeds, weights_dir=weights_dir)
    for spec in specs:
        for seed in range(seeds):
            common = (f"experiment={spec.name}", f"scale={spec.scale}", f"seed={seed}")
            where = (f"runs_dir='{store.parent}'", f"name={store.name}", "progress=false", *words)
            already: dict[str, Job] = {}
            for row in spec.rows.values():
                if row.system is not None and seed == 0:  # external outputs belong to one draw of the degradations
                    _system(found, spec, row, (common, where), systems_dir)
                _row(found, spec, row, seed, (common, where), already)
    found.jobs = {
        identity: replace(job, words=(job.words[0], *flags, *job.words[1:])) for identity, job in found.jobs.items()
    }
    return found


def _row(plan: Plan, spec: Spec, row: Row, seed: int, around: Around, already: dict[str, Job]) -> None:
    """Add a row's jobs under every condition."""
    if row.system is not None or row.only not in (None, spec.scale):
        return
    measured = _measured(spec)
    places = [Place(table=spec.name, row=row.name, condition=c.name, seed=seed) for c in measured]
    try:
        if any(column.describe in DESCRIPTION_COUNTS for column in spec.columns.values()):
            job = _description(spec, row, around)
            plan.jobs.setdefault(job.identity, job)
            plan.descriptions[spec.name, row.name] = job.identity
        weights = _weights(plan, spec, row, around, already) if measured else None
        if isinstance(weights, Job):
            plan.trainings.setdefault((spec.name, row.name), weights.identity)
        for place, condition in zip(places, measured, strict=True):
            job = _scores(plan, spec, row, condition, around, weights)
            plan.jobs.setdefault(job.identity, job)
            plan.scores[place] = job.identity
    except (ValueError, FileNotFoundError) as error:
        line = " ".join(str(error).split())[:300]
        lost = places or [Place(table=spec.name, row=row.name, condition="", seed=seed)]
        plan.refusals |= {place: line for place in lost if place not in plan.scores}


def _system(plan: Plan, spec: Spec, row: Row, around: Around, systems_dir: str | None) -> None:
    """Add the jobs that evaluate an external system, under the conditions for which its outputs or weights exist."""
    assert row.system is not None
    for condition in _measured(spec):
        place = Place(table=spec.name, row=row.name, condition=condition.name, seed=0)
        try:
            system = systems.place_in(systems_dir, row.system, condition.name, conditions=list(spec.conditions))
            if system is None:
                continue
            job = _scores(plan, spec, row, condition, around, None, more=(f"system='{system.resolve()}'",))
        except (ValueError, FileNotFoundError) as error:
            plan.refusals[place] = " ".join(str(error).split())[:300]
            continue
        plan.jobs.setdefault(job.identity, replace(job, like=f"{job.like} {row.system}", steps=1))
        plan.scores[place] = job.identity


def _measured(spec: Spec) -> list[Condition]:
    """The conditions that are evaluated."""
    return [
        c for c in spec.conditions.values() if not c.mean and any(spec.columns[title].metric for title in c.columns)
    ]


def _weights(plan: Plan, spec: Spec, row: Row, around: Around, already: dict[str, Job]) -> Job | Path | None:
    """The job that trains the row's weights, added with its earlier stages.

    A path if the weights exist already; None if the config names them itself.
    """
    if row.weights == "shipped":
        return _shipped(plan, spec, row, around) if spec.scale == "full" else None
    source = row if row.weights == "own" else spec.rows[row.weights]
    if source.weights != "own":
        return _weights(plan, spec, source, around, already)
    if source.name not in already:
        common, where = around
        words = merge([*common, *spec.words_of("train", source), *where])
        already[source.name] = training_job(plan, words, around)
    return already[source.name]


def _shipped(plan: Plan, spec: Spec, row: Row, around: Around) -> Job | Path | None:
    """A method's own weights at full size, where none ship: from `weights_dir`, else trained with the method's config.

    That training takes only the row's own overrides from the table, so all tables share it.
    """
    common, where = around
    with job_config("evaluate", merge([*common, *spec.words.overrides, *row.words.overrides, *where])) as cfg:
        method, name = cfg.hydra.runtime.choices.method, str(cfg.shipped).removeprefix("asset:")
        if cfg.weights != cfg.shipped or weights_file(cfg.weights).is_file():
            return None
    places = [] if plan.weights_dir is None else [Path(plan.weights_dir, n) for n in (name, f"{name}.safetensors")]
    if place := next((place for place in places if place.exists()), None):
        return place.resolve()
    own = [word for word in common if not word.startswith("experiment=")]
    words = merge([f"method={method}", *own, *row.words.of("train"), *where])
    return training_job(plan, words, around)


def _scores(
    plan: Plan,
    spec: Spec,
    row: Row,
    condition: Condition,
    around: Around,
    weights: Job | Path | None,
    *,
    more: Sequence[str] = (),
) -> Job:
    """The job that evaluates a row under a condition; `more` are overrides after all others."""
    common, where = around
    metrics = ("metrics=paper",) if spec.scale == "full" else ()
    place = [f"weights='{weights}'"] if isinstance(weights, Path) else []
    words = merge([*common, *metrics, *spec.words_of("evaluate", row, condition), *where, *place, *more])
    places, needs = place_overrides(plan, "evaluate", words, around)
    words, job = merge([*words, *places]), weights if isinstance(weights, Job) else None
    with job_config("evaluate", words) as cfg:
        scores = evaluate.planned(cfg, weights=job.identity if job else None)
        like, steps = like_of(cfg), int(cfg.sampler.steps)
    own = [NO_FOLLOW, *([f"weights='{job.folder}'"] if job else [])]  # a row's overrides are complete
    return Job(
        identity=scores.identity,
        kind=SCORES,
        folder=str(scores.folder),
        words=("evaluate", *merge([*words, *own])),
        needs=(*([job.identity] if job else []), *needs),
        like=f"{SCORES} {like}",
        steps=steps,
    )


def _description(spec: Spec, row: Row, around: Around) -> Job:
    """The job that counts a row's parameters; its config has no seed and no folder."""
    common, _ = around
    words = merge(word for word in (*common, *spec.words_of("describe", row)) if not word.startswith("seed="))
    with job_config("describe", words) as cfg:
        name = describe.planned(cfg)
    folder = store(around) / f"{DESCRIPTION}-{name}"
    return Job(
        identity=name,
        kind=DESCRIPTION,
        folder=str(folder),
        words=("describe", *words, f"run_dir='{folder}'", "format=json"),
        like=DESCRIPTION,
    )
