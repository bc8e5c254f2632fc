"""Maps too large for memory, worked on in bands of rows: exact, since every band sees its neighbours' rows.

A `Canvas` is one image's map, (height, width, channels), in memory or, where it is large, in an unnamed temporary file
(TMPDIR), read and written by rows. `swept` runs convolutions over it band by band. While a canvas is filled its moments
per channel are pooled over the bands, so that the group norm that comes next is that of the whole map. Rows and columns
at the map's edge meet the convolutions' own zeros; inner edges meet the neighbouring rows, and what those would have
changed is cut away. Bands are (1, C, h, W).
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
IN_MEMORY = 32 * 2**20  # bytes of a map that is kept in memory


class Canvas:
    """One image's map, filled from the first row to the last.

    Args:
        height, width, channels: its size.
        dtype: of its numbers.
    """

    def __init__(self, *, height: int, width: int, channels: int, dtype: torch.dtype) -> None:
        self.height, self.width, self.channels, self.dtype = height, width, channels, dtype
        self.row_bytes = width * channels * dtype.itemsize
        self.held: Tensor | None = None
        if height * self.row_bytes <= IN_MEMORY:
            self.held = torch.empty(height, width, channels, dtype=dtype)
        else:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it lives as long as the canvas
        self.forget()

    @classmethod
    def of(cls, image_1CHW: Tensor) -> Canvas:
        """A tensor as a canvas; what is put there is written into the tensor."""
        canvas = cls(height=0, width=0, channels=0, dtype=image_1CHW.dtype)
        canvas.channels, canvas.height, canvas.width = image_1CHW.shape[1:]
        canvas.held = image_1CHW[0].permute(1, 2, 0)
        return canvas

    def forget(self) -> None:
        """Start the moments anew: the map is filled again."""
        self.count, self.mean_C, self.squares_C = 0, torch.zeros(()), torch.zeros(())

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows `top` up to `bottom`, (1, C, h, W)."""
        if self.held is not None:
            band_HWC = self.held[top:bottom]
        else:
            band_HWC = torch.empty(bottom - top, self.width, self.channels, dtype=self.dtype)
            view = memoryview(band_HWC.view(torch.uint8).numpy()).cast("B")
            self.file.seek(top * self.row_bytes)
            while view:
                view = view[_done(self.file.readinto(view)) :]
        return band_HWC.permute(2, 0, 1)[None]

    def put(self, top: int, band_1CHW: Tensor) -> None:
        """Write rows from `top` on, and pool their moments."""
        self._count(band_1CHW)
        band_HWC = band_1CHW[0].permute(1, 2, 0)
        if self.held is not None:
            self.held[top : top + len(band_HWC)] = band_HWC
            return
        written = band_HWC.to("cpu", self.dtype).contiguous()
        view = memoryview(written.view(torch.uint8).numpy()).cast("B")
        self.file.seek(top * self.row_bytes)
        while view:
            view = view[_done(self.file.write(view)) :]

    def _count(self, band_1CHW: Tensor) -> None:
        """Chan et al.'s update of mean and sum of squares by a band's."""
        variance_C, mean_C = torch.var_mean(band_1CHW.float(), dim=(0, 2, 3), correction=0)
        new, mean_C, variance_C = band_1CHW[0, 0].numel(), mean_C.double().cpu(), variance_C.double().cpu()
        total, apart_C = self.count + new, mean_C - self.mean_C
        self.squares_C = self.squares_C + variance_C * new + apart_C.square() * (self.count * new / total)
        self.mean_C = self.mean_C + apart_C * (new / total)
        self.count = total

    def normed(self, norm: Any) -> Callable[[Tensor], Tensor]:
        """A group norm with this map's statistics, as a function of a band of it.

        Raises:
            ValueError: for another kind of norm, or a map that is not filled.
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
        with align_module_device(norm):  # offloaded weights come for their own module's forward alone
            gain_C, shift_C = norm.weight.double().cpu(), norm.bias.double().cpu()
        gain_C = gain_C * (variance_G + norm.eps).rsqrt().repeat_interleave(each)
        shift_C = shift_C - mean_G.repeat_interleave(each) * gain_C
        gain, shift = (value.float()[None, :, None, None] for value in (gain_C, shift_C))

        def apply(band: Tensor) -> Tensor:
            return torch.addcmul(shift.to(band.device), band.float(), gain.to(band.device)).to(band.dtype)

        return apply


def swept(
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
    """A new map, made band by band.

    Args:
        make: a band of the new map from the same rows of every source.
        sources: maps of one size.
        like: bands are made with this tensor's dtype, on its device.
        channels: of the new map.
        rows: of the new map at once, or of the sources if it is smaller; halved where memory runs out.
        halo: rows of the sources on each side that a row of the new map depends on; even if `down` is 2.
        up, down: height of the new map over that of the sources.
        into: a map that is filled in the place of a new one; it may be a source that depends on no neighbours.
    """
    height, width = sources[0].height, sources[0].width
    out = into or Canvas(height=height * up // down, width=width * up // down, channels=channels, dtype=like.dtype)
    out.forget()
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
    """How many bytes went through.

    Raises:
        OSError: if none did.
    """
    if not count:
        raise OSError("a temporary file could not be read or written whole; is the disk at TMPDIR full?")
    return count
