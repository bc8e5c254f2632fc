"""From tables to jobs: which artefacts stand behind which cells, and which of them exist.

Every job is a `restore-lab` command that a person could type. Its artefact's identity comes from the composed config
before anything runs, so an artefact that two rows or two tables share is one job, and one that exists is none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from restore_lab import pairs
from restore_lab.evaluation import evaluate, systems
from restore_lab.methods import describe, fit, negatives
from restore_lab.tables.jobs import DESCRIPTION, IMAGES, SCORES, Job, Place, Plan
from restore_lab.tables.spec import COUNTED, Condition, Row, Spec, merged

log = logging.getLogger(__name__)


def plan(
    specs: Sequence[Spec],
    *,
    store: Path,
    seeds: int,
    words: Sequence[str] = (),
    flags: Sequence[str] = (),
    systems_dir: str | None = None,
) -> Plan:
    """The jobs behind some tables; composes configs, builds and runs nothing.

    Args:
        specs: the tables.
        store: the folder for what is made.
        seeds: how many runs of everything, seeds 0, 1, ...
        words: overrides for every job, behind the tables' own.
        flags: for every command: the user's config folder.
        systems_dir: outputs or weights of other people's systems (restore_lab.evaluation.systems).
    """
    found = Plan(specs=specs, seeds=seeds)
    for spec in specs:
        for seed in range(seeds):
            common = (f"experiment={spec.name}", f"scale={spec.scale}", f"seed={seed}")
            where = (f"runs_dir='{store.parent}'", f"name={store.name}", "progress=false", *words)
            trained: dict[str, Job] = {}
            for row in spec.rows.values():
                if row.system is not None and seed == 0:  # outputs are of one draw of the degradations
                    _system(found, spec, row, (common, where), systems_dir)
                _row(found, spec, row, seed, (common, where), trained)
    found.jobs = {
        identity: replace(job, words=(job.words[0], *flags, *job.words[1:])) for identity, job in found.jobs.items()
    }
    return found


def _row(
    found: Plan, spec: Spec, row: Row, seed: int, around: tuple[Sequence[str], Sequence[str]], trained: dict[str, Job]
) -> None:
    """The jobs of a row, under every condition."""
    if row.system is not None or row.only not in (None, spec.scale):
        return
    measured = _measured(spec)
    places = [Place(table=spec.name, row=row.name, condition=c.name, seed=seed) for c in measured]
    try:
        if any(column.describe in COUNTED for column in spec.columns.values()):
            job = _description(spec, row, around)
            found.jobs.setdefault(job.identity, job)
            found.descriptions[spec.name, row.name] = job.identity
        weights = _weights(found, spec, row, around, trained) if measured else None
        if weights is not None:
            found.trained.setdefault((spec.name, row.name), weights.identity)
        for place, condition in zip(places, measured, strict=True):
            job = _scores(spec, row, condition, around, weights)
            found.jobs.setdefault(job.identity, job)
            found.scores[place] = job.identity
    except (ValueError, FileNotFoundError) as error:
        line = " ".join(str(error).split())[:300]
        lost = places or [Place(table=spec.name, row=row.name, condition="", seed=seed)]
        found.refused |= {place: line for place in lost if place not in found.scores}


def _system(
    found: Plan, spec: Spec, row: Row, around: tuple[Sequence[str], Sequence[str]], systems_dir: str | None
) -> None:
    """The jobs that measure somebody else's system, under the conditions for which something of it is there."""
    assert row.system is not None
    for condition in _measured(spec):
        place = Place(table=spec.name, row=row.name, condition=condition.name, seed=0)
        try:
            system = systems.place_in(systems_dir, row.system, condition.name, conditions=list(spec.conditions))
            if system is None:
                continue
            job = _scores(spec, row, condition, around, None, more=(f"system='{system.resolve()}'",))
        except (ValueError, FileNotFoundError) as error:
            found.refused[place] = " ".join(str(error).split())[:300]
            continue
        found.jobs.setdefault(job.identity, replace(job, like=f"{job.like} {row.system}", steps=1))
        found.scores[place] = job.identity


def _measured(spec: Spec) -> list[Condition]:
    """The conditions under which anything is measured."""
    return [c for c in spec.conditions.values() if any(spec.columns[title].metric for title in c.columns)]


def _weights(
    found: Plan, spec: Spec, row: Row, around: tuple[Sequence[str], Sequence[str]], trained: dict[str, Job]
) -> Job | None:
    """The job that trains the row's weights, entered with its earlier stages; None if they are shipped."""
    if row.weights == "shipped":
        return None
    source = row if row.weights == "own" else spec.rows[row.weights]
    if source.weights != "own":
        return _weights(found, spec, source, around, trained)
    if source.name not in trained:
        common, where = around
        words, prepared = _prepared(found, spec, merged([*common, *spec.words_of("train", source), *where]), where)
        with composed("train", words) as cfg:
            stages, like = fit.planned(cfg), _like(cfg)
        for stage in stages:
            job = Job(
                identity=stage.identity,
                kind=stage.name,
                folder=str(stage.folder),
                words=("train", *words, f"stage={stage.name}"),
                needs=(*stage.parents, *prepared),
                like=f"{stage.name} {like}",
                steps=int(stage.node["trainer"]["max_steps"]),
            )
            found.jobs.setdefault(job.identity, job)
            trained[source.name] = job
    return trained[source.name]


def _prepared(
    found: Plan, spec: Spec, words: Sequence[str], where: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words with folders in the place of "prepared:NAME", and the identities of the images that are there."""
    needs: list[str] = []
    for name, own in spec.prepare.items():
        if not any(f"prepared:{name}" in word for word in words):
            continue
        with composed("data", [*own, "output=''"]) as cfg:
            images, like, count = negatives.planned(cfg), f"{IMAGES} {cfg.crop}", int(cfg.count)
        folder = _store(where) / f"{name}-{images.identity}"
        job = Job(
            identity=images.identity,
            kind=IMAGES,
            folder=str(folder),
            words=("data", *own, f"output='{folder}'", "progress=false"),
            like=like,
            steps=count,
        )
        found.jobs.setdefault(job.identity, job)
        needs.append(job.identity)
        words = [word.replace(f"prepared:{name}", f"'{folder}'") for word in words]
    return tuple(words), tuple(needs)


def _store(where: Sequence[str]) -> Path:
    """The folder of what is made, from the words that say where it is."""
    places = dict(word.split("=", maxsplit=1) for word in where if word.startswith(("runs_dir=", "name=")))
    return Path(places["runs_dir"].strip("'")) / places["name"]


def _scores(
    spec: Spec,
    row: Row,
    condition: Condition,
    around: tuple[Sequence[str], Sequence[str]],
    weights: Job | None,
    *,
    more: Sequence[str] = (),
) -> Job:
    """The job that measures a row under a condition; `more` are words behind all others."""
    common, where = around
    metrics = ("metrics=paper",) if spec.scale == "full" else ()
    words = merged([*common, *metrics, *spec.words_of("evaluate", row, condition), *where, *more])
    with composed("evaluate", words) as cfg:
        scores = evaluate.planned(cfg, weights=weights.identity if weights else None)
        like, steps = _like(cfg), int(cfg.sampler.steps)
    trained = [f"weights='{weights.folder}'"] if weights else []
    return Job(
        identity=scores.identity,
        kind=SCORES,
        folder=str(scores.folder),
        words=("evaluate", *merged([*words, *trained])),
        needs=(weights.identity,) if weights else (),
        like=f"{SCORES} {like}",
        steps=steps,
    )


def _description(spec: Spec, row: Row, around: tuple[Sequence[str], Sequence[str]]) -> Job:
    """The job that counts a row's parameters; it knows no seed and no folder."""
    common, where = around
    words = merged(word for word in (*common, *spec.words_of("describe", row)) if not word.startswith("seed="))
    with composed("describe", words) as cfg:
        name = describe.planned(cfg)
    folder = _store(where) / f"{DESCRIPTION}-{name}"
    return Job(
        identity=name,
        kind=DESCRIPTION,
        folder=str(folder),
        words=("describe", *words, f"run_dir='{folder}'", "format=json"),
        like=DESCRIPTION,
    )


def _like(cfg: Any) -> str:
    """What makes a job about as fast as another: its parts, sizes and batch."""
    chosen = cfg.hydra.runtime.choices
    parts = [chosen[group] for group in ("method", "backbone", "adaptor", "eval_data") if group in chosen]
    return " ".join([*map(str, parts), str(cfg.crop), str(cfg.batch_size)])


@contextmanager
def composed(verb: str, words: Sequence[str]) -> Iterator[Any]:
    """The config of a verb, inside a running Hydra; its node `hydra` is in reach of interpolations.

    Composing takes half a second, so what differs in its seed alone is composed once.

    Raises:
        ValueError: if its parts have no meaning together.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    own = HydraConfig.instance().cfg
    known = _composed.setdefault(GlobalHydra.instance().hydra, {})
    seeds = [word for word in words if word.startswith("seed=")]
    key = (verb, bool(seeds), *(word for word in words if word not in seeds))
    try:
        if key not in known:
            known[key] = _compose(verb, words)
        cfg = known[key]
        if seeds:
            cfg.seed = int(seeds[-1].partition("=")[2])
        HydraConfig.instance().set_config(cfg)
        yield cfg
    finally:
        HydraConfig.instance().cfg = own


_composed: WeakKeyDictionary[Any, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()  # by the Hydra that composed


def _compose(verb: str, words: Sequence[str]) -> Any:
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    cfg = compose(config_name=verb, overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    pairs.check(cfg)
    return cfg
