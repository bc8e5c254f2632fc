"""One batch from LQ to restored image: prompts, latents, sampling, decoding, colour; in tiles where it is large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restore_lab.adaptors.lq_encoder import CodecEncoder
from restore_lab.methods.parts import mixed, pad_to_multiple
from restore_lab.samplers.colour import recolours
from restore_lab.samplers.tiling import Part, TilesTooLarge
from restore_lab.system.memory import let_go, out_of_memory
from restore_lab.types import Batch, Cond, Hint

if TYPE_CHECKING:
    from restore_lab.methods.module import RestorationModule
    from restore_lab.samplers.fidelity.base import Prediction, Steer
    from restore_lab.samplers.level import Level
    from restore_lab.samplers.tiling import Tiles


def restored(module: RestorationModule, batch: Batch) -> Tensor:
    """Restored images, the size of the LQ, in [0, 1]; smaller tiles where memory runs out.

    Raises:
        ValueError: without an LQ.
    """
    tiling = module.sampler.tiling
    while tiling is not None:
        module.backbone.codec.pixels = tiling.side(module.backbone) ** 2
        try:
            return _restored(module, batch)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, TilesTooLarge) or out_of_memory(error)) or not tiling.halve(module.backbone):
                raise
        let_go()
    return _restored(module, batch)


def _restored(module: RestorationModule, batch: Batch) -> Tensor:
    if batch.lq_BCHW is None:
        raise ValueError("there is no LQ to restore")
    height, width = batch.lq_BCHW.shape[-2:]
    batch, tiles = padded(module, batch)
    padded_BCHW: Any = batch.lq_BCHW
    cond, null, hint = told(module, batch, tiles)

    def guided(z_BCHW: Tensor, t_B: Tensor, level: Level, steer: Steer) -> Prediction:
        return module.guided(z_BCHW, t_B, level, steer, cond=cond, null=null, hint=hint, seeds=batch.seed, tiles=tiles)

    codec, sampler, own = module.backbone.codec, module.sampler, isinstance(module.lq_encoder, CodecEncoder)
    lq_latent_BCHW = hint.lq_latent_BCHW
    if lq_latent_BCHW is None:
        lq_latent_BCHW = module.lq_encoder(padded_BCHW, codec)
    preview_BCHW = padded_BCHW  # the LQ without its degradation, where one of the two below looks at it
    if not own and (sampler.fidelity.recode or recolours(sampler.colour)):
        preview_BCHW = codec.decode(lq_latent_BCHW, clamp=False)  # as SUPIR's release, which clamps only the result
    centre_BCHW = codec.encode(preview_BCHW) if sampler.fidelity.recode else lq_latent_BCHW
    module.stage("prior")
    if tiles is None:  # a tile's features are not a crop of the image's
        with mixed(module.backbone):
            hint = module.adaptor.seen(hint)
    latent_BCHW = sampler(
        guided, lq_latent_BCHW, centre_BCHW=centre_BCHW, seeds=batch.seed, schedule=module.backbone.schedule
    )
    module.stage("codec")
    restored_BCHW = sampler.colour(module.decoder(latent_BCHW, hint, codec), preview_BCHW)
    return restored_BCHW[..., :height, :width].clamp_(0, 1)


def padded(module: RestorationModule, batch: Batch) -> tuple[Batch, Tiles | None]:
    """The batch at sizes that the prior can see, and its tiles if one is too small."""
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


def asked_about(module: RestorationModule, batch: Batch) -> Iterator[Batch]:
    """What a captioner will be asked about: the batch, or its tiles where each has words of its own."""
    whole, tiles = padded(module, batch)
    if tiles is None or tiles.settings.words == "image":
        yield batch
        return
    for number in range(len(tiles.windows)):
        yield tile_batch(whole, tiles, range(number, number + 1))


def told(module: RestorationModule, batch: Batch, tiles: Tiles | None) -> tuple[Cond, Cond, Hint]:
    """Both halves of the guidance and the hint of a padded batch.

    With tiles the sizes told to the prior are a tile's; where each has words of its own, conditions and what the hint
    holds of words have one row a tile, image after image within a window.
    """
    lq_BCHW: Any = batch.lq_BCHW
    size = tuple(lq_BCHW.shape[-2:]) if tiles is None else tiles.pixels
    module.stage("words")
    prompt = module.prompts(batch, training=False) if tiles is None or tiles.settings.words == "image" else None
    if prompt is not None:
        cond = module.cond(prompt, size)
        null, hint = module.null(prompt, size, cond), module.told(lq_BCHW, prompt, size)
        module.stage("codec")
        return cond, null, replace(hint, **module.latents(lq_BCHW, hq_BCHW=batch.hq_BCHW))
    assert tiles is not None
    conds, nulls, hints = [], [], []
    for first in range(0, len(tiles.windows), tiles.settings.batch):
        some = tile_batch(batch, tiles, range(first, min(first + tiles.settings.batch, len(tiles.windows))))
        said = module.prompts(some, training=False)
        conds.append(module.cond(said, size))
        nulls.append(module.null(said, size, conds[-1]))
        cut_BCHW: Any = some.lq_BCHW
        hints.append(replace(module.told(cut_BCHW, said, size), lq_BCHW=lq_BCHW))  # its crops are not kept
    module.stage("codec")
    seen = module.latents(lq_BCHW, hq_BCHW=batch.hq_BCHW)
    cond, same = joined(conds), all(a is b for a, b in zip(conds, nulls, strict=True))
    return cond, cond if same else joined(nulls), replace(joined(hints), lq_BCHW=lq_BCHW, **seen)


def tile_batch(batch: Batch, tiles: Tiles, chosen: range) -> Batch:
    """Some tiles of a padded batch as images of their own, named after image and place."""
    part, count, scale = Part(tiles, chosen, len(batch)), len(chosen), tiles.compression
    assert batch.lq_BCHW is not None
    places = [tiles.windows[number] for number in chosen]
    return Batch(
        lq_BCHW=part.crop(batch.lq_BCHW, scale=scale),
        hq_BCHW=None if batch.hq_BCHW is None else part.crop(batch.hq_BCHW, scale=scale),
        caption=batch.caption * count,
        key=tuple(f"{key}@{scale * left},{scale * top}" for top, left in places for key in batch.key),
        seed=batch.seed * count,
        recipe=batch.recipe * count,
    )


def joined(nouns: Sequence[Any]) -> Any:
    """Conditions, or hints, as one of all their rows; the first one's LQ."""
    first, new = nouns[0], {}
    for field in fields(first):
        value = getattr(first, field.name)
        if value is None or field.name == "lq_BCHW":
            continue
        values = [getattr(noun, field.name) for noun in nouns]
        new[field.name] = torch.cat(values) if isinstance(value, Tensor) else joined(values)
    return replace(first, **new)
