"""Prerequisites of a table's jobs: trainings, captions, negative-quality images.

"made:NAME" in a composed config refers to the output of `makes.NAME` of that config: a verb and its words, such as
[caption, data=lsdir] (conf/method/*/full.yaml, an experiment). The planned job gets the output's path instead and
depends on its job; jobs with the same prerequisite share one artefact (restore_lab/storage/named.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from restore_lab.data.sources.named_dataset import dataset_paths
from restore_lab.inference.captioning import TABLE, plan_captions
from restore_lab.launch.job import Job
from restore_lab.prepare.negatives import plan_negatives
from restore_lab.storage.artefact import CAPTIONS, IMAGES, Artefact
from restore_lab.storage.named import PREREQUISITE
from restore_lab.tables.job_config import job_config
from restore_lab.tables.jobs import Plan
from restore_lab.tables.spec import Scale, merge
from restore_lab.training.run import plan_training

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Settings of a verb that may name a prerequisite.
INPUT_SETTINGS = {"train": ("data", "first_data", "weights"), "evaluate": ("eval_data",)}


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """What the jobs of a table have in common at one seed.

    Attributes:
        table: its name.
        scale, seed: of the jobs.
        store: folder of the artefacts.
        words: overrides for every job, after the row's own.
    """

    table: str
    scale: Scale
    seed: int
    store: Path
    words: Sequence[str]

    def overrides(self, own: Sequence[str], *, experiment: bool = True) -> tuple[str, ...]:
        """All overrides of a job.

        Args:
            own: the row's.
            experiment: with the table's experiment; False for an artefact that tables share.
        """
        first = [f"experiment={self.table}"] if experiment else []
        return merge([*first, f"scale={self.scale}", f"seed={self.seed}", *own, *self.last_overrides()])

    def last_overrides(self, *keys: str) -> list[str]:
        """The overrides after a row's own; only those of `keys` if any are given."""
        places = (f"runs_dir='{self.store.parent}'", f"name={self.store.name}", "progress=false")
        return [word for word in (*places, *self.words) if not keys or word.partition("=")[0] in keys]

    def in_store(self, artefact: Artefact, prefix: str) -> Artefact:
        """The artefact, in the store's folder `<prefix>-<identity>`."""
        return replace(artefact, folder=self.store / f"{prefix}-{artefact.identity}")


def training_job(plan: Plan, words: Sequence[str], context: JobContext) -> Job:
    """The job of a training's last stage, added to the plan with its earlier stages and their prerequisites.

    Args:
        plan: gets the jobs.
        words: overrides of `restore-lab train`.
        context: of the table.
    """
    places, needs = place_overrides(plan, "train", words, context)
    words = merge([*words, *places])
    with job_config("train", words) as cfg:
        stages, like = plan_training(cfg), like_of(cfg)
    job = None
    for stage in stages:
        if stage.debug:
            raise ValueError(f"{stage.debug}: a debug run leaves no weights to measure")
        job = Job(
            artefact=stage,
            words=("train", *words, f"stage={stage.kind}", "keep_state=false"),  # no training continues from a row
            needs=(*stage.parents, *needs),
            like=f"{stage.kind} {like}",
            steps=stage.steps,
        )
        plan.add(job)
    assert job is not None
    return job


def place_overrides(plan: Plan, verb: str, words: Sequence[str], context: JobContext) -> tuple[list[str], list[str]]:
    """Overrides that replace each "made:NAME" in a job's config by its path, and the identities of those artefacts.

    Raises:
        ValueError: if `makes` lacks a name.
    """
    with job_config(verb, words) as cfg:
        makes: Any = OmegaConf.to_container(cfg.makes, resolve=True) if cfg.makes else {}
        keys = [key for key in INPUT_SETTINGS[verb] if OmegaConf.is_config(cfg.get(key)) or makes]
        inputs = {key: _plain(cfg.get(key), resolve=False) for key in keys}
        datasets = dataset_paths([_plain(cfg.get(key), resolve=True) for key in keys])
        plan.data.setdefault(context.table, {}).update(datasets)
    places: list[str] = []
    needs: dict[str, None] = {}
    for key, text in dict(_references(inputs)).items() if makes else ():
        name = text.removeprefix(PREREQUISITE)
        if name not in makes:
            raise ValueError(f"{key}={text}: `makes` of the config has no {name!r}; it has {', '.join(makes)}")
        job, place = _prerequisite(plan, *makes[name], context=context)
        places.append(f"{key}='{PREREQUISITE}{place}'")
        needs[plan.add(job)] = None
    return places, list(needs)


def like_of(cfg: DictConfig) -> str:
    """A key shared by jobs of similar cost: parts, crop and batch size."""
    chosen = cfg.hydra.runtime.choices
    parts = [chosen[group] for group in ("method", "backbone", "adaptor", "eval_data") if group in chosen]
    return " ".join([*map(str, parts), str(cfg.crop), str(cfg.batch_size)])


def _prerequisite(plan: Plan, verb: str, *own: str, context: JobContext) -> tuple[Job, Path]:
    """The job of a verb and its words, and the file or folder that others read."""
    if verb == "caption":
        job = _captions_job(own, context)
        return job, job.artefact.folder / TABLE
    if verb == "data":
        job = _negatives_job(own, context)
    elif verb == "train":
        job = training_job(plan, context.overrides(own, experiment=False), context)
    else:
        raise ValueError(f"makes: {verb!r} makes nothing that a table knows; one of caption, data, train")
    return job, job.artefact.folder


def _negatives_job(own: Sequence[str], context: JobContext) -> Job:
    """The job of `restore-lab data` with these words."""
    words = [*own, *context.last_overrides("datasets_dir")]
    with job_config("data", [*words, "output=made"]) as cfg:
        images = context.in_store(plan_negatives(cfg), "negatives")
        like, count = f"{IMAGES} {cfg.crop}", int(cfg.count)
    words = ["data", *words, f"output='{images.folder}'", "progress=false"]
    return Job(artefact=images, words=tuple(words), like=like, steps=count)


def _captions_job(own: Sequence[str], context: JobContext) -> Job:
    """The job of `restore-lab caption` with these words."""
    words = [*own, *context.last_overrides("datasets_dir", "runs_dir")]
    with job_config("caption", words) as cfg:
        captions = context.in_store(plan_captions(cfg), CAPTIONS)
        like = f"{CAPTIONS} {cfg.prompt.semantic.captioner.model}"
    words = ["caption", *words, f"run_dir='{captions.folder}'", "progress=false"]
    return Job(artefact=captions, words=tuple(words), like=like)


def _plain(node: Any, *, resolve: bool) -> Any:
    return OmegaConf.to_container(node, resolve=resolve) if OmegaConf.is_config(node) else node


def _references(node: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """The values "made:NAME" by dotted key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _references(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, str) and node.startswith(PREREQUISITE):
        yield place, node
