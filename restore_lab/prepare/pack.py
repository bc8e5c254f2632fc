"""Write a data source as WebDataset shards: `restore-lab data pack data=folder data.root=photos output=shards`.

Shard n has the samples from n * shard_size on, in the source's order: `key.png` (for pairs `key.hq.png`, `key.lq.png`),
`key.txt` (the caption, if there is one) and `key.json` (key, height, width). Images that cannot be read are logged and
skipped. The bytes are deterministic. Shards are distributed over processes (system/processes.py) and written
atomically, so that a command can be resumed.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from restore_lab.config.build import build
from restore_lab.data.frames import describe_frames, take_frames
from restore_lab.data.image_io import BadImage
from restore_lab.data.sources.tar_index import index_of, tar_name
from restore_lab.storage.artefact import SHARDS, Artefact, Manifest
from restore_lab.storage.atomic import write_json_atomic
from restore_lab.storage.identity import identity, plain_settings
from restore_lab.storage.outputs import take_folder
from restore_lab.system.faults import name_errors
from restore_lab.system.processes import merge_lock, own_parts, rank_and_world

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.data.dataset import Source
    from restore_lab.types import Picture

log = logging.getLogger(__name__)
SHARD_KEYS = ("data", "shard_size", "images", "quality", "samples")
HIDDEN = ".index"  # folder of the manifest: the identity of a source of shards is the content of its tars only
UNFINISHED = "unfinished.json"
IMAGE_FORMATS = ("png", "webp", "jpg")  # png and webp are lossless


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """A folder of shards; `samples` is None while other processes are writing to it."""

    output: Path
    shards: int
    samples: int | None


def plan_shards(cfg: DictConfig) -> Artefact:
    """The shards of `pack`; the manifest is in a hidden folder of `cfg.output`."""
    settings = plain_settings(cfg, SHARD_KEYS)
    return Artefact(kind=SHARDS, identity=identity(settings), folder=Path(cfg.output) / HIDDEN, settings=settings)


def pack(cfg: DictConfig) -> PackReport:
    """Write the missing shards of `cfg.data` to `cfg.output`.

    Raises:
        ValueError: for a folder with shards of other data.
    """
    from tqdm import tqdm

    shards, folder = plan_shards(cfg), Path(cfg.output)
    source: Source = build(cfg.data)
    total = len(source) if cfg.samples is None else min(cfg.samples, len(source))
    count = -(-total // cfg.shard_size)
    tars = [folder / f"{number:06d}.tar" for number in range(count)]

    def done(number: int) -> bool:
        return tars[number].is_file()

    if not shards.is_complete():
        _claim(folder, shards)
        missing = own_parts(count, done=done)
        for number in tqdm(missing, desc="shards", disable=not cfg.progress or rank_and_world()[0] > 0):
            first = number * cfg.shard_size
            pictures = _pictures(source, range(first, min(first + cfg.shard_size, total)))
            write_shard(tars[number], pictures, images=cfg.images, quality=cfg.quality)
            index_of(tars[number])
        if frames := describe_frames(take_frames()):
            log.warning("%s", frames)
    with merge_lock(shards.folder):
        if not shards.is_complete() and all(done(number) for number in range(count)):
            packed = sum(len(index_of(tar).keys) for tar in tars)
            shards.finish(samples=packed, left_out=total - packed)
            for left in (shards.folder / UNFINISHED, *folder.glob(".*.part")):
                left.unlink(missing_ok=True)
    samples = Manifest.read(shards.folder).extra["samples"] if shards.is_complete() else None
    return PackReport(output=folder, shards=count, samples=samples)


def write_shard(tar: Path, pictures: Iterator[Picture], *, images: str, quality: int) -> None:
    """Write one tar atomically.

    Raises:
        ValueError: if there are no images for it.
    """
    tar.parent.mkdir(parents=True, exist_ok=True)
    part, count = tar.with_name(f".{tar.name}.{os.getpid()}.part"), 0
    try:
        with name_errors(tar), open(part, "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as members:
                for picture in pictures:
                    count += 1
                    for kind, data in _members(picture, images=images, quality=quality):
                        entry = tarfile.TarInfo(f"{tar_name(picture.key)}.{kind}")
                        entry.size = len(data)
                        members.addfile(entry, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        if not count:
            raise ValueError(f"{tar}: none of its images can be read; a larger shard_size makes shards of others too")
        os.replace(part, tar)
    finally:
        part.unlink(missing_ok=True)


def _members(picture: Picture, *, images: str, quality: int) -> Iterator[tuple[str, bytes]]:
    """The members of one sample: kind and bytes."""
    there = {"hq": picture.hq_HWC, "lq": picture.lq_HWC}
    pair = all(image is not None for image in there.values())
    for side, image_HWC in there.items():
        if image_HWC is not None:
            yield (f"{side}.{images}" if pair else images), _encoded(image_HWC, images, quality)
    if picture.caption:
        yield "txt", picture.caption.encode("utf-8", "replace")
    height, width = next(image.shape[:2] for image in there.values() if image is not None)
    yield "json", json.dumps({"key": picture.key, "height": height, "width": width}).encode()


def _encoded(image_HWC: np.ndarray, images: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    settings = {"png": {}, "webp": {"lossless": True}, "jpg": {"quality": quality, "subsampling": 0}}[images]
    Image.fromarray(image_HWC).save(buffer, format="JPEG" if images == "jpg" else images.upper(), **settings)
    return buffer.getvalue()


def _pictures(source: Source, indices: range) -> Iterator[Picture]:
    """The readable images; errors of the others are logged."""
    for index in indices:
        try:
            yield source.read(index, epoch=0)
        except BadImage as error:
            log.warning("left out: %s", error)


def _claim(folder: Path, shards: Artefact) -> None:
    """Mark the folder with the identity of its shards, so that shards of different sources are never mixed.

    Raises:
        ValueError: if the folder has other shards.
    """
    claim = shards.folder / UNFINISHED
    with merge_lock(shards.folder):
        if shards.is_complete():  # another process may have completed them meanwhile
            return
        take_folder(folder, setting="output")
        own = claim.is_file() and shards.identity in claim.read_text(encoding="utf-8")
        if not own and (claim.is_file() or any(folder.glob("*.tar"))):
            raise ValueError(f"{folder} holds shards of something else; choose another output, or delete it")
        write_json_atomic(claim, {"identity": shards.identity})
