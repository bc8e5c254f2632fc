"""What a table makes first: trainings, captions, images of negative quality; and how a job's words name it.

"made:NAME" in a composed config stands for what `makes.NAME` of that config makes: a verb and its words, such as
[caption, data=lsdir] (conf/sizes/full_*.yaml, an experiment). The planned job gets the place in its stead and waits for
it; what is made is shared by all that name the same (restore_lab/storage/named.py).
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
from restore_lab.storage.named import MADE
from restore_lab.tables.compose import composed
from restore_lab.tables.jobs import Plan
from restore_lab.tables.spec import merged
from restore_lab.training import run

Around = tuple[Sequence[str], Sequence[str]]  # words before and behind a row's own: what to compose, where things lie
READ = {"train": ("data", "first_data", "weights"), "evaluate": ("eval_data",)}  # what a verb reads of what is made


def trained(found: Plan, words: Sequence[str], around: Around) -> Job:
    """The job of a training's last stage, entered with the earlier ones and with what they need.

    Args:
        found: where jobs are entered.
        words: of `restore-lab train`.
        around: see `Around`.
    """
    more, needs = made(found, "train", words, around)
    words = merged([*words, *more])
    with composed("train", words) as cfg:
        stages, like = run.planned(cfg), like_of(cfg)
    job = None
    for stage in stages:
        if stage.debug:
            raise ValueError(f"{stage.debug}: a debug run leaves no weights to measure")
        job = Job(
            identity=stage.identity,
            kind=stage.name,
            folder=str(stage.folder),
            words=("train", *words, f"stage={stage.name}", "keep_state=false"),  # no row is trained further
            needs=(*stage.parents, *needs),
            like=f"{stage.name} {like}",
            steps=stage.steps,
        )
        found.jobs.setdefault(job.identity, job)
    assert job is not None
    return job


def made(found: Plan, verb: str, words: Sequence[str], around: Around) -> tuple[list[str], list[str]]:
    """The words that put places into the config of a job for each "made:NAME" there, and the identities behind them.

    Raises:
        ValueError: if nothing makes a name.
    """
    with composed(verb, words) as cfg:
        makes: Any = OmegaConf.to_container(cfg.makes, resolve=True) if cfg.makes else {}
        read = [key for key in READ[verb] if OmegaConf.is_config(cfg.get(key)) or makes]
        plain = {key: _plain(cfg.get(key), resolve=False) for key in read}
        table = next(word.partition("=")[2] for word in around[0] if word.startswith("experiment="))
        found.data.setdefault(table, {}).update(dataset_paths([_plain(cfg.get(key), resolve=True) for key in read]))
    wanted = dict(_references(plain)) if makes else {}
    places, needs = [], []
    for key, text in wanted.items():
        name = text.removeprefix(MADE)
        if name not in makes:
            raise ValueError(f"{key}={text}: `makes` of the config has no {name!r}; it has {', '.join(makes)}")
        job, place = _maker(found, *makes[name], around=around)
        places.append(f"{key}='{MADE}{place}'")
        needs.append(job.identity)
    return places, list(dict.fromkeys(needs))


def negative_images(found: Plan, own: Sequence[str], around: Around) -> Job:
    """The job of `restore-lab data` with these words, entered."""
    data = _starting(around, "datasets_dir=")
    with composed("data", [*own, *data, "output=made"]) as cfg:
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
    found.jobs.setdefault(job.identity, job)
    return job


def captions(found: Plan, own: Sequence[str], around: Around) -> Job:
    """The job of `restore-lab caption` with these words, entered."""
    words = [*own, *_starting(around, "datasets_dir=", "runs_dir=")]
    with composed("caption", words) as cfg:
        planned, like = captioning.planned(cfg), f"{CAPTIONS} {cfg.prompt.semantic.captioner.model}"
    folder = store(around) / f"{CAPTIONS}-{planned.identity}"
    job = Job(
        identity=planned.identity,
        kind=CAPTIONS,
        folder=str(folder),
        words=("caption", *words, f"run_dir='{folder}'", "progress=false"),
        like=like,
    )
    found.jobs.setdefault(job.identity, job)
    return job


def like_of(cfg: Any) -> str:
    """What makes a job about as fast as another: its parts, sizes and batch."""
    chosen = cfg.hydra.runtime.choices
    parts = [chosen[group] for group in ("method", "backbone", "adaptor", "eval_data") if group in chosen]
    return " ".join([*map(str, parts), str(cfg.crop), str(cfg.batch_size)])


def store(around: Around) -> Path:
    """The folder of what is made, from the words that say where it is."""
    places = dict(word.split("=", maxsplit=1) for word in around[1] if word.startswith(("runs_dir=", "name=")))
    return Path(places["runs_dir"].strip("'")) / places["name"]


def _maker(found: Plan, verb: str, *own: str, around: Around) -> tuple[Job, str]:
    """The job that a verb and its words stand for, and the file or folder that is wanted of it."""
    if verb == "caption":
        job = captions(found, own, around)
        return job, f"{job.folder}/{captioning.TABLE}"
    if verb == "data":
        job = negative_images(found, own, around)
    elif verb == "train":
        common, where = around
        job = trained(found, merged([*(w for w in common if not w.startswith("experiment=")), *own, *where]), around)
    else:
        raise ValueError(f"makes: {verb!r} makes nothing that a table knows; one of caption, data, train")
    return job, job.folder


def _plain(node: Any, *, resolve: bool) -> Any:
    return OmegaConf.to_container(node, resolve=resolve) if OmegaConf.is_config(node) else node


def _starting(around: Around, *starts: str) -> list[str]:
    return [word for word in around[1] if word.startswith(starts)]


def _references(node: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """The values "made:NAME" by dotted place."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _references(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, str) and node.startswith(MADE):
        yield place, node
