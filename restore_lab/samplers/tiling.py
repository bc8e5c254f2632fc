"""Sampling a large latent through tiles whose predictions are blended in every step. `sampler/tiling=none|gaussian`.

MultiDiffusion (Bar-Tal et al. 2023) averages the predictions of overlapping tiles; Mixture of Diffusers (Jimenez 2023)
weighs them by a Gaussian around each tile's middle, w(u) = exp(-u^2 / (2 sigma^2)) for u in [-1/2, 1/2] along each
side, sigma^2 = 0.01, as SUPIR's release does. Only the prior and the adaptor see tiles: start, noise, solver, fidelity
guidance and references are those of the whole latent, so neither the batch of tiles nor their order changes a result.
Shapes: latents (B, C, h, w); a batch of tiles is (n B, C, th, tw), image after image within a window.
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
MAPS = ("lq_latent_BCHW", "reference_BCHW", "hq_latent_BCHW")  # of a hint, of the latent's size
LEAST = 512  # pixels: the side of a tile on a prior that was made at fewer


class TilesTooLarge(RuntimeError):
    """A single tile does not fit in memory."""


class Gaussian:
    """How large latents are cut, and how what was said of the tiles is blended.

    Args:
        tile: side in image pixels, rounded up to what the prior can see; null for the size that the prior was made at,
            512 at least. An image no larger goes through whole.
        overlap: of neighbouring tiles, in image pixels, at least.
        batch: tiles that go through at once; fewer where memory runs out.
        sigma: of the weights, as a share of the side.
        words: "image" says the image's words to every tile; "tile" asks the prompt sources for each tile's own, image
            encoders included.
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
        """The tile's side in image pixels: a multiple of the backbone's."""
        size = self.tile
        if size is None:
            made_at = backbone.denoiser.config.sample_size
            made_at = max(made_at) if isinstance(made_at, list | tuple) else int(made_at or 0)
            size = max(made_at * backbone.codec.compression, LEAST)
        return -(-size // backbone.multiple) * backbone.multiple

    def tiles(self, size: tuple[int, int], backbone: Backbone) -> Tiles | None:
        """The tiles of images of (height, width) pixels; None if one holds it all."""
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
        """Tiles of half the side from here on, if there is room for it."""
        side = self.side(backbone)
        half = side // 2 // backbone.multiple * backbone.multiple
        if half < 2 * backbone.multiple:
            return False
        self.tile, self.overlap = half, min(self.overlap, half // 2)
        log.warning("out of memory: tiles of %d pixels in the place of %d; the image starts again", half, side)
        return True


class Tiles:
    """The windows over one size of latent.

    Args:
        size: (height, width) of the latent.
        tile: of a window.
        overlap: of neighbouring windows, at least.
        compression: image side over latent side.
        settings: the batch, which shrinks where memory runs out, and the weights' sigma.
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

    def over(self, ask: Callable[[Part], Tensor], z_BCHW: Tensor) -> Tensor:
        """What is said of a latent: of its tiles, blended.

        Args:
            ask: says something of a batch of tiles, (n B, C, th, tw).
            z_BCHW: the latent, for count, size and device.

        Raises:
            TilesTooLarge: if memory runs out with a single tile.
        """
        weight_HW, total_BCHW, first = self.weight_HW.to(z_BCHW.device), None, 0
        while first < len(self.windows):
            chosen = range(first, min(first + self.settings.batch, len(self.windows)))
            said = self._asked(ask, Part(self, chosen, len(z_BCHW)))
            if said is None:
                continue
            sync(said)
            if total_BCHW is None:
                total_BCHW = said.new_zeros(len(z_BCHW), said.shape[1], *z_BCHW.shape[-2:])
            for number, tile_BCHW in zip(chosen, said.split(len(z_BCHW)), strict=True):
                top, left = self.windows[number]
                place = total_BCHW[..., top : top + self.tile[0], left : left + self.tile[1]]
                place.add_(tile_BCHW * weight_HW.to(said.dtype))
            first = chosen.stop
        assert total_BCHW is not None
        return total_BCHW.div_(self.total_HW.to(total_BCHW))

    def _asked(self, ask: Callable[[Part], Tensor], part: Part) -> Tensor | None:
        """What is said of some tiles; None if memory ran out, and they are fewer from here on."""
        try:
            return ask(part)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(part.chosen) == 1:
                raise TilesTooLarge("a single tile does not fit in memory") from error
        empty_cache()
        self.settings.batch = len(part.chosen) // 2
        log.warning("out of memory: %d tiles at once from here on", self.settings.batch)
        return None


class Part:
    """Some windows, and what belongs to their tiles.

    Args:
        tiles: all windows.
        chosen: numbers of those meant.
        count: images in the batch.
    """

    def __init__(self, tiles: Tiles, chosen: range, count: int) -> None:
        self.tiles, self.chosen, self.count = tiles, chosen, count
        self.known: dict[int, tuple[Tensor, Tensor]] = {}  # what branches share they share as tiles too

    def crop(self, map_BCHW: Tensor, *, scale: int = 1) -> Tensor:
        """The windows' pieces of a map of the latent's size, or of `scale` times that."""
        height, width = (scale * length for length in self.tiles.tile)
        places = [(scale * top, scale * left) for top, left in (self.tiles.windows[n] for n in self.chosen)]
        cropped_BCHW = torch.cat([map_BCHW[..., top : top + height, left : left + width] for top, left in places])
        sync(cropped_BCHW)  # the model's program does not know where its tiles stand
        return cropped_BCHW

    def each(self, value: Any) -> Any:
        """A tensor with a row an image as one with a row a tile; one that has these, cut; a number as it is."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.known:
            self.known[id(value)] = value, self._rows(value)
        return self.known[id(value)][1]

    def _rows(self, value: Tensor) -> Tensor:
        if len(value) == self.count:
            return value.repeat(len(self.chosen), *[1] * (value.ndim - 1))
        return value[self.chosen.start * self.count : self.chosen.stop * self.count]

    def cond(self, cond: Cond) -> Cond:
        """The condition of the tiles."""
        return Cond(**{field.name: self.each(getattr(cond, field.name)) for field in fields(cond)})

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
                new[field.name] = self.each(value)
        return replace(hint, **new)

    def branches(self, branches: Sequence[Branch]) -> tuple[Branch, ...]:
        """The branches of the tiles; those with one hint keep one."""
        hints = {id(branch.hint): branch.hint for branch in branches}
        cut = {key: self.hint(hint) for key, hint in hints.items()}
        return tuple(
            Branch(weight=branch.weight, cond=self.cond(branch.cond), hint=cut[id(branch.hint)]) for branch in branches
        )


def starts(whole: int, part: int, overlap: int) -> list[int]:
    """Where parts begin that cover the whole, spread evenly from edge to edge, with at least this overlap."""
    if part >= whole:
        return [0]
    count = 1 + -(-(whole - part) // (part - overlap))
    return [round(number * (whole - part) / (count - 1)) for number in range(count)]


def _bell(length: int, sigma: float) -> Tensor:
    """The weights along a side, in float32; none is 0."""
    u = (torch.arange(length) + 0.5) / length - 0.5
    return torch.exp(-u.square() / (2 * sigma**2)).clamp(min=1e-12)
