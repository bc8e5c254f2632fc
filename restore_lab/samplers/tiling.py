"""Tiled sampling of large latents: the tiles' predictions are blended in every step. `sampler/tiling=none|gaussian`.

MultiDiffusion (Bar-Tal et al. 2023) averages the predictions of overlapping tiles; Mixture of Diffusers (Jimenez 2023)
weights them by a Gaussian at each tile's centre, w(u) = exp(-u^2 / (2 sigma^2)) for u in [-1/2, 1/2] along each side,
with sigma^2 = 0.01, as in SUPIR's release. Only the prior and the adaptor run on tiles: initial latents, noise, solver,
fidelity guidance and references are those of the whole latent. The result therefore does not depend on the tile batch
size or order. Shapes: latents (B, C, h, w); a batch of n tiles is (n B, C, th, tw), all images of a window together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import Pixels, Positive, Range
from restore_lab.samplers.guidance import Branch
from restore_lab.system.memory import empty_cache, out_of_memory
from restore_lab.system.xla import sync
from restore_lab.types import Cond, Hint

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone

log = logging.getLogger(__name__)
MAPS = ("lq_latent_BCHW", "reference_BCHW", "hq_latent_BCHW")  # fields of a hint with the latent's size
LEAST = 512  # pixels: minimum of the default tile side


class TilesTooLarge(RuntimeError):
    """A single tile does not fit in memory."""


class Gaussian:
    """Tile size, overlap and Gaussian blending weights.

    Args:
        tile: side in image pixels, rounded up to a multiple of the backbone's; null for the prior's training
            resolution, at least 512. Images that fit in one tile are not tiled.
        overlap: minimum overlap of adjacent tiles, in image pixels.
        batch: tiles per model call; halved when memory runs out.
        sigma: standard deviation of the blending weights, as a fraction of the side.
        words: "image" uses the image's prompts for every tile; "tile" computes the prompts of each tile, including
            those of image encoders and captioners.
    """

    def __init__(
        self,
        *,
        tile: Pixels | None,
        overlap: Annotated[int, Range(0, 2**15, unit="pixels")],
        batch: Annotated[int, Range(1, 2**16)],
        sigma: Positive,
        words: Literal["image", "tile"],
    ) -> None:
        if tile is not None and overlap > tile // 2:
            raise ValueError(f"sampler.tiling.overlap={overlap} must be from 0 to half of tile={tile}")
        self.tile, self.overlap, self.batch, self.sigma, self.words = tile, overlap, batch, sigma, words

    def side(self, backbone: Backbone) -> int:
        """The tile's side in image pixels, a multiple of `backbone.multiple`."""
        size = self.tile
        if size is None:
            sample_size = backbone.denoiser.config.sample_size
            sample_size = max(sample_size) if isinstance(sample_size, list | tuple) else int(sample_size or 0)
            size = max(sample_size * backbone.codec.compression, LEAST)
        return -(-size // backbone.multiple) * backbone.multiple

    def tiles(self, size: tuple[int, int], backbone: Backbone) -> Tiles | None:
        """The tiles of images of (height, width) pixels; None if one tile covers the image."""
        side, compression = self.side(backbone), backbone.codec.compression
        if max(size) <= side:
            return None
        height, width, tile = (length // compression for length in (*size, side))
        return Tiles(
            size=(height, width),
            tile=(min(tile, height), min(tile, width)),
            overlap=min(-(-self.overlap // compression), tile // 2),
            compression=compression,
            settings=self,
        )

    def halve(self, backbone: Backbone) -> bool:
        """Halve the tile's side for all further images; False if it would be too small."""
        side = self.side(backbone)
        half = side // 2 // backbone.multiple * backbone.multiple
        if half < 2 * backbone.multiple:
            return False
        self.tile, self.overlap = half, min(self.overlap, half // 2)
        log.warning("out of memory: tiles of %d pixels in the place of %d; the image starts again", half, side)
        return True


class Tiles:
    """The tile windows and blending weights for one latent size.

    Args:
        size: (height, width) of the latent.
        tile: (height, width) of a window in the latent.
        overlap: minimum overlap of adjacent windows, in latent pixels.
        compression: image side over latent side.
        settings: the blending weights' sigma, and the batch, which is halved when memory runs out.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        tile: tuple[int, int],
        overlap: int,
        compression: int,
        settings: Gaussian,
    ) -> None:
        self.tile, self.compression, self.settings = tile, compression, settings
        tops, lefts = (starts(whole, part, overlap) for whole, part in zip(size, tile, strict=True))
        self.windows = [(top, left) for top in tops for left in lefts]
        self.weight_HW = torch.outer(*(_bell(length, settings.sigma) for length in tile))
        self.total_HW = torch.zeros(size)
        for top, left in self.windows:
            self.total_HW[top : top + tile[0], left : left + tile[1]] += self.weight_HW

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of a tile in image pixels."""
        return self.tile[0] * self.compression, self.tile[1] * self.compression

    def blend(self, predict: Callable[[TileBatch], Tensor], z_BCHW: Tensor) -> Tensor:
        """The weighted average of the tiles' predictions, (B, C, h, w).

        Args:
            predict: the prediction for a batch of n tiles, (n B, C, th, tw).
            z_BCHW: the latent; only its batch size, spatial size and device are read.

        Raises:
            TilesTooLarge: if memory runs out with a single tile.
        """
        weight_HW, total_BCHW, first = self.weight_HW.to(z_BCHW.device), None, 0
        while first < len(self.windows):
            indices = range(first, min(first + self.settings.batch, len(self.windows)))
            out_BCHW = self._predict(predict, TileBatch(self, indices, len(z_BCHW)))
            if out_BCHW is None:
                continue
            sync(out_BCHW)
            if total_BCHW is None:
                total_BCHW = out_BCHW.new_zeros(len(z_BCHW), out_BCHW.shape[1], *z_BCHW.shape[-2:])
            for index, tile_BCHW in zip(indices, out_BCHW.split(len(z_BCHW)), strict=True):
                top, left = self.windows[index]
                window = total_BCHW[..., top : top + self.tile[0], left : left + self.tile[1]]
                window.add_(tile_BCHW * weight_HW.to(out_BCHW.dtype))
            first = indices.stop
        assert total_BCHW is not None
        return total_BCHW.div_(self.total_HW.to(total_BCHW))

    def _predict(self, predict: Callable[[TileBatch], Tensor], part: TileBatch) -> Tensor | None:
        """The prediction for some tiles; None if memory ran out, after halving the batch."""
        try:
            return predict(part)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(part.indices) == 1:
                raise TilesTooLarge("a single tile does not fit in memory") from error
        empty_cache()
        self.settings.batch = len(part.indices) // 2
        log.warning("out of memory: %d tiles at once from here on", self.settings.batch)
        return None


class TileBatch:
    """Several windows, and the model's inputs cropped or repeated for them.

    Args:
        tiles: all windows of the latent.
        indices: which of `tiles.windows`.
        count: images in the batch.
    """

    def __init__(self, tiles: Tiles, indices: range, count: int) -> None:
        self.tiles, self.indices, self.count = tiles, indices, count
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}  # tensors that branches share stay shared

    def crop(self, map_BCHW: Tensor, *, scale: int = 1) -> Tensor:
        """The windows' crops of a map of the latent's size, or of `scale` times that size."""
        height, width = (scale * length for length in self.tiles.tile)
        places = [(scale * top, scale * left) for top, left in (self.tiles.windows[n] for n in self.indices)]
        cropped_BCHW = torch.cat([map_BCHW[..., top : top + height, left : left + width] for top, left in places])
        sync(cropped_BCHW)  # on XLA, the model's compiled program does not depend on the tiles' positions
        return cropped_BCHW

    def per_tile(self, value: Any) -> Any:
        """The value with one row per tile: per-image rows are repeated, per-tile rows sliced, a number returned."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.cache:
            self.cache[id(value)] = value, self._rows(value)
        return self.cache[id(value)][1]

    def _rows(self, value: Tensor) -> Tensor:
        if len(value) == self.count:
            return value.repeat(len(self.indices), *[1] * (value.ndim - 1))
        return value[self.indices.start * self.count : self.indices.stop * self.count]

    def cond(self, cond: Cond) -> Cond:
        """The condition of the tiles."""
        return Cond(**{field.name: self.per_tile(getattr(cond, field.name)) for field in fields(cond)})

    def hint(self, hint: Hint) -> Hint:
        """The hint of the tiles."""
        new: dict[str, Tensor | Cond] = {"lq_BCHW": self.crop(hint.lq_BCHW, scale=self.tiles.compression)}
        for field in fields(hint):
            value = getattr(hint, field.name)
            if field.name in MAPS and value is not None:
                new[field.name] = self.crop(value)
            elif isinstance(value, Cond):
                new[field.name] = self.cond(value)
            elif isinstance(value, Tensor) and field.name not in new:
                new[field.name] = self.per_tile(value)
        return replace(hint, **new)

    def branches(self, branches: Sequence[Branch]) -> tuple[Branch, ...]:
        """The branches of the tiles; branches that share a hint still share one."""
        hints = {id(branch.hint): branch.hint for branch in branches}
        cut = {key: self.hint(hint) for key, hint in hints.items()}
        return tuple(
            Branch(weight=branch.weight, cond=self.cond(branch.cond), hint=cut[id(branch.hint)]) for branch in branches
        )


def starts(whole: int, part: int, overlap: int) -> list[int]:
    """The start positions of evenly spaced windows of length `part` that cover `whole` with at least this overlap."""
    if part >= whole:
        return [0]
    count = 1 + -(-(whole - part) // (part - overlap))
    return [round(number * (whole - part) / (count - 1)) for number in range(count)]


def _bell(length: int, sigma: float) -> Tensor:
    """The blending weights along a side, (length,), float32, above 0."""
    u = (torch.arange(length) + 0.5) / length - 0.5
    return torch.exp(-u.square() / (2 * sigma**2)).clamp(min=1e-12)
