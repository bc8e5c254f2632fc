"""Restoring a user's own images: files in, PNG files out, each written whole or not at all.

Images are read as any photograph is (16 bit, CMYK, rotated by EXIF, ...); a bad one is named in one line and left out.
Each image's noise comes from the seed and its own pixels, so a folder restores as its images do alone, and as it does
shared by several processes (shares.py), each of which takes every world-th image.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from restore_lab.build import build
from restore_lab.random import mix
from restore_lab.shares import device, mine
from restore_lab.types import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from omegaconf import DictConfig

    from restore_lab.data.folder import FolderSource
    from restore_lab.methods.base import RestorationModule
    from restore_lab.types import Picture

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Restored:
    """How a run over a folder went: images written, where, and one line for each that was left out."""

    output: Path
    written: int = 0
    bad: list[str] = field(default_factory=list)


def restore_folder(cfg: DictConfig) -> Restored:
    """Restore every image of `cfg.input`, or this process's share of them.

    Raises:
        ValueError: if there is no such input, or no image in it can be read.
    """
    from restore_lab.data.folder import FolderSource
    from restore_lab.data.image_io import BadImage
    from restore_lab.methods.captioning import caption_ahead

    source = FolderSource(cfg.input, recursive=cfg.recursive, captions="auto", role="lq", max_pixels=178956970)
    done = Restored(output=Path(cfg.output))
    module: RestorationModule | None = None
    keys = source.keys()
    wanted = mine(len(keys), done=lambda index: cfg.resume and _target(done, keys[index]).is_file())
    if "captioner" in cfg.prompt.semantic:
        module = load(cfg)
        caption_ahead(module, [module.prompts], _readable(source, wanted, module, cfg))
    for index in wanted:
        try:
            picture = source.read(index, epoch=0)
            lq_HWC = _enlarged(picture, cfg)
        except BadImage as error:
            done.bad.append(str(error))
            log.warning("left out: %s", error)
            continue
        if module is None:
            module = load(cfg)
        if len(keys) > 1:
            log.info("%d of %d: %s", index + 1, len(keys), keys[index])
        _write(module, lq_HWC, picture, done, cfg)
    if len(done.bad) == len(keys):
        raise ValueError(f"{cfg.input}: none of {len(keys)} images could be restored; the first: {done.bad[0]}")
    return done


def _readable(
    source: FolderSource, wanted: Sequence[int], module: RestorationModule, cfg: DictConfig
) -> Iterator[Batch]:
    """The images that can be restored; the others are named when their turn comes."""
    from restore_lab.data.image_io import BadImage
    from restore_lab.methods.restoring import asked_about

    for index in wanted:
        try:
            picture = source.read(index, epoch=0)
            yield from asked_about(module, _batch(module, _enlarged(picture, cfg), picture, cfg))
        except BadImage:
            continue


def load(cfg: DictConfig) -> RestorationModule:
    """The composed method with its weights, on the chosen device, ready to restore."""
    from restore_lab.methods.weights import weights_file

    module: RestorationModule = build(cfg.module)
    if cfg.weights is not None:
        module.load_weights(weights_file(cfg.weights))
    module = build(cfg.speed).settle(module.eval())
    return build(cfg.memory).settle(module, device(cfg.device))


def _enlarged(picture: Picture, cfg: DictConfig) -> np.ndarray:
    """The image enlarged by `upscale`, if it is not too large.

    Raises:
        BadImage: if it is.
    """
    from restore_lab.data.image_io import BadImage, resize_image

    image_HWC = picture.lq_HWC
    if image_HWC is None:
        raise BadImage(f"{picture.key}: has no image")
    height, width = (round(side * cfg.upscale) for side in image_HWC.shape[:2])
    if height * width > cfg.max_pixels:
        raise BadImage(
            f"{picture.key}: {width}x{height} pixels are more than max_pixels={cfg.max_pixels}; "
            "shrink the image, or raise max_pixels if the memory is there"
        )
    return resize_image(image_HWC, height=height, width=width)


def _write(module: RestorationModule, lq_HWC: np.ndarray, picture: Picture, done: Restored, cfg: DictConfig) -> None:
    """Restore one image and write it as <output>/<key>.png."""
    from restore_lab.data.image_io import to_image, write_png

    target = _target(done, picture.key)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_png(target, to_image(module.restore(_batch(module, lq_HWC, picture, cfg))[0].cpu()))
    done.written += 1
    log.info("%s", target)


def _target(done: Restored, key: str) -> Path:
    return done.output / f"{key}.png"  # a key may hold dots of its own


def _batch(module: RestorationModule, lq_HWC: np.ndarray, picture: Picture, cfg: DictConfig) -> Batch:
    """The batch of one image, on the module's device."""
    from restore_lab.data.image_io import to_tensor

    return Batch(
        hq_BCHW=None,
        lq_BCHW=to_tensor(lq_HWC)[None].to(module.run_device),
        caption=(picture.caption if cfg.caption is None else cfg.caption,),
        key=(picture.key,),
        seed=(mix(cfg.seed, "restore", hashlib.sha256(lq_HWC.tobytes()).hexdigest()),),
        recipe=(None,),
    )
