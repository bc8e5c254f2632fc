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
from restore_lab.evaluation.evaluate import plan_evaluation
from restore_lab.evaluation.systems import find_system
from restore_lab.inspection.describe import plan_description
from restore_lab.launch.job import Job
from restore_lab.methods.weights import weights_file
from restore_lab.storage.artefact import DESCRIPTION
from restore_lab.tables.job_config import job_config
from restore_lab.tables.jobs import Plan, ScoresKey
from restore_lab.tables.prerequisites import JobContext, like_of, place_overrides, training_job
from restore_lab.tables.spec import DESCRIPTION_COUNTS, Condition, Row, Spec, merge

log = logging.getLogger(__name__)


def plan_tables(
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
    plan = Plan(specs=specs, seeds=seeds, weights_dir=weights_dir)
    for spec in specs:
        for seed in range(seeds):
            context = JobContext(table=spec.name, scale=spec.scale, seed=seed, store=store, words=words)
            trained: dict[str, Job] = {}
            for row in spec.rows.values():
                if row.system is None:
                    _plan_row(plan, spec, row, context, trained)
                elif seed == 0:  # external outputs belong to one draw of the degradations
                    _plan_system_row(plan, spec, row, context, systems_dir)
    for identity, job in plan.jobs.items():
        plan.jobs[identity] = replace(job, words=(job.words[0], *flags, *job.words[1:]))
    return plan


def _plan_row(plan: Plan, spec: Spec, row: Row, context: JobContext, trained: dict[str, Job]) -> None:
    """Add a row's jobs under every condition; `trained` are the jobs of the rows' trainings so far."""
    if row.only not in (None, spec.scale):
        return
    conditions = _evaluated_conditions(spec)
    keys = [_key(spec, row, c.name, context) for c in conditions]
    try:
        if any(column.describe in DESCRIPTION_COUNTS for column in spec.columns.values()):
            plan.descriptions[spec.name, row.name] = plan.add(_description_job(spec, row, context))
        weights = _weights(plan, spec, row, context, trained) if conditions else None
        if isinstance(weights, Job):
            plan.trainings.setdefault((spec.name, row.name), weights.artefact.identity)
        for key, condition in zip(keys, conditions, strict=True):
            plan.scores[key] = plan.add(_scores_job(plan, spec, row, condition, context, weights))
    except (ValueError, FileNotFoundError) as error:
        reason = _one_line(error)
        lost = keys or [_key(spec, row, "", context)]
        plan.refusals |= {key: reason for key in lost if key not in plan.scores}


def _plan_system_row(plan: Plan, spec: Spec, row: Row, context: JobContext, systems_dir: str | None) -> None:
    """Add the jobs that evaluate an external system, under the conditions for which its outputs or weights exist."""
    assert row.system is not None
    for condition in _evaluated_conditions(spec):
        key = _key(spec, row, condition.name, context)
        try:
            system = find_system(systems_dir, row.system, condition.name, conditions=list(spec.conditions))
            if system is None:
                continue
            job = _scores_job(plan, spec, row, condition, context, None, more=(f"system='{system.resolve()}'",))
        except (ValueError, FileNotFoundError) as error:
            plan.refusals[key] = _one_line(error)
            continue
        plan.scores[key] = plan.add(replace(job, like=f"{job.like} {row.system}", steps=1))


def _key(spec: Spec, row: Row, condition: str, context: JobContext) -> ScoresKey:
    return ScoresKey(table=spec.name, row=row.name, condition=condition, seed=context.seed)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _evaluated_conditions(spec: Spec) -> list[Condition]:
    """The conditions that are evaluated: those with metrics that are no mean of others."""
    return [
        c for c in spec.conditions.values() if not c.mean and any(spec.columns[title].metric for title in c.columns)
    ]


def _weights(plan: Plan, spec: Spec, row: Row, context: JobContext, trained: dict[str, Job]) -> Job | Path | None:
    """The job that trains the row's weights, added with its earlier stages.

    A path if the weights exist already; None if the config names them itself.
    """
    if row.weights == "shipped":
        return _shipped_weights(plan, spec, row, context) if spec.scale == "full" else None
    source = row if row.weights == "own" else spec.rows[row.weights]
    if source.weights != "own":
        return _weights(plan, spec, source, context, trained)
    if source.name not in trained:
        trained[source.name] = training_job(plan, context.overrides(spec.words_of("train", source)), context)
    return trained[source.name]


def _shipped_weights(plan: Plan, spec: Spec, row: Row, context: JobContext) -> Job | Path | None:
    """A method's own weights at full size, where none ship: from `weights_dir`, else trained with the method's config.

    That training takes only the row's own overrides from the table, so all tables share it.
    """
    with job_config("evaluate", context.overrides([*spec.words.overrides, *row.words.overrides])) as cfg:
        method, name = cfg.hydra.runtime.choices.method, str(cfg.shipped).removeprefix("asset:")
        if cfg.weights != cfg.shipped or weights_file(cfg.weights).is_file():
            return None
    places = [] if plan.weights_dir is None else [Path(plan.weights_dir, n) for n in (name, f"{name}.safetensors")]
    if place := next((place for place in places if place.exists()), None):
        return place.resolve()
    words = merge([f"method={method}", *context.overrides(row.words.of("train"), experiment=False)])
    return training_job(plan, words, context)


def _scores_job(
    plan: Plan,
    spec: Spec,
    row: Row,
    condition: Condition,
    context: JobContext,
    weights: Job | Path | None,
    *,
    more: Sequence[str] = (),
) -> Job:
    """The job that evaluates a row under a condition; `more` are overrides after all others."""
    metrics = ("metrics=paper",) if spec.scale == "full" else ()
    place = [f"weights='{weights}'"] if isinstance(weights, Path) else []
    own = [*metrics, *spec.words_of("evaluate", row, condition)]
    words = merge([*context.overrides(own), *place, *more])
    places, needs = place_overrides(plan, "evaluate", words, context)
    words, trained = merge([*words, *places]), weights.artefact if isinstance(weights, Job) else None
    with job_config("evaluate", words) as cfg:
        scores = plan_evaluation(cfg, weights=trained.identity if trained else None)
        like, steps = like_of(cfg), int(cfg.sampler.steps)
    last = [NO_FOLLOW, *([f"weights='{trained.folder}'"] if trained else [])]  # a row's overrides are complete
    return Job(
        artefact=scores,
        words=("evaluate", *merge([*words, *last])),
        needs=(*([trained.identity] if trained else []), *needs),
        like=f"{scores.kind} {like}",
        steps=steps,
    )


def _description_job(spec: Spec, row: Row, context: JobContext) -> Job:
    """The job that counts a row's parameters; its config has no seed and no folder."""
    own = [f"experiment={spec.name}", f"scale={spec.scale}", *spec.words_of("describe", row)]
    words = merge(word for word in own if not word.startswith("seed="))
    with job_config("describe", words) as cfg:
        description = context.in_store(plan_description(cfg), DESCRIPTION)
    return Job(
        artefact=description,
        words=("describe", *words, f"run_dir='{description.folder}'", "format=json"),
        like=DESCRIPTION,
    )
