"""Prerequisites of a table's jobs: trainings, captions, negative-quality images.

"made:NAME" in a composed config refers to the output of `makes.NAME` of that config: a verb and its words, such as
[caption, data=lsdir] (conf/sizes/full_*.yaml, an experiment). The planned job gets the output's path instead and
depends on its job; jobs with the same prerequisite share one artefact (restore_lab/storage/named.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from restore_lab.data.sources.named_dataset import dataset_paths
from restore_lab.inference import captioning
from restore_lab.launch.job import CAPTIONS, IMAGES, Job
from restore_lab.prepare import negatives
from restore_lab.storage.named import PREREQUISITE
from restore_lab.tables.job_config import job_config
from restore_lab.tables.jobs import Plan
from restore_lab.tables.spec import merge
from restore_lab.training import run

Around = tuple[Sequence[str], Sequence[str]]  # words before and after a row's own: what to compose, and its paths
# Settings of a verb that may name a prerequisite.
INPUT_SETTINGS = {"train": ("data", "first_data", "weights"), "evaluate": ("eval_data",)}


def training_job(plan: Plan, words: Sequence[str], around: Around) -> Job:
    """The job of a training's last stage, added to the plan with its earlier stages and their prerequisites.

    Args:
        plan: takes the jobs.
        words: overrides of `restore-lab train`.
        around: see `Around`.
    """
    more, needs = place_overrides(plan, "train", words, around)
    words = merge([*words, *more])
    with job_config("train", words) as cfg:
        stages, like = run.planned(cfg), like_of(cfg)
    job = None
    for stage in stages:
        if stage.debug:
            raise ValueError(f"{stage.debug}: a debug run leaves no weights to measure")
        job = Job(
            identity=stage.identity,
            kind=stage.name,
            folder=str(stage.folder),
            words=("train", *words, f"stage={stage.name}", "keep_state=false"),  # training never continues from a row
            needs=(*stage.parents, *needs),
            like=f"{stage.name} {like}",
            steps=stage.steps,
        )
        plan.jobs.setdefault(job.identity, job)
    assert job is not None
    return job


def place_overrides(plan: Plan, verb: str, words: Sequence[str], around: Around) -> tuple[list[str], list[str]]:
    """Overrides that replace each "made:NAME" in a job's config by its path, and the identities of those artefacts.

    Raises:
        ValueError: if `makes` lacks a name.
    """
    with job_config(verb, words) as cfg:
        makes: Any = OmegaConf.to_container(cfg.makes, resolve=True) if cfg.makes else {}
        read = [key for key in INPUT_SETTINGS[verb] if OmegaConf.is_config(cfg.get(key)) or makes]
        plain = {key: _plain(cfg.get(key), resolve=False) for key in read}
        table = next(word.partition("=")[2] for word in around[0] if word.startswith("experiment="))
        plan.data.setdefault(table, {}).update(dataset_paths([_plain(cfg.get(key), resolve=True) for key in read]))
    wanted = dict(_references(plain)) if makes else {}
    places, needs = [], []
    for key, text in wanted.items():
        name = text.removeprefix(PREREQUISITE)
        if name not in makes:
            raise ValueError(f"{key}={text}: `makes` of the config has no {name!r}; it has {', '.join(makes)}")
        job, place = _maker(plan, *makes[name], around=around)
        places.append(f"{key}='{PREREQUISITE}{place}'")
        needs.append(job.identity)
    return places, list(dict.fromkeys(needs))


def negative_images(plan: Plan, own: Sequence[str], around: Around) -> Job:
    """The job of `restore-lab data` with these words, added to the plan."""
    data = _starting(around, "datasets_dir=")
    with job_config("data", [*own, *data, "output=made"]) as cfg:
        planned, like, count = negatives.planned(cfg), f"{IMAGES} {cfg.crop}", int(cfg.count)
    folder = store(around) / f"negatives-{planned.identity}"
    job = Job(
        identity=planned.identity,
        kind=IMAGES,
        folder=str(folder),
        words=("data", *own, *data, f"output='{folder}'", "progress=false"),
        like=like,
        steps=count,
    )
    plan.jobs.setdefault(job.identity, job)
    return job


def captions(plan: Plan, own: Sequence[str], around: Around) -> Job:
    """The job of `restore-lab caption` with these words, added to the plan."""
    words = [*own, *_starting(around, "datasets_dir=", "runs_dir=")]
    with job_config("caption", words) as cfg:
        planned, like = captioning.planned(cfg), f"{CAPTIONS} {cfg.prompt.semantic.captioner.model}"
    folder = store(around) / f"{CAPTIONS}-{planned.identity}"
    job = Job(
        identity=planned.identity,
        kind=CAPTIONS,
        folder=str(folder),
        words=("caption", *words, f"run_dir='{folder}'", "progress=false"),
        like=like,
    )
    plan.jobs.setdefault(job.identity, job)
    return job


def like_of(cfg: Any) -> str:
    """A key shared by jobs of similar cost: parts, crop and batch size."""
    chosen = cfg.hydra.runtime.choices
    parts = [chosen[group] for group in ("method", "backbone", "adaptor", "eval_data") if group in chosen]
    return " ".join([*map(str, parts), str(cfg.crop), str(cfg.batch_size)])


def store(around: Around) -> Path:
    """The folder of the artefacts, from the words that set it."""
    places = dict(word.split("=", maxsplit=1) for word in around[1] if word.startswith(("runs_dir=", "name=")))
    return Path(places["runs_dir"].strip("'")) / places["name"]


def _maker(plan: Plan, verb: str, *own: str, around: Around) -> tuple[Job, str]:
    """The job of a verb and its words, and the file or folder that others read."""
    if verb == "caption":
        job = captions(plan, own, around)
        return job, f"{job.folder}/{captioning.TABLE}"
    if verb == "data":
        job = negative_images(plan, own, around)
    elif verb == "train":
        common, where = around
        job = training_job(plan, merge([*(w for w in common if not w.startswith("experiment=")), *own, *where]), around)
    else:
        raise ValueError(f"makes: {verb!r} makes nothing that a table knows; one of caption, data, train")
    return job, job.folder


def _plain(node: Any, *, resolve: bool) -> Any:
    return OmegaConf.to_container(node, resolve=resolve) if OmegaConf.is_config(node) else node


def _starting(around: Around, *starts: str) -> list[str]:
    return [word for word in around[1] if word.startswith(starts)]


def _references(node: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """The values "made:NAME" by dotted key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _references(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, str) and node.startswith(PREREQUISITE):
        yield place, node
