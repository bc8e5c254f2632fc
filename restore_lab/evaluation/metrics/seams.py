"""Whether tiles show: the steps across their edges against steps of the same kind beside them, inside. `metrics=seams`.

A step at line p of an image is the mean of the `reach` pixels behind it less that of the `reach` before; its energy is
the mean of its square along the line. The value is the energy at the tiles' edges over the energy at lines 2 to 6 times
`reach` away on both sides, where the picture is nearly the same: 1 where no edge shows, on a ramp of slope a with a
jump d at the edges (1 + d / (a reach))^2. Images (B, 3, H, W) in [0, 1], on luma.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from restore_lab.evaluation.protocol import ImageMetric, luma
from restore_lab.samplers.tiling import starts

BESIDE = (2, 3, 4, 5, 6)  # times `reach`: lines inside the tiles


def seams(image_BCHW: Tensor, *, rows: Sequence[int], columns: Sequence[int], reach: int) -> Tensor:
    """Seams_B: energy of the steps at the tiles' edges over that beside them; nan where there are no edges.

    Args:
        image_BCHW: images in [0, 1].
        rows, columns: the edges: row p lies between pixels p - 1 and p.
        reach: pixels averaged on each side of a line; a codec's compression, if its latents were tiled.
    """
    y_BHW = luma(image_BCHW.double())[:, 0]
    pairs = [_energies(y_BHW, rows, reach), _energies(y_BHW.transpose(1, 2), columns, reach)]
    at, beside = (torch.stack([pair[i] for pair in pairs]).sum(dim=0) for i in (0, 1))
    return at / beside


def _energies(y_BLW: Tensor, lines: Sequence[int], reach: int) -> tuple[Tensor, Tensor]:
    """Energies_B at the lines and beside them, summed over the lines; both means for each line."""
    length = y_BLW.shape[1]
    total_BLW = torch.nn.functional.pad(y_BLW.cumsum(dim=1), (0, 0, 1, 0))

    def energy(p: int) -> Tensor:
        step_BW = (total_BLW[:, p + reach] + total_BLW[:, p - reach] - 2 * total_BLW[:, p]) / reach
        return step_BW.square().mean(dim=1)

    at, beside = y_BLW.new_zeros(len(y_BLW)), y_BLW.new_zeros(len(y_BLW))
    for line in lines:
        near = [line + sign * times * reach for times in BESIDE for sign in (-1, 1)]
        inside = [p for p in near if reach <= p <= length - reach and min(abs(p - other) for other in lines) > reach]
        if inside and reach <= line <= length - reach:
            at = at + energy(line)
            beside = beside + torch.stack([energy(p) for p in inside]).mean(dim=0)
    return at, beside


def edges(length: int, *, tile: int, overlap: int) -> list[int]:
    """Where tiles begin and end along a side, the side's own ends left out."""
    begins = starts(length, tile, overlap)
    return sorted({place for begin in begins for place in (begin, begin + tile) if 0 < place < length})


class Seams(ImageMetric):
    """`seams` at the edges of `sampler/tiling=gaussian` with the same numbers; images of one tile have no value.

    Args:
        tile, overlap: the sampler's, in image pixels.
        compression: image side over latent side: windows begin at whole latent pixels.
        multiple: what image sides are padded to before they are tiled.
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
        """The tiles' edges along a side of so many pixels."""
        step = self.compression
        padded = -(-side // self.multiple) * self.multiple
        found = edges(padded // step, tile=self.tile // step, overlap=-(-self.overlap // step))
        return [step * place for place in found if step * place < side]
