"""Feature maps too large for memory, processed in bands of rows, with exact results.

A `Canvas` is one image's feature map, (height, width, channels), in memory or, if it is large, in an unnamed temporary
file (in TMPDIR) that is read and written by rows. `map_bands` applies convolutions band by band, with the adjacent rows
as halo; at the map's borders the convolutions' zero padding applies. Mean and variance per channel are accumulated
while a canvas is written, so the next group norm has the statistics of the whole map. Bands are (1, C, h, W).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from restore_lab.system.memory import out_of_memory

log = logging.getLogger(__name__)
IN_MEMORY = 32 * 2**20  # bytes; larger maps are stored in a file


class Canvas:
    """One image's feature map, written from the first row to the last.

    Args:
        height, width, channels: size of the map.
        dtype: dtype of the map.
    """

    def __init__(self, *, height: int, width: int, channels: int, dtype: torch.dtype) -> None:
        self.height, self.width, self.channels, self.dtype = height, width, channels, dtype
        self.row_bytes = width * channels * dtype.itemsize
        self.tensor: Tensor | None = None
        if height * self.row_bytes <= IN_MEMORY:
            self.tensor = torch.empty(height, width, channels, dtype=dtype)
        else:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open for the canvas's lifetime
        self.reset()

    @classmethod
    def of(cls, image_1CHW: Tensor) -> Canvas:
        """A view of a tensor as a canvas; `put` writes into the tensor."""
        canvas = cls(height=0, width=0, channels=0, dtype=image_1CHW.dtype)
        canvas.channels, canvas.height, canvas.width = image_1CHW.shape[1:]
        canvas.tensor = image_1CHW[0].permute(1, 2, 0)
        return canvas

    def reset(self) -> None:
        """Reset the statistics, before the map is rewritten."""
        self.count, self.mean_C, self.squares_C = 0, torch.zeros(()), torch.zeros(())

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows `top` up to `bottom`, (1, C, h, W)."""
        if self.tensor is not None:
            band_HWC = self.tensor[top:bottom]
        else:
            band_HWC = torch.empty(bottom - top, self.width, self.channels, dtype=self.dtype)
            view = band_HWC.view(torch.uint8).numpy().data.cast("B")
            self.file.seek(top * self.row_bytes)
            while view:
                view = view[_done(self.file.readinto(view)) :]
        return band_HWC.permute(2, 0, 1)[None]

    def put(self, top: int, band_1CHW: Tensor) -> None:
        """Write rows from `top` on, and add them to the statistics."""
        self._count(band_1CHW)
        band_HWC = band_1CHW[0].permute(1, 2, 0)
        if self.tensor is not None:
            self.tensor[top : top + len(band_HWC)] = band_HWC
            return
        rows_HWC = band_HWC.to("cpu", self.dtype).contiguous()
        view = rows_HWC.view(torch.uint8).numpy().data.cast("B")
        self.file.seek(top * self.row_bytes)
        while view:
            view = view[_done(self.file.write(view)) :]

    def _count(self, band_1CHW: Tensor) -> None:
        """Update mean and sum of squared deviations with a band's (Chan et al.'s parallel algorithm)."""
        variance_C, mean_C = torch.var_mean(band_1CHW.float(), dim=(0, 2, 3), correction=0)
        new, mean_C, variance_C = band_1CHW[0, 0].numel(), mean_C.double().cpu(), variance_C.double().cpu()
        total, apart_C = self.count + new, mean_C - self.mean_C
        self.squares_C = self.squares_C + variance_C * new + apart_C.square() * (self.count * new / total)
        self.mean_C = self.mean_C + apart_C * (new / total)
        self.count = total

    def bind_norm(self, norm: Any) -> Callable[[Tensor], Tensor]:
        """A group norm with this map's statistics, as a function of a band.

        Raises:
            ValueError: for another type of norm, or a map that is not completely written.
        """
        if not isinstance(norm, nn.GroupNorm) or norm.weight is None:
            raise ValueError(f"a map in bands is normed by groups, and this codec has a {type(norm).__name__}")
        if self.count != self.height * self.width:
            raise ValueError(f"a map of {self.height * self.width} positions has {self.count} of them filled")
        mean_GC = self.mean_C.reshape(norm.num_groups, -1)
        variance_G = (self.squares_C / self.count).reshape(norm.num_groups, -1).mean(dim=1)
        mean_G = mean_GC.mean(dim=1)
        variance_G = variance_G + (mean_GC - mean_G[:, None]).square().mean(dim=1)
        each = self.channels // norm.num_groups
        with align_module_device(norm):  # accelerate loads offloaded weights only in their module's forward
            gain_C, shift_C = norm.weight.double().cpu(), norm.bias.double().cpu()
        gain_C = gain_C * (variance_G + norm.eps).rsqrt().repeat_interleave(each)
        shift_C = shift_C - mean_G.repeat_interleave(each) * gain_C
        gain, shift = (value.float()[None, :, None, None] for value in (gain_C, shift_C))

        def apply(band: Tensor) -> Tensor:
            return torch.addcmul(shift.to(band.device), band.float(), gain.to(band.device)).to(band.dtype)

        return apply


def map_bands(
    make: Callable[..., Tensor],
    sources: Sequence[Canvas],
    *,
    like: Tensor,
    channels: int,
    rows: int,
    halo: int,
    up: int = 1,
    down: int = 1,
    into: Canvas | None = None,
) -> Canvas:
    """The output map of `make`, computed band by band.

    Args:
        make: the output band for the same rows of all sources.
        sources: input maps of one size.
        like: gives the dtype and device of the bands.
        channels: channels of the output.
        rows: rows per band, of the larger of output and sources; halved when memory runs out.
        halo: source rows above and below a band that its output depends on; an even number if `down` is 2.
        up, down: upsampling and downsampling factor.
        into: map to write to instead of a new one; it may be a source that is read without halo.
    """
    height, width = sources[0].height, sources[0].width
    out = into or Canvas(height=height * up // down, width=width * up // down, channels=channels, dtype=like.dtype)
    out.reset()
    step, top = max(down, rows // up // down * down), 0
    while top < height:
        bottom = min(top + step, height)
        above, below = max(0, top - halo), min(height, bottom + halo)
        try:
            band = make(*(source.rows(above, below).to(like) for source in sources))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or step <= down:
                raise
            step = max(down, step // 2 // down * down)
            log.warning("out of memory in the codec: bands of %d rows from here on", step)
            continue
        start = (top - above) * up // down
        out.put(top * up // down, band[:, :, start : start + (bottom - top) * up // down])
        top = bottom
    return out


def _done(count: int | None) -> int:
    """The number of bytes read or written.

    Raises:
        OSError: if it is 0.
    """
    if not count:
        raise OSError("a temporary file could not be read or written whole; is the disk at TMPDIR full?")
    return count
