"""Captions all images before any is restored, so that captioner and prior are never in GPU memory together.

Also `restore-lab caption`: a table of captions for a folder of images, made in parts, so that several processes share
the work and an interrupted command resumes.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from restore_lab.config.build import build
from restore_lab.data.frames import describe_frames, take_frames
from restore_lab.data.image_io import BadImage, read_image, resize_image, to_image, write_png
from restore_lab.data.sources.captions import read_table
from restore_lab.data.sources.folder import list_images
from restore_lab.prompts.vlm import Vlm
from restore_lab.storage.artefact import CAPTIONS, Artefact
from restore_lab.storage.atomic import json_bytes, write_json_atomic
from restore_lab.storage.identity import identity, plain_settings
from restore_lab.storage.outputs import require_free, take_folder, write_output
from restore_lab.system.processes import merge_lock, own_parts, rank_and_world

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.methods.module import RestorationModule
    from restore_lab.prompts.captioner import Captioner
    from restore_lab.prompts.slots import PromptSources
    from restore_lab.types import Batch

log = logging.getLogger(__name__)
TABLE = "captions.json"


def caption_ahead(module: RestorationModule, prompts: Sequence[PromptSources], batches: Iterable[Batch]) -> None:
    """Caption every image for each of the prompts whose semantic source is a `Vlm`; without one nothing is read.

    Args:
        module: the method, which reconstructs the LQ for a source that captions the reconstruction.
        prompts: get the captions.
        batches: all images that will be restored.
    """
    # Prompts that differ in other slots share one source.
    sources = list(dict.fromkeys(one.semantic for one in prompts if isinstance(one.semantic, Vlm)))
    if not sources:
        return
    with tempfile.TemporaryDirectory() as folder:
        keys: list[str] = []
        for batch in batches:
            for index, source in enumerate(sources):
                for number, image_CHW in enumerate(image_to_caption(module, source, batch).cpu(), start=len(keys)):
                    image_HWC = shrink(to_image(image_CHW), side=source.side)
                    write_png(Path(folder) / f"{index}-{number}.png", image_HWC)
            keys += batch.key
        device = module.device
        if module.stages is None:
            module.to("cpu")
        module.stage("none")
        for index, source in enumerate(sources):
            source.captions = dict(zip(keys, source.captioner.captions(_read(folder, index, len(keys))), strict=True))
            source.captioner.unload()
        if module.stages is None:
            module.to(device)


def find_captioners(*nodes: Any) -> None:
    """Check that the captioners in some nodes of a config exist, before a prior is loaded.

    Args:
        nodes: with captioners at any depth, or None.

    Raises:
        ValueError: for the first that does not exist.
    """
    for node in nodes:
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        if isinstance(plain, Mapping):
            if "captioner" in plain:
                build(plain["captioner"]).find()
            find_captioners(*plain.values())
        elif isinstance(plain, list):
            find_captioners(*plain)


def image_to_caption(module: RestorationModule, source: Vlm, batch: Batch) -> Tensor:
    """The image that the source captions, (B, 3, h, w) in [0, 1].

    Raises:
        ValueError: if the batch lacks it.
    """
    image_BCHW = batch.hq_BCHW if source.looks_at == "hq" else batch.lq_BCHW
    if image_BCHW is None:
        raise ValueError(f"prompt.semantic.looks_at={source.looks_at}: these images have none; look at something else")
    if source.looks_at == "reconstruction":
        image_BCHW = module.reconstruct(image_BCHW)
    return image_BCHW


def _read(folder: str, index: int, count: int) -> Iterator[np.ndarray]:
    for number in range(count):
        yield read_image(Path(folder) / f"{index}-{number}.png")


@dataclass(kw_only=True)
class CaptionReport:
    """A table of captions, the number of its new entries, and one line per image that was left out.

    With several processes `written` is None in all but the last to finish.
    """

    output: Path
    written: int | None
    bad: list[str]


def plan_captions(cfg: DictConfig) -> Artefact:
    """The table that `caption_folder` makes, in `cfg.run_dir`; without one it leaves no artefact."""
    keys = ("input", "recursive", *(["data"] if cfg.get("data") is not None else []))
    settings = {**plain_settings(cfg.prompt, ("semantic",)), **plain_settings(cfg, keys)}
    return Artefact(kind=CAPTIONS, identity=identity(settings), folder=Path(cfg.run_dir or ""), settings=settings)


def caption_folder(cfg: DictConfig) -> CaptionReport:
    """Caption every readable image of `cfg.input`, or of the dataset `cfg.data`, into one JSON table.

    Several processes (system/processes.py) share the images. A part is one batch of the captioner, a file
    {name: caption} that lies next to the table until all are there, so the batches do not depend on the number of
    processes. With `cfg.run_dir` the table is an artefact there.

    Raises:
        ValueError: if there is no such input, no readable image, or no captioner.
    """
    root = _root(cfg)
    images = list_images(root, recursive=cfg.recursive)
    base, names = images.base, images.names
    artefact = None if cfg.run_dir is None else plan_captions(cfg)
    if artefact is None:
        output = base / TABLE if cfg.output is None else Path(cfg.output)
    else:
        output = artefact.folder / TABLE
        if artefact.is_complete():
            return CaptionReport(output=output, written=len(read_table(output)), bad=[])
        take_folder(artefact.folder, setting="run_dir")
    images.report()
    require_free([output])
    captioner: Captioner = build(cfg.prompt.semantic.captioner)
    size = captioner.batch_size
    files = [[name, (base / name).stat().st_size, (base / name).stat().st_mtime_ns] for name in names]
    folder = output.with_name(f".{output.name}.{captioner.name_of([files, cfg.prompt.semantic.side])}")
    batches = [names[start : start + size] for start in range(0, len(names), size)]
    parts = [folder / f"{number:06d}.json" for number in range(len(batches))]
    bad = _caption_batches(cfg, captioner, base, batches, parts)
    with merge_lock(folder):
        if not parts or not all(part.is_file() for part in parts):
            return CaptionReport(output=output, written=None, bad=bad)
        captions = {name: caption for part in parts for name, caption in read_table(part).items()}
        if captions:
            existing = read_table(output) if output.is_file() else {}  # entries of other images stay
            write_output(output, json_bytes(existing | captions))
    shutil.rmtree(folder, ignore_errors=True)
    if not captions:
        raise ValueError(f"{root}: none of {len(names)} images can be read" + (f"; the first: {bad[0]}" if bad else ""))
    if artefact is not None:
        artefact.finish()
    return CaptionReport(output=output, written=len(captions), bad=bad)


def _caption_batches(
    cfg: DictConfig, captioner: Captioner, base: Path, batches: Sequence[Sequence[str]], parts: Sequence[Path]
) -> list[str]:
    """Caption this process's batches into their parts; returns one line per image that cannot be read."""
    from tqdm import tqdm

    bad: list[str] = []
    missing = own_parts(len(parts), done=lambda number: parts[number].is_file())
    for number in tqdm(missing, desc="captions", disable=not cfg.progress or rank_and_world()[0] > 0):
        images: dict[str, np.ndarray] = {}
        for name in batches[number]:
            try:
                images[name] = shrink(read_image(base / name), side=cfg.prompt.semantic.side)
            except BadImage as error:
                bad.append(str(error))
                log.warning("left out: %s", error)
        captions = captioner.captions(images.values())
        write_json_atomic(parts[number], dict(zip(images, captions, strict=True)))
    if frames := describe_frames(take_frames()):
        log.warning("%s", frames)
    return bad


def _root(cfg: DictConfig) -> Path:
    """The folder of the images, or one image.

    Raises:
        ValueError: without `input` and without a dataset that is a folder, or with both.
    """
    if cfg.input is not None and cfg.get("data") is not None:
        raise ValueError("input= and data= are two things to caption; give one of them")
    root = cfg.input or OmegaConf.select(cfg, "data.source.root", default=None)
    if root is None:
        raise ValueError("name what to caption: input=FOLDER, or a dataset that is a folder of images, data=lsdir")
    return Path(root).expanduser()


def shrink(image_HWC: np.ndarray, *, side: int) -> np.ndarray:
    """The image, downsampled to a short side of `side` pixels if it is larger."""
    height, width = image_HWC.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return image_HWC
    return resize_image(image_HWC, height=round(height * scale), width=round(width * scale))
