"""E'(y): the light stack of convolutions that brings the degraded image to the latent's size (SPIRE section 3.4).

ControlNet's hint network (Zhang et al. 2023): a 3x3 convolution, then for each halving one convolution at the old width
and one with stride 2 to the next, SiLU between. The number of halvings follows from the codec's compression.
Shapes: y (B, 3, H, W) in [0, 1] -> (B, `out`, H / compression, W / compression).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from restore_lab.types import Hint


class HintNet(nn.Module):
    """The stack of convolutions.

    Args:
        compression: image size over latent size, a power of two.
        widths: channels at each resolution, finest first; the first log2(compression) + 1 are used.
        out: channels handed to the trunk; 0 hands over the last width as it is, for a trunk whose own convolution of
            the hint ends the stack (ControlNet).
        signed: whether the stack sees the LQ in [-1, 1], or in [0, 1].
    """

    def __init__(self, *, compression: int, widths: Sequence[int], out: int, signed: bool = True) -> None:
        super().__init__()
        levels = int(math.log2(compression)) + 1
        if len(widths) < levels:
            raise ValueError(f"adaptor.hint_widths={list(widths)} has {len(widths)} widths; this codec needs {levels}")
        self.widths = used = tuple(widths)[:levels]
        self.out, self.signed = out or used[-1], signed
        self.conv_in = nn.Conv2d(3, used[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in itertools.pairwise(used):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(used[-1], out, 3, padding=1) if out else nn.Identity()

    def forward(self, hint: Hint) -> Tensor:
        """Features of the LQ in [0, 1]."""
        h = nn.functional.silu(self.conv_in(2 * hint.lq_BCHW - 1 if self.signed else hint.lq_BCHW))
        for block in self.blocks:
            h = nn.functional.silu(block(h))
        return self.conv_out(h)
