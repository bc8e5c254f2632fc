"""Fill a folder with images of negative quality: SUPIR's negative samples (Yu et al. 2024, section 3.2, Fig. 19).

Each is an image of the data source, noised to a fraction of the schedule and denoised by the prior without adaptor with
the negative prompt (SDEdit; in the paper strength 0.5, 100,000 images). Its caption, the prompt, is written next to it,
so that data=mixed can read the folder. A command can be resumed, also with a larger count; images are distributed over
processes; an image depends on the seed and its number only.
Selected by `restore-lab data output=FOLDER`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from restore_lab.config.build import build
from restore_lab.samplers.fidelity.base import Prediction, Steer
from restore_lab.storage.artefact import IMAGES, Artefact, Manifest, is_complete
from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.identity import identity, plain_settings
from restore_lab.storage.outputs import take_folder
from restore_lab.system.processes import device, own_parts
from restore_lab.types import Hint

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.backbones.base import Backbone
    from restore_lab.data.dataset import WorkerResult
    from restore_lab.samplers.base import Sampler
    from restore_lab.samplers.level import Level
    from restore_lab.types import Batch

log = logging.getLogger(__name__)
NEGATIVES_KEYS = ("data", "backbone", "sampler", "crop", "min_size", "seed", "negative", "count")


def plan_negatives(cfg: DictConfig) -> Artefact:
    """The images of `fill_negatives`, in `cfg.output`."""
    settings = plain_settings(cfg, NEGATIVES_KEYS)
    return Artefact(kind=IMAGES, identity=identity(settings), folder=Path(cfg.output), settings=settings)


def fill_negatives(cfg: DictConfig) -> Path:
    """Generate the missing ones of `cfg.count` images in `cfg.output`.

    Raises:
        ValueError: for a source without HQ images, or a folder of images with other settings.
    """
    from tqdm import tqdm

    from restore_lab.data.dataset import RestorationDataset
    from restore_lab.data.image_io import to_image, write_png
    from restore_lab.data.survey import BadFiles, screen

    images = plan_negatives(cfg)
    folder = images.folder
    if is_complete(folder):
        made = Manifest.read(folder)
        why = made.changes({**images.settings, "count": made.settings.get("count")})
        if why:
            raise ValueError(
                f"{folder} holds images that were made otherwise{why}; choose another output, or delete it"
            )
    take_folder(folder, setting="output")

    def done(number: int) -> bool:
        return (folder / f"{number:06d}.png").exists()

    missing = own_parts(cfg.count, done=done)
    if not missing and images.is_complete():
        return folder
    source = screen(build(cfg.data), name="data", crop=cfg.crop, min_size=cfg.min_size)
    dataset = RestorationDataset(source, crop=cfg.crop, flip=False, seed=cfg.seed, min_size=cfg.min_size)
    bad = BadFiles()
    backbone, sampler = build(cfg.backbone), build(cfg.sampler)
    target = device(cfg.device)
    backbone.to(target)
    for start in tqdm(range(0, len(missing), cfg.batch_size), desc="negative samples", disable=not cfg.progress):
        numbers = missing[start : start + cfg.batch_size]
        result: WorkerResult = dataset.__getitems__([divmod(number, len(source)) for number in numbers])
        bad.note(result.bad, result.frames)
        if result.batch is None or result.batch.hq_BCHW is None:
            raise ValueError(result.error or "negative samples are made from good images; this source gave none")
        images_BCHW = generate_negatives(result.batch.to(target), backbone, sampler, prompt=cfg.negative)
        for number, image_CHW in zip(numbers, images_BCHW.cpu(), strict=True):
            # The caption first, since an image counts as done.
            write_bytes_atomic(folder / f"{number:06d}.txt", cfg.negative.encode())
            write_png(folder / f"{number:06d}.png", to_image(image_CHW))
    if summary := bad.summary():
        log.warning("%s", summary)
    if all(done(number) for number in range(cfg.count)):  # the last of several processes
        images.finish()
    return folder


@torch.no_grad()
def generate_negatives(batch: Batch, backbone: Backbone, sampler: Sampler, *, prompt: str) -> Tensor:
    """SDEdit of the HQ images of a batch by the prior with a prompt; BCHW in [0, 1]."""
    hq_BCHW = batch.hq_BCHW
    assert hq_BCHW is not None
    height, width = hq_BCHW.shape[-2:]
    cond, null = (backbone.embed((text,) * len(batch), (height, width)) for text in (prompt, ""))
    hint = Hint(lq_BCHW=hq_BCHW)

    def guided(z_BCHW: Tensor, t_B: Tensor, level: Level, steer: Steer) -> Prediction:
        first, *others = sampler.guidance.branches(cond=cond, null=null, hint=hint, level=level)
        out_BCHW = first.weight * backbone(z_BCHW, t_B, first.cond)
        for branch in others:
            out_BCHW = out_BCHW + branch.weight * backbone(z_BCHW, t_B, branch.cond)
        return Prediction(out_BCHW=out_BCHW)

    z_BCHW = backbone.codec.encode(hq_BCHW)
    z_BCHW = sampler(guided, z_BCHW, centre_BCHW=z_BCHW, seeds=batch.seed, schedule=backbone.schedule)
    return backbone.codec.decode(z_BCHW).clamp(0, 1)
