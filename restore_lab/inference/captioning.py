"""The captioner's own pass: look at all images, let the prior go from the GPU, caption, and bring the prior back.

And `restore-lab caption`: a table of captions for a folder of images, made in parts, so that several processes share
it and a run that was stopped goes on.
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
from restore_lab.storage.artefact import Manifest, is_complete
from restore_lab.storage.atomic import json_bytes, write_json_atomic
from restore_lab.storage.identity import identity
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
        module: the method, whose LQ encoder and codec show what it makes of an LQ.
        prompts: whose captions are wanted.
        batches: all images that will be restored.
    """
    # Rows that differ in other words share one source.
    sources = list(dict.fromkeys(one.semantic for one in prompts if isinstance(one.semantic, Vlm)))
    if not sources:
        return
    with tempfile.TemporaryDirectory() as folder:
        keys: list[str] = []
        for batch in batches:
            for index, source in enumerate(sources):
                for number, image_CHW in enumerate(view(module, source, batch).cpu(), start=len(keys)):
                    image_HWC = shrunk(to_image(image_CHW), side=source.side)
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
    """Look whether the captioners that some configs name are there, before a prior is loaded.

    Args:
        nodes: of a config, at any depth; None is passed over.

    Raises:
        ValueError: for the first that is not.
    """
    for node in nodes:
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        if isinstance(plain, Mapping):
            if "captioner" in plain:
                build(plain["captioner"]).find()
            find_captioners(*plain.values())
        elif isinstance(plain, list):
            find_captioners(*plain)


def view(module: RestorationModule, source: Vlm, batch: Batch) -> Tensor:
    """What the source looks at, (B, 3, h, w) in [0, 1].

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
class Captioned:
    """How it went: the table, its entries, and one line for each image that was left out.

    `written` is None in a process of several that is not the last to finish.
    """

    output: Path
    written: int | None
    bad: list[str]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """A table of captions before it is made: its identity, and what that is made of."""

    identity: str
    settings: Mapping[str, Any]


def planned(cfg: DictConfig) -> Captions:
    """What `caption_folder` will make; nothing is built or run."""
    parts = {"semantic": cfg.prompt.semantic, "data": cfg.get("data")}
    settings: dict[str, Any] = {
        key: OmegaConf.to_container(node, resolve=True) for key, node in parts.items() if node is not None
    }
    settings |= {"input": cfg.input, "recursive": cfg.recursive}
    return Captions(identity=identity(settings), settings=settings)


def caption_folder(cfg: DictConfig) -> Captioned:
    """Caption every readable image of `cfg.input`, or of the dataset `cfg.data`, into one JSON table; several processes
    (system/processes.py) share the images. With `cfg.run_dir` the table is an artefact there.

    A part is a batch of the captioner's: a file {name: caption} that lies beside the table until all are there, so
    that what is asked together is the same however many processes there are.

    Raises:
        ValueError: if there is no such input, no readable image, or no captioner.
    """
    from tqdm import tqdm

    root = _root(cfg)
    images = list_images(root, recursive=cfg.recursive)
    base, names = images.base, images.names
    output = base / TABLE if cfg.output is None else Path(cfg.output)
    if cfg.run_dir is not None:
        output = Path(cfg.run_dir) / TABLE
        if is_complete(cfg.run_dir, identity=planned(cfg).identity):
            return Captioned(output=output, written=len(read_table(output)), bad=[])
        take_folder(cfg.run_dir, setting="run_dir")
    images.report()
    require_free([output])
    captioner: Captioner = build(cfg.prompt.semantic.captioner)
    size, bad = captioner.batch_size, []
    count = -(-len(names) // size)
    looked_at = [[name, (base / name).stat().st_size, (base / name).stat().st_mtime_ns] for name in names]
    folder = output.with_name(f".{output.name}.{captioner.name_of([looked_at, cfg.prompt.semantic.side])}")

    def file(number: int) -> Path:
        return folder / f"{number:06d}.json"

    def done(number: int) -> bool:
        return file(number).is_file()

    bar = {"desc": "captions", "disable": not cfg.progress or rank_and_world()[0] > 0}
    for number in tqdm(own_parts(count, done=done), **bar):
        seen: dict[str, np.ndarray] = {}
        for name in names[number * size : (number + 1) * size]:
            try:
                seen[name] = shrunk(read_image(base / name), side=cfg.prompt.semantic.side)
            except BadImage as error:
                bad.append(str(error))
                log.warning("left out: %s", error)
        captions = captioner.captions(seen.values())
        write_json_atomic(file(number), dict(zip(seen, captions, strict=True)))
    if frames := describe_frames(take_frames()):
        log.warning("%s", frames)
    with merge_lock(folder):
        if not count or not all(done(number) for number in range(count)):
            return Captioned(output=output, written=None, bad=bad)
        parts = [read_table(file(number)) for number in range(count)]
        said = {name: caption for part in parts for name, caption in part.items()}
        if said:
            before = read_table(output) if output.is_file() else {}  # those of other images stay
            write_output(output, json_bytes(before | said))
    shutil.rmtree(folder, ignore_errors=True)
    if not said:
        raise ValueError(f"{root}: none of {len(names)} images can be read" + (f"; the first: {bad[0]}" if bad else ""))
    if cfg.run_dir is not None:
        made = planned(cfg)
        Manifest(identity=made.identity, kind="captions", settings=made.settings).write(cfg.run_dir)
    return Captioned(output=output, written=len(said), bad=bad)


def _root(cfg: DictConfig) -> Path:
    """The folder of the images, or the one image.

    Raises:
        ValueError: if neither a folder nor a dataset that is a folder is named.
    """
    if cfg.input is not None and cfg.get("data") is not None:
        raise ValueError("input= and data= are two things to caption; give one of them")
    root = cfg.input or OmegaConf.select(cfg, "data.source.root", default=None)
    if root is None:
        raise ValueError("name what to caption: input=FOLDER, or a dataset that is a folder of images, data=lsdir")
    return Path(root).expanduser()


def shrunk(image_HWC: np.ndarray, *, side: int) -> np.ndarray:
    """The image with a short side of at most `side` pixels."""
    height, width = image_HWC.shape[:2]
    share = side / min(height, width)
    if share >= 1:
        return image_HWC
    return resize_image(image_HWC, height=round(height * share), width=round(width * share))
