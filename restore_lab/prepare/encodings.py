"""Fills `backbone.cache_dir` before training: text embeddings and latents of a whole source. `restore-lab data cache`.

For each sample its caption, and with `backbone.cache_latents` the latent of its good image as training without random
crops sees it (whole, or the crop that an image of that size is; with `flip` mirrored too). Several processes
(system/processes.py) share the samples; what is there already is not encoded again, so that a command that was killed
goes on.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from restore_lab.config.build import build
from restore_lab.system.processes import device, mine, place

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from omegaconf import DictConfig

    from restore_lab.backbones.base import Backbone
    from restore_lab.data.dataset import Loaded

log = logging.getLogger(__name__)
MIXED = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}


@dataclass(kw_only=True)
class Cached:
    """How many samples this process looked at, and where the cache is."""

    folder: str
    samples: int = 0


def fill_cache(cfg: DictConfig) -> Cached:
    """Embed and encode what `cfg.data` holds.

    Raises:
        ValueError: without a cache, or for a precision whose values could not be used in training.
    """
    import torch
    from tqdm import tqdm

    from restore_lab.data.dataset import RestorationDataset
    from restore_lab.data.sampler import SequentialSampler
    from restore_lab.data.survey import BadFiles, screen

    if cfg.backbone.get("cache_dir") is None:
        raise ValueError("restore-lab data cache fills backbone.cache_dir; give that folder, and the same in training")
    target, done = device(cfg.device), Cached(folder=cfg.backbone.cache_dir)
    around = _precision(cfg.precision, target)
    source = screen(build(cfg.data), name="data", crop=cfg.crop, min_size=cfg.min_size)
    bad = BadFiles()
    dataset = RestorationDataset(source, crop=cfg.crop, flip=False, seed=cfg.seed, training=False)
    batches = list(SequentialSampler(len(source), batch_size=1))  # whole images may have any size
    backbone: Backbone = build(cfg.backbone).to(target)
    bar = {"desc": "cache", "disable": not cfg.progress or place()[0] > 0}
    with torch.no_grad(), around:
        backbone.text([""])
        for number in tqdm(mine(len(batches), done=lambda number: False), **bar):
            loaded: Loaded = dataset.__getitems__(batches[number])
            bad.note(loaded.bad, loaded.frames)
            if loaded.error:
                raise ValueError(loaded.error)
            if loaded.batch is None:
                continue
            backbone.text(loaded.batch.caption)
            if loaded.batch.hq_BCHW is not None and backbone.codec.disk is not None:
                hq_BCHW = loaded.batch.hq_BCHW.to(target)
                for image_BCHW in (hq_BCHW, hq_BCHW.flip(-1)) if cfg.flip else (hq_BCHW,):
                    backbone.codec.encode_cached(image_BCHW)
            done.samples += len(loaded.batch)
    if summary := bad.summary():
        log.warning("%s", summary)
    return done


def _precision(name: str, target: str) -> AbstractContextManager[object]:
    """What training of this precision encodes under.

    Raises:
        ValueError: for another.
    """
    import torch

    if name == "32-true":
        return contextlib.nullcontext()
    if name not in MIXED:
        raise ValueError(f"precision={name}: a cache is of 32-true, {', '.join(MIXED)}, as the training will be")
    return torch.autocast(target.partition(":")[0], dtype=getattr(torch, MIXED[name]))
