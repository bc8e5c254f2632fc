"""Restores the images of a folder; every output file is written atomically.

Notes next to the results (`.restored/`, one file per image) record what is done: the same command skips restored
images, continues after an interruption and retries failures; after a change of the settings or of the photograph, an
image is restored again. `restored.csv` is the summary. system/processes.py divides the images among processes.
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
from restore_lab.data.photograph import Photograph, decode_photograph
from restore_lab.data.photograph_file import encode_photograph
from restore_lab.data.sources.folder import FolderSource
from restore_lab.data.word_table import PromptRow, WordTable
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
from restore_lab.storage.free_space import require
from restore_lab.storage.identity import identity
from restore_lab.storage.outputs import write_output
from restore_lab.storage.paths import place_of
from restore_lab.system.faults import Fault, describe_fault
from restore_lab.system.processes import merge_lock, own_parts

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.inference.result import Restoration
    from restore_lab.types import Batch

log = logging.getLogger(__name__)
# The settings that a result depends on; output paths and additional files are not among them.
_IDENTITY_KEYS = ("module", "upscale", "size", "seed", "seeds")
_SIZE_SAMPLES = 200  # files whose size is read to estimate the disk space


@dataclass(kw_only=True)
class FolderReport:
    """The result of restoring a folder.

    Attributes:
        output: the output folder.
        written: number of images restored now.
        skipped: number of images restored before.
        bad: one line per image that could not be restored.
        frames: number of frames of each file with several; the first one is restored.
    """

    output: Path
    written: int = 0
    skipped: int = 0
    bad: list[str] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)


def restore_folder(cfg: DictConfig) -> FolderReport:
    """Restore the images of `cfg.input`, in several processes this process's share.

    Raises:
        ValueError: if the input does not exist, results clash with each other or with an input, the output cannot be
            written, or no image can be restored.
    """
    report = FolderReport(output=Path(cfg.output).expanduser())
    jobs = _list_jobs(cfg, report.output)
    refuse_clashes(jobs, cfg, report.output)
    settings = _settings_identity(cfg)
    todo = own_parts(len(jobs), done=lambda index: not cfg.again and is_done(jobs[index], settings, cfg, report.output))
    refuse_foreign([jobs[n] for n in todo], cfg, report.output)
    require(report.output, needed=_estimate_bytes(cfg, [jobs[n].file for n in todo]), what=f"{len(todo)} results")
    restorer = Restorer(cfg)
    report.skipped = len(own_parts(len(jobs), done=lambda index: False)) - len(todo)
    if todo and "captioner" in cfg.prompt.semantic:
        from restore_lab.inference.captioning import caption_ahead, find_captioners

        find_captioners(cfg.prompt.semantic)
        prompts = [restorer.module.conditioner.prompts]
        caption_ahead(restorer.module, prompts, _caption_batches(restorer, [jobs[n] for n in todo]))
    start = time.monotonic()
    for count, index in enumerate(todo):
        job = jobs[index]
        try:
            _restore(restorer, job, settings, report, cfg)
        except BadImage as error:
            report.bad.append(str(error))
            log.warning("left out: %s", error)
            write_note(job.note, {"file": str(job.file), "error": str(error)})
            continue
        if len(jobs) > 1:
            left = (time.monotonic() - start) / (count + 1) * (len(todo) - count - 1)
            time_left = f" ({_format_duration(left)} left)" if left >= 1 else ""
            log.info("%d of %d: %s%s", index + 1, len(jobs), job.key, time_left)
    if frames := describe_frames(report.frames):
        log.warning("%s", frames)
    with merge_lock(report.output / NOTES_FOLDER):
        write_summary(jobs, report.output)
    if len(report.bad) == len(jobs):
        raise ValueError(f"{cfg.input}: none of {len(jobs)} images could be restored; the first: {report.bad[0]}")
    return report


def _list_jobs(cfg: DictConfig, output: Path) -> list[ImageJob]:
    """All images, sorted by name."""
    source = FolderSource(cfg.input, recursive=cfg.recursive, captions="auto", role="lq")
    keys, table = source.keys(), None if cfg.words is None else WordTable(cfg.words)
    jobs = []
    for index, (key, result_name) in enumerate(zip(keys, result_names(keys, cfg), strict=True)):
        name = source.name(index)
        row = PromptRow() if table is None else table.of(name)
        words = PromptRow(
            caption=row.caption or cfg.caption or source.caption(index) or None, instruction=row.instruction
        )
        note = output / NOTES_FOLDER / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
        jobs.append(ImageJob(file=source.file(index), key=key, name=result_name, words=words, note=note))
    if table is not None:
        table.require_any(source.name(index) for index in range(len(keys)))
    return jobs


def _estimate_bytes(cfg: DictConfig, files: Sequence[Path]) -> int:
    """A low estimate of the results' size, from the image sizes in the headers of some files."""
    from PIL import Image

    pixels, sample = 0, files[:: max(1, len(files) // _SIZE_SAMPLES)]
    for file in sample:
        with (
            contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError),
            Image.open(file) as image,
        ):
            height, width = output_size(image.size[::-1], cfg.upscale, cfg.size)
            pixels += height * width
    bytes_per_pixel = 0.2 if cfg.format in ("jpeg", "webp", "same") else 1.0
    per_image = cfg.seeds * bytes_per_pixel + (cfg.seeds > 1) + 2 * bool(cfg.compare)
    return int(pixels * per_image * len(files) / max(1, len(sample)))


def _restore(restorer: Restorer, job: ImageJob, settings: str, report: FolderReport, cfg: DictConfig) -> None:
    """Restore one image, write its output files, and then its note.

    Raises:
        BadImage: if it cannot be restored.
        Fault: if its results cannot be written.
    """
    photograph, source = _read(job)
    frames = take_frames().get(str(job.file), 1)
    if frames > 1:
        report.frames[str(job.file)] = frames
    restoration = restorer(_resize(restorer, photograph, job), **_call_arguments(job))
    try:
        outputs = _write(restoration, job, report.output, cfg)
        write_note(job.note, build_note(restoration, job, settings, source, outputs, report.output, frames=frames))
    except OSError as error:
        fault = describe_fault(error, where=report.output)
        if fault is None:  # an invalid name or a read-only folder: the same command would fail again
            raise
        raise Fault(f"{fault}; the same command continues from {job.key}") from error
    report.written += 1
    log.info("%s", outputs[0])


def _resize(restorer: Restorer, photograph: Photograph, job: ImageJob) -> Photograph:
    """The photograph at the size at which it is restored.

    Raises:
        BadImage: if it is too large; the message names the file.
    """
    try:
        return restorer.prepare(photograph)
    except BadImage as error:
        raise BadImage(str(error).replace("the image", job.key, 1)) from error


def _call_arguments(job: ImageJob) -> dict[str, Any]:
    """The restorer's arguments for an image that is resized already."""
    return {"caption": job.words.caption or "", "instruction": job.words.instruction, "upscale": 1.0}


def _read(job: ImageJob) -> tuple[Photograph, str]:
    """The photograph and the hash of its file."""
    try:
        data = job.file.read_bytes()
    except OSError as error:
        raise BadImage(f"{job.file}: {error.strerror or error}") from error
    return decode_photograph(data, name=job.file), hashlib.sha256(data).hexdigest()


def _caption_batches(restorer: Restorer, jobs: Sequence[ImageJob]) -> Iterator[Batch]:
    """The images for the captioner, without those that cannot be read, which are reported when they are restored."""
    from restore_lab.methods.pipeline import captioning_batches

    for job in jobs:
        try:
            lq = _resize(restorer, _read(job)[0], job)
        except BadImage:
            continue
        words = {"caption": job.words.caption, "instruction": job.words.instruction}
        yield from captioning_batches(restorer.module, restorer.batch(lq, **words, seed=restorer.cfg.seed, key=job.key))


def _write(restoration: Restoration, job: ImageJob, output: Path, cfg: DictConfig) -> list[Path]:
    """Write all output files of an image, the restored images first."""
    files = output_files(job, cfg, output, restoration.lq.format)
    written = []
    for file, index in zip(files, range(len(restoration)), strict=False):
        write_output(file, encode_photograph(restoration.photograph(index), file, quality=cfg.quality))
        written.append(file)
    for file in files[len(restoration) :]:
        picture = restoration.comparison() if file.stem.endswith("_compare") else restoration.uncertainty_map()
        write_output(file, encode_photograph(picture, file))
        written.append(file)
    return written


def _settings_identity(cfg: DictConfig) -> str:
    """The identity of all that a result depends on besides the image and its prompts."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    weights = None if cfg.weights is None else place_of(cfg.weights)
    settings = {key: plain[key] for key in _IDENTITY_KEYS} | {"quantised": plain["memory"].get("weights")}
    if weights is not None and weights.exists():
        settings["weights"] = str(weights)
    return identity(settings)


def _format_duration(seconds: float) -> str:
    """A duration as "2 h 5 min", "5 min 3 s" or "3 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
