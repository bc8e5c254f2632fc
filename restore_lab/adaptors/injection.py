"""Diff-Restorer's control encoder and decoder (section III-C, Fig. 5). `adaptor=diff_restorer`.

Four residual blocks, each modulated by the degradation embedding P_D (Eq. 3):
    F~ = Res(F),  f = sigmoid(Linear(P_D)),  F^ = Res(F~ * f)
encode the LQ at the latent's size; the control decoder, four residual blocks in reverse, reconstructs the clean image
from the features, only in training (Eq. 4). Widths, strides and norms are ours, since the paper gives none.
Shapes: LQ (B, 3, H, W) in [0, 1], P_D (B, D) -> (B, F, H / compression, W / compression).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from restore_lab.adaptors.fusion.zero_sft import group_norm
from restore_lab.config.kinds import Count, CountOrZero
from restore_lab.system.xla import upsample_nearest_2x
from restore_lab.types import Hint


class ResBlock(nn.Module):
    """Twice norm, SiLU and convolution, with a shortcut; `stride` 2 halves the map."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
            group_norm(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.shortcut(x_BCHW) + self.body(x_BCHW)


class ModulationBlock(nn.Module):
    """Two residual blocks with a channel-wise gate between them (Eq. 3).

    Args:
        inputs, outputs: channels.
        embedding: width of P_D; 0 for no gate (Table III, "w/o DMB").
        stride: stride of the first residual block.
    """

    def __init__(self, inputs: int, outputs: int, *, embedding: int, stride: int) -> None:
        super().__init__()
        self.before = ResBlock(inputs, outputs, stride=stride)
        self.gate = nn.Linear(embedding, outputs) if embedding else None
        self.after = ResBlock(outputs, outputs)

    def forward(self, x_BCHW: Tensor, degradation_BD: Tensor | None) -> Tensor:
        h = self.before(x_BCHW)  # F~
        if self.gate is not None and degradation_BD is not None:
            h = h * torch.sigmoid(self.gate(degradation_BD))[:, :, None, None]  # F~ * f
        return self.after(h)  # Diff-Restorer, Eq. 3: F^


class ControlEncoder(nn.Module):
    """The trunk's hint from the LQ and its degradation embedding.

    Args:
        compression: image size over latent size, a power of two; log2 of it is the number of blocks of stride 2.
        widths: channels of the four blocks.
        out: output channels.
        embedding: width of P_D; 0 for an encoder without modulation.
    """

    def __init__(self, *, compression: int, widths: Sequence[Count], out: Count, embedding: CountOrZero) -> None:
        super().__init__()
        halvings = int(math.log2(compression))
        if halvings > len(widths):
            raise ValueError(f"adaptor.encoder.widths={list(widths)}: this codec needs {halvings} blocks at least")
        self.embedding, self.out = embedding, out
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = itertools.pairwise([widths[0], *widths])
        self.blocks = nn.ModuleList(
            ModulationBlock(inputs, outputs, embedding=embedding, stride=2 if index < halvings else 1)
            for index, (inputs, outputs) in enumerate(pairs)
        )
        self.conv_out = nn.Conv2d(widths[-1], out, 1)

    def forward(self, hint: Hint) -> Tensor:
        """The trunk's hint.

        Raises:
            ValueError: if `embedding` is set and the hint has no degradation embedding.
        """
        return self.conv_out(self.features(hint))

    def features(self, hint: Hint) -> Tensor:
        """The last block's features, which the control decoder reads."""
        if self.embedding and hint.degradation_BD is None:
            raise ValueError("this encoder is modulated by a degradation embedding, and the hint has none")
        h = self.conv_in(2 * hint.lq_BCHW - 1)
        for block in self.blocks:
            h = block(h, hint.degradation_BD)
        return h


class Upsample(nn.Upsample):
    """nn.Upsample, except on XLA."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return upsample_nearest_2x(input) if input.device.type == "xla" else super().forward(input)


class ControlDecoder(nn.Module):
    """The encoder's blocks in reverse, with nearest-neighbour upsampling, to an image near [0, 1]."""

    def __init__(self, *, compression: int, widths: Sequence[int]) -> None:
        super().__init__()
        halvings = int(math.log2(compression))
        narrowing = [*reversed(widths), widths[0]]
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(itertools.pairwise(narrowing)):
            layers.append(ResBlock(inputs, outputs))
            if index >= len(widths) - halvings:
                layers.append(Upsample(scale_factor=2, mode="nearest"))
        self.body = nn.Sequential(*layers, group_norm(widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 3, 3, padding=1))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return (self.body(features_BCHW) + 1) / 2
