"""One batch from LQ to restored image: conditions, sampling, decoding, colour; in tiles where it is large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restore_lab.adaptors.lq_encoder import CodecEncoder
from restore_lab.methods.conditioning import crop_tiles
from restore_lab.methods.denoiser import autocast
from restore_lab.samplers.colour import recolours
from restore_lab.samplers.tiling import TilesTooLarge
from restore_lab.system.memory import empty_cache, out_of_memory
from restore_lab.types import Batch

if TYPE_CHECKING:
    from restore_lab.methods.module import RestorationModule
    from restore_lab.samplers.fidelity.base import Prediction, Steer
    from restore_lab.samplers.level import Level
    from restore_lab.samplers.tiling import Tiles


def restore(module: RestorationModule, batch: Batch) -> Tensor:
    """Restored images, the size of the LQ, in [0, 1]; smaller tiles where memory runs out.

    Raises:
        ValueError: without an LQ.
    """
    tiling = module.sampler.tiling
    while tiling is not None:
        module.backbone.codec.pixels = tiling.side(module.backbone) ** 2
        try:
            return _restore(module, batch)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, TilesTooLarge) or out_of_memory(error)) or not tiling.halve(module.backbone):
                raise
        empty_cache()
    return _restore(module, batch)


def _restore(module: RestorationModule, batch: Batch) -> Tensor:
    if batch.lq_BCHW is None:
        raise ValueError("there is no LQ to restore")
    height, width = batch.lq_BCHW.shape[-2:]
    batch, tiles = pad(module, batch)
    padded_BCHW: Any = batch.lq_BCHW
    conditions = module.conditioner(batch, tiles=tiles, stage=module.stage)
    codec, sampler, own = module.backbone.codec, module.sampler, isinstance(module.lq_encoder, CodecEncoder)
    lq_latent_BCHW = conditions.hint.lq_latent_BCHW
    if lq_latent_BCHW is None:
        lq_latent_BCHW = module.lq_encoder(padded_BCHW, codec)
    preview_BCHW = padded_BCHW  # the LQ without its degradation, where one of the two below looks at it
    if not own and (sampler.fidelity.recode or recolours(sampler.colour)):
        preview_BCHW = codec.decode(lq_latent_BCHW, clamp=False)  # as SUPIR's release, which clamps only the result
    centre_BCHW = codec.encode(preview_BCHW) if sampler.fidelity.recode else lq_latent_BCHW
    module.stage("prior")
    if tiles is None:  # a tile's features are not a crop of the image's
        with autocast(module.backbone):
            conditions = replace(conditions, hint=module.adaptor.seen(conditions.hint))

    def denoise(z_BCHW: Tensor, t_B: Tensor, level: Level, steer: Steer) -> Prediction:
        return module.denoiser(
            z_BCHW,
            t_B,
            conditions,
            seeds=batch.seed,
            guidance=sampler.guidance,
            level=level,
            strength=sampler.strength(level),
            steer=steer,
            tiles=tiles,
            preview=sampler.fidelity.watches,
        )

    latent_BCHW = sampler(
        denoise, lq_latent_BCHW, centre_BCHW=centre_BCHW, seeds=batch.seed, schedule=module.backbone.schedule
    )
    module.stage("codec")
    restored_BCHW = sampler.colour(module.decoder(latent_BCHW, conditions.hint, codec), preview_BCHW)
    return restored_BCHW[..., :height, :width].clamp_(0, 1)


def pad(module: RestorationModule, batch: Batch) -> tuple[Batch, Tiles | None]:
    """The batch at sizes that the prior can take, and its tiles if one is too small."""
    multiple, tiling = module.backbone.multiple, module.sampler.tiling
    batch = replace(
        batch,
        lq_BCHW=None if batch.lq_BCHW is None else pad_to_multiple(batch.lq_BCHW, multiple),
        hq_BCHW=None if batch.hq_BCHW is None else pad_to_multiple(batch.hq_BCHW, multiple),
    )
    if tiling is None or batch.lq_BCHW is None:
        return batch, None
    height, width = batch.lq_BCHW.shape[-2:]
    return batch, tiling.tiles((height, width), module.backbone)


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> Tensor:
    """The image with its lower and right edges repeated outwards until both sides are multiples."""
    height, width = image_BCHW.shape[-2:]
    padding = (0, -width % multiple, 0, -height % multiple)
    if not any(padding):
        return image_BCHW
    return torch.nn.functional.pad(image_BCHW, padding, mode="replicate")


def parts_to_caption(module: RestorationModule, batch: Batch) -> Iterator[Batch]:
    """What a captioner will be asked about: the batch, or its tiles where each has words of its own."""
    whole, tiles = pad(module, batch)
    if tiles is None or tiles.settings.words == "image":
        yield batch
        return
    for number in range(len(tiles.windows)):
        yield crop_tiles(whole, tiles, range(number, number + 1))
