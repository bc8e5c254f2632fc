"""Visibility of tile seams: steps across tile edges relative to steps at nearby lines inside tiles. `metrics=seams`.

The step at line p of an image is the mean of the `reach` pixels after it minus the mean of the `reach` before; its
energy is the mean square along the line. The value is the energy at the tile edges over the energy at lines 2 to 6
times `reach` away on both sides, where the content is similar: 1 without visible seams, (1 + d / (a reach))^2 on a ramp
of slope a with a jump d at the edges. Images (B, 3, H, W) in [0, 1], on luma.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from restore_lab.evaluation.protocol import ImageMetric, luma
from restore_lab.samplers.tiling import starts

CONTROL_LINES = (2, 3, 4, 5, 6)  # distances from an edge, times `reach`, to lines inside the tiles


def seams(image_BCHW: Tensor, *, rows: Sequence[int], columns: Sequence[int], reach: int) -> Tensor:
    """Seams_B: energy of the steps at tile edges over that at nearby lines; NaN without edges.

    Args:
        image_BCHW: images in [0, 1].
        rows, columns: the edges; row p is between pixels p - 1 and p.
        reach: pixels averaged on each side of a line; the codec's compression, for tiled latents.
    """
    y_BHW = luma(image_BCHW.double())[:, 0]
    pairs = [_energies(y_BHW, rows, reach), _energies(y_BHW.transpose(1, 2), columns, reach)]
    at, control = (torch.stack([pair[i] for pair in pairs]).sum(dim=0) for i in (0, 1))
    return at / control


def _energies(y_BLW: Tensor, lines: Sequence[int], reach: int) -> tuple[Tensor, Tensor]:
    """Energies_B at the lines and at their control lines (mean per line), each summed over the lines."""
    length = y_BLW.shape[1]
    total_BLW = torch.nn.functional.pad(y_BLW.cumsum(dim=1), (0, 0, 1, 0))

    def energy(p: int) -> Tensor:
        step_BW = (total_BLW[:, p + reach] + total_BLW[:, p - reach] - 2 * total_BLW[:, p]) / reach
        return step_BW.square().mean(dim=1)

    at, control = y_BLW.new_zeros(len(y_BLW)), y_BLW.new_zeros(len(y_BLW))
    for line in lines:
        near = [line + sign * times * reach for times in CONTROL_LINES for sign in (-1, 1)]
        inside = [p for p in near if reach <= p <= length - reach and min(abs(p - other) for other in lines) > reach]
        if inside and reach <= line <= length - reach:
            at = at + energy(line)
            control = control + torch.stack([energy(p) for p in inside]).mean(dim=0)
    return at, control


def edges(length: int, *, tile: int, overlap: int) -> list[int]:
    """The starts and ends of tiles along a side, without the ends of the side."""
    begins = starts(length, tile, overlap)
    return sorted({place for begin in begins for place in (begin, begin + tile) if 0 < place < length})


class Seams(ImageMetric):
    """`seams` at the edges of `sampler/tiling=gaussian` with the same settings; images of one tile have no value.

    Args:
        tile, overlap: of the sampler, in image pixels.
        compression: image side over latent side; tiles start at latent pixels.
        multiple: image sides are padded to a multiple of this before tiling.
    """

    id = "seams"
    weights = "closed form"
    higher_is_better = False
    needs_reference = False

    def __init__(self, *, tile: int, overlap: int, compression: int, multiple: int) -> None:
        self.tile, self.overlap, self.compression, self.multiple = tile, overlap, compression, multiple
        self.weights = f"closed form, tiles of {tile} by {overlap}"

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        rows, columns = (self.lines(side) for side in restored_BCHW.shape[-2:])
        return seams(restored_BCHW, rows=rows, columns=columns, reach=self.compression)

    def lines(self, side: int) -> list[int]:
        """The tile edges along a side of `side` pixels."""
        step = self.compression
        padded = -(-side // self.multiple) * self.multiple
        found = edges(padded // step, tile=self.tile // step, overlap=-(-self.overlap // step))
        return [step * place for place in found if step * place < side]
