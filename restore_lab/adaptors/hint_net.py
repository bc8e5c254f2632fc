"""E'(y): the small convolutional network that encodes the degraded image at the latent's size (SPIRE section 3.4).

ControlNet's hint network (Zhang et al. 2023, section 3.2): a 3x3 convolution, then per level one convolution at the
same width and one of stride 2 to the next width, with SiLU in between. The number of levels follows from the codec's
compression.
Shapes: y (B, 3, H, W) in [0, 1] -> (B, `out`, H / compression, W / compression).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from restore_lab.types import Hint


class HintNet(nn.Module):
    """The hint network.

    Args:
        compression: image size over latent size, a power of two.
        widths: channels at each resolution, finest first; the first log2(compression) + 1 are used.
        out: output channels; 0 for no output convolution, if the trunk's convolution of the hint takes its place
            (ControlNet).
        signed: whether the network reads the LQ in [-1, 1] or in [0, 1].
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
        """The features of the hint's LQ image, which is in [0, 1]."""
        h = nn.functional.silu(self.conv_in(2 * hint.lq_BCHW - 1 if self.signed else hint.lq_BCHW))
        for block in self.blocks:
            h = nn.functional.silu(block(h))
        return self.conv_out(h)  # SPIRE, section 3.4: the features E'(y)
