"""One batch from LQ to restored image: conditions, sampling, decoding, colour; in tiles where it is large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from restore_lab.adaptors.lq_encoder import CodecEncoder
from restore_lab.methods.conditioning import Conditioner, crop_tiles
from restore_lab.methods.denoiser import Denoiser, autocast
from restore_lab.samplers.colour import uses_reference
from restore_lab.samplers.tiling import TilesTooLarge
from restore_lab.system.memory import empty_cache, out_of_memory
from restore_lab.types import Batch

if TYPE_CHECKING:
    from restore_lab.adaptors.control import Adaptor
    from restore_lab.adaptors.lq_encoder import RobustEncoder
    from restore_lab.backbones.base import Backbone
    from restore_lab.samplers.fidelity.base import Prediction, Steer
    from restore_lab.samplers.level import Level
    from restore_lab.samplers.loop import Sampler
    from restore_lab.samplers.tiling import Tiles


class Method(Protocol):
    """What a restoration reads of a method."""

    backbone: Backbone
    adaptor: Adaptor
    conditioner: Conditioner
    denoiser: Denoiser
    lq_encoder: CodecEncoder | RobustEncoder
    decoder: Any
    sampler: Sampler

    def stage(self, name: Any) -> None: ...


def restore(method: Method, batch: Batch) -> Tensor:
    """Restored images, the size of the LQ, in [0, 1]; smaller tiles where memory runs out.

    Raises:
        ValueError: without an LQ.
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
    padded_BCHW: Any = batch.lq_BCHW
    conditions = method.conditioner(batch, tiles=tiles, stage=method.stage)
    codec, sampler, own = method.backbone.codec, method.sampler, isinstance(method.lq_encoder, CodecEncoder)
    lq_latent_BCHW = conditions.hint.lq_latent_BCHW
    if lq_latent_BCHW is None:
        lq_latent_BCHW = method.lq_encoder(padded_BCHW, codec)
    preview_BCHW = padded_BCHW  # the LQ without its degradation, where one of the two below looks at it
    if not own and (sampler.fidelity.recode or uses_reference(sampler.colour)):
        preview_BCHW = codec.decode(lq_latent_BCHW, clamp=False)  # as SUPIR's release, which clamps only the result
    centre_BCHW = codec.encode(preview_BCHW) if sampler.fidelity.recode else lq_latent_BCHW
    method.stage("prior")
    if tiles is None:  # a tile's features are not a crop of the image's
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
    """The batch at sizes that the prior can take, and its tiles if one is too small."""
    multiple, tiling = method.backbone.multiple, method.sampler.tiling
    batch = replace(
        batch,
        lq_BCHW=None if batch.lq_BCHW is None else pad_to_multiple(batch.lq_BCHW, multiple),
        hq_BCHW=None if batch.hq_BCHW is None else pad_to_multiple(batch.hq_BCHW, multiple),
    )
    if tiling is None or batch.lq_BCHW is None:
        return batch, None
    height, width = batch.lq_BCHW.shape[-2:]
    return batch, tiling.tiles((height, width), method.backbone)


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> Tensor:
    """The image with its lower and right edges repeated outwards until both sides are multiples."""
    height, width = image_BCHW.shape[-2:]
    padding = (0, -width % multiple, 0, -height % multiple)
    if not any(padding):
        return image_BCHW
    return torch.nn.functional.pad(image_BCHW, padding, mode="replicate")


def captioning_batches(method: Method, batch: Batch) -> Iterator[Batch]:
    """What a captioner will be asked about: the batch, or its tiles where each has words of its own."""
    whole, tiles = pad(method, batch)
    if tiles is None or tiles.settings.words == "image":
        yield batch
        return
    for number in range(len(tiles.windows)):
        yield crop_tiles(whole, tiles, range(number, number + 1))
