"""Fill `backbone.cache_dir` before training: text embeddings and latents of a source. `restore-lab data cache`.

Encoded are each sample's caption and, with `backbone.cache_latents`, the latent of its HQ as in training without random
crops (whole images, or images of the crop's size; with `flip` the flipped image too). Samples are distributed over
processes (system/processes.py); existing entries are not encoded again, so that a command can be resumed.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from restore_lab.config.build import build
from restore_lab.system.processes import device, own_parts, rank_and_world

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from omegaconf import DictConfig

    from restore_lab.backbones.base import Backbone
    from restore_lab.data.dataset import WorkerResult

log = logging.getLogger(__name__)
MIXED = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}


@dataclass(kw_only=True)
class CacheReport:
    """The cache's folder, and the number of samples that this process encoded or found in it."""

    folder: str
    samples: int = 0


def fill_cache(cfg: DictConfig) -> CacheReport:
    """Encode the captions and images of `cfg.data`.

    Raises:
        ValueError: without a cache, or for a precision whose encodings training does not use.
    """
    import torch
    from tqdm import tqdm

    from restore_lab.data.dataset import RestorationDataset
    from restore_lab.data.sampler import SequentialSampler
    from restore_lab.data.survey import BadFiles, screen

    if cfg.backbone.get("cache_dir") is None:
        raise ValueError("restore-lab data cache fills backbone.cache_dir; give that folder, and the same in training")
    target, done = device(cfg.device), CacheReport(folder=cfg.backbone.cache_dir)
    around = _precision(cfg.precision, target)
    source = screen(build(cfg.data), name="data", crop=cfg.crop, min_size=cfg.min_size)
    bad = BadFiles()
    dataset = RestorationDataset(source, crop=cfg.crop, flip=False, seed=cfg.seed, training=False)
    batches = list(SequentialSampler(len(source), batch_size=1))  # whole images may have any size
    backbone: Backbone = build(cfg.backbone).to(target)
    bar = {"desc": "cache", "disable": not cfg.progress or rank_and_world()[0] > 0}
    with torch.no_grad(), around:
        backbone.text([""])
        for number in tqdm(own_parts(len(batches), done=lambda number: False), **bar):
            result: WorkerResult = dataset.__getitems__(batches[number])
            bad.note(result.bad, result.frames)
            if result.error:
                raise ValueError(result.error)
            if result.batch is None:
                continue
            backbone.text(result.batch.caption)
            if result.batch.hq_BCHW is not None and backbone.codec.disk is not None:
                hq_BCHW = result.batch.hq_BCHW.to(target)
                for image_BCHW in (hq_BCHW, hq_BCHW.flip(-1)) if cfg.flip else (hq_BCHW,):
                    backbone.codec.encode_cached(image_BCHW)
            done.samples += len(result.batch)
    if summary := bad.summary():
        log.warning("%s", summary)
    return done


def _precision(name: str, target: str) -> AbstractContextManager[object]:
    """The autocast context of encoders in training with this precision.

    Raises:
        ValueError: for an unsupported precision.
    """
    import torch

    if name == "32-true":
        return contextlib.nullcontext()
    if name not in MIXED:
        raise ValueError(f"precision={name}: a cache is of 32-true, {', '.join(MIXED)}, as the training will be")
    return torch.autocast(target.partition(":")[0], dtype=getattr(torch, MIXED[name]))
