"""Fill a folder with images of negative quality: SUPIR's negative samples (Yu et al. 2024, section 3.2, Fig. 19).

Each is an image of the data source, noised to a fraction of the schedule and denoised by the prior without adaptor with
the negative prompt (SDEdit; in the paper strength 0.5, 100,000 images). Its caption, the prompt, is written next to it,
so that data=mixed can read the folder. A command can be resumed, also with a larger count; images are distributed over
processes; an image depends on the seed and its number only.
Selected by `restore-lab data output=FOLDER`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf

from restore_lab.config.build import build
from restore_lab.samplers.fidelity.base import Prediction, Steer
from restore_lab.storage.artefact import Manifest, differences, identity, is_complete, write_bytes_atomic
from restore_lab.storage.outputs import take_folder
from restore_lab.system.processes import device, own_parts
from restore_lab.types import Hint

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.backbones.base import Backbone
    from restore_lab.data.dataset import WorkerResult
    from restore_lab.samplers.level import Level
    from restore_lab.samplers.loop import Sampler
    from restore_lab.types import Batch

log = logging.getLogger(__name__)
IDENTITY_KEYS = ("data", "backbone", "sampler", "crop", "min_size", "seed", "negative", "count")


@dataclass(frozen=True, kw_only=True)
class Images:
    """The plan of a folder of images: its identity, and the settings that it hashes."""

    identity: str
    settings: Mapping[str, Any]


def planned(cfg: DictConfig) -> Images:
    """The identity of the images of `fill`, without building or running anything."""
    settings = {
        key: OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
        for key in IDENTITY_KEYS
    }
    return Images(identity=identity(settings), settings=settings)


def fill(cfg: DictConfig) -> Path:
    """Generate the missing ones of `cfg.count` images in `cfg.output`.

    Raises:
        ValueError: for a source without HQ images, or a folder of images with other settings.
    """
    from tqdm import tqdm

    from restore_lab.data.dataset import RestorationDataset
    from restore_lab.data.image_io import to_image, write_png
    from restore_lab.data.survey import BadFiles, screen

    folder, images = Path(cfg.output), planned(cfg)
    if is_complete(folder):
        why = differences(folder, {**images.settings, "count": Manifest.read(folder).settings.get("count")})
        if why:
            raise ValueError(
                f"{folder} holds images that were made otherwise{why}; choose another output, or delete it"
            )

    take_folder(folder, setting="output")

    def there(number: int) -> bool:
        return (folder / f"{number:06d}.png").exists()

    missing = own_parts(cfg.count, done=there)
    if not missing and is_complete(folder, identity=images.identity):
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
        made_BCHW = generate_negatives(result.batch.to(target), backbone, sampler, prompt=cfg.negative)
        for number, image_CHW in zip(numbers, made_BCHW.cpu(), strict=True):
            # The caption first, since an image counts as done.
            write_bytes_atomic(folder / f"{number:06d}.txt", cfg.negative.encode())
            write_png(folder / f"{number:06d}.png", to_image(image_CHW))
    if summary := bad.summary():
        log.warning("%s", summary)
    if all(there(number) for number in range(cfg.count)):  # the last of several processes
        Manifest(identity=images.identity, kind="images", settings=images.settings).write(folder)
    return folder


@torch.no_grad()
def generate_negatives(batch: Batch, backbone: Backbone, sampler: Sampler, *, prompt: str) -> Tensor:
    """SDEdit of the images of a batch by the prior with a prompt; BCHW in [0, 1]."""
    hq_BCHW: Any = batch.hq_BCHW
    size, count = tuple(hq_BCHW.shape[-2:]), len(batch)
    cond, null = backbone.embed((prompt,) * count, size), backbone.embed(("",) * count, size)
    hint = Hint(lq_BCHW=hq_BCHW)

    def guided(z_BCHW: Tensor, t_B: Tensor, level: Level, steer: Steer) -> Prediction:
        branches = sampler.guidance.branches(cond=cond, null=null, hint=hint, level=level)
        out_BCHW = sum(branch.weight * backbone(z_BCHW, t_B, branch.cond) for branch in branches)
        return Prediction(out_BCHW=out_BCHW)

    z_BCHW = backbone.codec.encode(hq_BCHW)
    made_BCHW = sampler(guided, z_BCHW, centre_BCHW=z_BCHW, seeds=batch.seed, schedule=backbone.schedule)
    return backbone.codec.decode(made_BCHW).clamp(0, 1)
