"""Restoring a person's own files: photographs in, photographs out, each written whole or not at all.

What is done is written down beside the results (`.restored/`, one file an image): the same command does nothing twice,
continues where it was stopped, and tries again what failed; another command, or another photograph of the same name,
restores anew. `restored.csv` sums it up. Images are shared by processes as system/processes.py says.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.data.frames import describe_frames, take_frames
from restore_lab.data.image_io import BadImage
from restore_lab.data.photograph import ENDINGS, Photograph, decode_photograph
from restore_lab.data.photograph_file import encode_photograph
from restore_lab.data.sources.folder import FolderSource
from restore_lab.data.word_table import Words, WordTable
from restore_lab.inference.files import (
    NOTES_FOLDER,
    ImageJob,
    build_note,
    is_done,
    output_files,
    refuse_clashes,
    refuse_foreign,
    result_names,
    write_note,
    write_summary,
)
from restore_lab.inference.restorer import Restorer, output_size
from restore_lab.storage.artefact import identity, place_of
from restore_lab.storage.free_space import require
from restore_lab.storage.outputs import write_output
from restore_lab.system.faults import Fault, describe_fault
from restore_lab.system.processes import merge_lock, own_parts

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.inference.result import Restoration
    from restore_lab.types import Batch

log = logging.getLogger(__name__)
# What a result depends on; where it is written and what is written beside it changes nothing.
_IDENTITY_KEYS = ("module", "upscale", "size", "seed", "seeds")
_SIZE_SAMPLES = 200  # files, for how much room their results will take


@dataclass(kw_only=True)
class FolderReport:
    """How a run over images went: how many were written, where, how many were there, one line for each left out."""

    output: Path
    written: int = 0
    skipped: int = 0
    bad: list[str] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)  # of the files that have several, of which one was restored


def restore_folder(cfg: DictConfig) -> FolderReport:
    """Restore every image of `cfg.input`, or this process's share of them.

    Raises:
        ValueError: if there is no such input, two results would have one name, a result would be written over an
            input, nothing can be written, or no image can be restored.
    """
    done = FolderReport(output=Path(cfg.output).expanduser())
    if cfg.format not in ("same", *ENDINGS):
        raise ValueError(f"format={cfg.format!r} is not known; one of same, {', '.join(ENDINGS)}")
    jobs = _list_jobs(cfg, done.output)
    refuse_clashes(jobs, cfg, done.output)
    settings = _settings_identity(cfg)
    todo = own_parts(len(jobs), done=lambda index: not cfg.again and is_done(jobs[index], settings, cfg, done.output))
    refuse_foreign([jobs[n] for n in todo], cfg, done.output)
    require(done.output, needed=_estimate_bytes(cfg, [jobs[n].file for n in todo]), what=f"{len(todo)} results")
    restorer = Restorer(cfg)
    done.skipped = len(own_parts(len(jobs), done=lambda index: False)) - len(todo)
    if todo and "captioner" in cfg.prompt.semantic:
        from restore_lab.inference.captioning import caption_ahead, find_captioners

        find_captioners(cfg.prompt.semantic)
        prompts = [restorer.module.conditioner.prompts]
        caption_ahead(restorer.module, prompts, _caption_batches(restorer, [jobs[n] for n in todo]))
    began = time.monotonic()
    for count, index in enumerate(todo):
        job = jobs[index]
        try:
            _restore(restorer, job, settings, done, cfg)
        except BadImage as error:
            done.bad.append(str(error))
            log.warning("left out: %s", error)
            write_note(job.note, {"file": str(job.file), "error": str(error)})
            continue
        if len(jobs) > 1:
            left = (time.monotonic() - began) / (count + 1) * (len(todo) - count - 1)
            log.info(
                "%d of %d: %s%s",
                index + 1,
                len(jobs),
                job.key,
                f" ({_format_duration(left)} left)" if left >= 1 else "",
            )
    if frames := describe_frames(done.frames):
        log.warning("%s", frames)
    with merge_lock(done.output / NOTES_FOLDER):
        write_summary(jobs, done.output)
    if len(done.bad) == len(jobs):
        raise ValueError(f"{cfg.input}: none of {len(jobs)} images could be restored; the first: {done.bad[0]}")
    return done


def _list_jobs(cfg: DictConfig, output: Path) -> list[ImageJob]:
    """All images, in the order of their names."""
    source = FolderSource(cfg.input, recursive=cfg.recursive, captions="auto", role="lq")
    keys, table = source.keys(), None if cfg.words is None else WordTable(cfg.words)
    jobs = []
    for index, (key, named) in enumerate(zip(keys, result_names(keys, cfg), strict=True)):
        name = source.name(index)
        said = Words() if table is None else table.of(name)
        beside = source.caption(index) or None
        words = Words(caption=said.caption or cfg.caption or beside, instruction=said.instruction)
        note = output / NOTES_FOLDER / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
        jobs.append(ImageJob(file=source.file(index), key=key, name=named, words=words, note=note))
    if table is not None:
        table.require_any(source.name(index) for index in range(len(keys)))
    return jobs


def _estimate_bytes(cfg: DictConfig, files: Sequence[Path]) -> int:
    """About what the results will take: from the sizes in some of the files' headers, and rather too little."""
    from PIL import Image

    pixels, some = 0, files[:: max(1, len(files) // _SIZE_SAMPLES)]
    for file in some:
        with (
            contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError),
            Image.open(file) as image,
        ):
            height, width = output_size(image.size[::-1], cfg.upscale, cfg.size)
            pixels += height * width
    kept = 0.2 if cfg.format in ("jpeg", "webp", "same") else 1.0  # bytes a pixel
    pictures = cfg.seeds * kept + (cfg.seeds > 1) + 2 * bool(cfg.compare)
    return int(pixels * pictures * len(files) / max(1, len(some)))


def _restore(restorer: Restorer, job: ImageJob, settings: str, done: FolderReport, cfg: DictConfig) -> None:
    """Restore one image, write its files, and then the note that says so.

    Raises:
        BadImage: it cannot be restored.
        Fault: its results cannot be written.
    """
    photograph, source = _read(job)
    frames = take_frames().get(str(job.file), 1)
    if frames > 1:
        done.frames[str(job.file)] = frames
    restoration = restorer(_resize(restorer, photograph, job), **_call_arguments(job))
    try:
        outputs = _write(restoration, job, done.output, cfg)
        write_note(job.note, build_note(restoration, job, settings, source, outputs, done.output, frames=frames))
    except OSError as error:
        why = describe_fault(error, where=done.output)
        if why is None:  # a name that cannot be, a folder that may not be written to: the same command would fail again
            raise
        raise Fault(f"{why}; the same command continues from {job.key}") from error
    done.written += 1
    log.info("%s", outputs[0])


def _resize(restorer: Restorer, photograph: Photograph, job: ImageJob) -> Photograph:
    """The photograph in the size at which it is restored.

    Raises:
        BadImage: it is too large, under its own name.
    """
    try:
        return restorer.prepare(photograph)
    except BadImage as error:
        raise BadImage(str(error).replace("the image", job.key, 1)) from error


def _call_arguments(job: ImageJob) -> dict[str, Any]:
    """The restorer's arguments for an image that has its size already."""
    return {"caption": job.words.caption or "", "instruction": job.words.instruction, "upscale": 1.0}


def _read(job: ImageJob) -> tuple[Photograph, str]:
    """The photograph, and the hash of its file."""
    try:
        data = job.file.read_bytes()
    except OSError as error:
        raise BadImage(f"{job.file}: {error.strerror or error}") from error
    return decode_photograph(data, name=job.file), hashlib.sha256(data).hexdigest()


def _caption_batches(restorer: Restorer, jobs: Sequence[ImageJob]) -> Iterator[Batch]:
    """The images that can be restored, as a captioner will see them; the others are named when their turn comes."""
    from restore_lab.methods.pipeline import captioning_batches

    for job in jobs:
        try:
            lq = _resize(restorer, _read(job)[0], job)
        except BadImage:
            continue
        words = {"caption": job.words.caption, "instruction": job.words.instruction}
        yield from captioning_batches(restorer.module, restorer.batch(lq, **words, seed=restorer.cfg.seed, key=job.key))


def _write(restoration: Restoration, job: ImageJob, output: Path, cfg: DictConfig) -> list[Path]:
    """Write all files of an image; the restored images come first."""
    files = output_files(job, cfg, output, restoration.lq.format)
    written = []
    for file, variant in zip(files, range(len(restoration)), strict=False):
        write_output(file, encode_photograph(restoration.photograph(variant), file, quality=cfg.quality))
        written.append(file)
    for file in files[len(restoration) :]:
        picture = restoration.comparison() if file.stem.endswith("_compare") else restoration.uncertainty_map()
        write_output(file, encode_photograph(picture, file))
        written.append(file)
    return written


def _settings_identity(cfg: DictConfig) -> str:
    """The identity of everything but the image and its words that a result depends on."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    weights = None if cfg.weights is None else place_of(cfg.weights)
    counted = {key: plain[key] for key in _IDENTITY_KEYS} | {"quantised": plain["memory"].get("weights")}
    if weights is not None and weights.exists():
        counted["weights"] = str(weights)
    return identity(counted)


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
