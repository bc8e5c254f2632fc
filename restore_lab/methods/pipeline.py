"""Restores a batch: conditions, sampling, decoding, colour correction; large images in tiles.

Shapes: images (B, 3, H, W) in [0, 1], latents (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from restore_lab.adaptors.lq_encoder import CodecEncoder
from restore_lab.methods.conditioning import Conditioner, StageName, crop_tiles, image_size
from restore_lab.methods.denoiser import Denoiser, autocast
from restore_lab.samplers.colour import uses_reference
from restore_lab.samplers.tiling import TilesTooLarge
from restore_lab.system.memory import empty_cache, out_of_memory
from restore_lab.types import Batch

if TYPE_CHECKING:
    from restore_lab.adaptors.control import Adaptor
    from restore_lab.adaptors.lq_encoder import RobustEncoder
    from restore_lab.backbones.base import Backbone
    from restore_lab.decoders.cfw import WrappingDecoder
    from restore_lab.decoders.codec import CodecDecoder
    from restore_lab.decoders.consistency import ConsistencyDecoder
    from restore_lab.decoders.degradation_aware import DegradationAwareDecoder
    from restore_lab.samplers.base import Sampler
    from restore_lab.samplers.fidelity.base import Prediction, Steer
    from restore_lab.samplers.level import Level
    from restore_lab.samplers.tiling import Tiles

    Decoder = CodecDecoder | DegradationAwareDecoder | ConsistencyDecoder | WrappingDecoder


class Method(Protocol):
    """The parts of a method that a restoration uses."""

    backbone: Backbone
    adaptor: Adaptor
    conditioner: Conditioner
    denoiser: Denoiser
    lq_encoder: CodecEncoder | RobustEncoder
    decoder: Decoder
    sampler: Sampler

    def stage(self, name: StageName) -> None: ...


def restore(method: Method, batch: Batch) -> Tensor:
    """The restored images, of the size of the LQ, in [0, 1]; the tiles shrink if memory runs out.

    Raises:
        ValueError: if the batch has no LQ.
    """
    tiling = method.sampler.tiling
    while tiling is not None:
        method.backbone.codec.pixels = tiling.side(method.backbone) ** 2
        try:
            return _restore(method, batch)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, TilesTooLarge) or out_of_memory(error)) or not tiling.halve(method.backbone):
                raise
        empty_cache()
    return _restore(method, batch)


def _restore(method: Method, batch: Batch) -> Tensor:
    if batch.lq_BCHW is None:
        raise ValueError("there is no LQ to restore")
    height, width = batch.lq_BCHW.shape[-2:]
    batch, tiles = pad(method, batch)
    padded_BCHW = batch.lq_BCHW
    assert padded_BCHW is not None
    conditions = method.conditioner(batch, tiles=tiles, stage=method.stage)
    codec, sampler = method.backbone.codec, method.sampler
    lq_latent_BCHW = conditions.hint.lq_latent_BCHW
    if lq_latent_BCHW is None:
        lq_latent_BCHW = method.lq_encoder(padded_BCHW, codec)
    preview_BCHW = padded_BCHW  # with a robust encoder, the LQ without its degradation, if one of the two needs it
    is_robust = not isinstance(method.lq_encoder, CodecEncoder)
    if is_robust and (sampler.fidelity.recode or uses_reference(sampler.colour)):
        preview_BCHW = codec.decode(lq_latent_BCHW, clamp=False)  # SUPIR's release clamps only the result
    centre_BCHW = codec.encode(preview_BCHW) if sampler.fidelity.recode else lq_latent_BCHW
    method.stage("prior")
    if tiles is None:  # a tile's features are not a crop of the image's features
        with autocast(method.backbone):
            conditions = replace(conditions, hint=method.adaptor.precompute(conditions.hint))

    def denoise(z_BCHW: Tensor, t_B: Tensor, level: Level, steer: Steer) -> Prediction:
        return method.denoiser(
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
        denoise, lq_latent_BCHW, centre_BCHW=centre_BCHW, seeds=batch.seed, schedule=method.backbone.schedule
    )
    method.stage("codec")
    restored_BCHW = sampler.colour(method.decoder(latent_BCHW, conditions.hint, codec), preview_BCHW)
    return restored_BCHW[..., :height, :width].clamp_(0, 1)


def pad(method: Method, batch: Batch) -> tuple[Batch, Tiles | None]:
    """The batch padded to the prior's multiple, and its tiles if it is larger than one."""
    multiple, tiling = method.backbone.multiple, method.sampler.tiling
    batch = replace(
        batch,
        lq_BCHW=None if batch.lq_BCHW is None else pad_to_multiple(batch.lq_BCHW, multiple),
        hq_BCHW=None if batch.hq_BCHW is None else pad_to_multiple(batch.hq_BCHW, multiple),
    )
    if tiling is None or batch.lq_BCHW is None:
        return batch, None
    return batch, tiling.tiles(image_size(batch.lq_BCHW), method.backbone)


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> Tensor:
    """The image padded at the bottom and on the right with its edge values, to sides that are multiples."""
    height, width = image_BCHW.shape[-2:]
    padding = (0, -width % multiple, 0, -height % multiple)
    if not any(padding):
        return image_BCHW
    return torch.nn.functional.pad(image_BCHW, padding, mode="replicate")


def captioning_batches(method: Method, batch: Batch) -> Iterator[Batch]:
    """The images that are captioned: the batch, or its tiles if each tile has its own prompt."""
    padded, tiles = pad(method, batch)
    if tiles is None or tiles.settings.words == "image":
        yield batch
        return
    for number in range(len(tiles.windows)):
        yield crop_tiles(padded, tiles, range(number, number + 1))
