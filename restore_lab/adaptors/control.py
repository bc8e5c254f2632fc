"""A control adaptor: hint network, trunk and fusion around a frozen backbone. `adaptor=spire|controlnet`.

`control()` runs hint network and trunk once a step; `fuse` is the pure `Edit` that meets the backbone with the result:
`backbone(z, t, cond, at=adaptor.fuse, carry=adaptor.control(z, t, hint, cond))`. No channel count is typed: all come
from the backbone's taps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from restore_lab.adaptors.hint import HintNet
from restore_lab.adaptors.trunk import Trunk
from restore_lab.types import Cond, Hint, Tap

if TYPE_CHECKING:
    from restore_lab.backbones.unet import UNetBackbone


class ControlAdaptor(nn.Module):
    """SPIRE's adaptor and its variants.

    Args:
        backbone: the frozen prior; the trunk starts as a copy of its encoder.
        trunk: builds the trunk from the backbone and the hint's channels.
        fusion: builds the fusion from the backbone.
        text: what the trunk cross-attends to: the instruction (SPIRE), the semantic text as the prior (ControlNet),
            or none (always the empty text).
        hint_widths: channels of the hint network at each resolution; null for no hint network.
        hint_channels: channels that the hint network hands to the trunk; null takes the latent's, 0 its last width.
        encoder: builds a hint network of another kind from the codec's compression, in the place of E'(y): it has `out`
            channels and reads the whole hint (Diff-Restorer's control encoder).
        lq_latent: feed the trunk the LQ's latent, beside the hint network's features or alone (SUPIR). SPIRE's paper
            does not; where training is short it spares the hint network from learning what the codec's encoder knows.
    """

    requires = ("join", "middle")

    def __init__(
        self,
        backbone: UNetBackbone,
        *,
        trunk: Callable[..., Trunk],
        fusion: Callable[..., nn.Module],
        text: Literal["instruction", "semantic", "none"],
        hint_widths: Sequence[int] | None,
        hint_channels: int | None,
        lq_latent: bool = False,
        encoder: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if text not in ("instruction", "semantic", "none"):
            raise ValueError(f"adaptor.text={text!r} is not known; one of instruction, semantic, none")
        if hint_widths is None and encoder is None and not lq_latent:
            raise ValueError("this adaptor sees nothing of the LQ; set adaptor.lq_latent=true or give hint_widths")
        self.text, self.lq_latent = text, lq_latent
        codec, channels = backbone.codec, backbone.codec.channels if lq_latent else 0
        self.hint = None if encoder is None else encoder(compression=codec.compression)
        if self.hint is None and hint_widths is not None:
            out = codec.channels if hint_channels is None else hint_channels
            self.hint = HintNet(compression=codec.compression, widths=hint_widths, out=out)
        self.trunk = trunk(backbone, hint_channels=channels + (0 if self.hint is None else self.hint.out))
        self.fusion = fusion(backbone)

    def control(self, z_BCHW: Tensor, t_B: Tensor, hint: Hint, cond: Cond) -> dict[str, Tensor]:
        """The trunk's features by tap name.

        Args:
            z_BCHW: noisy latents.
            t_B: timesteps.
            hint: the LQ image, its latent if `lq_latent`, and the tokens that the trunk reads unless `text=semantic`.
            cond: the branch's condition, whose pooled and size parts (SDXL) the trunk shares.
        """
        tokens = cond.tokens_BLD if self.text == "semantic" else hint.instruction_BLD
        if tokens is None:
            raise ValueError("this adaptor reads an instruction, and the hint has none; fill prompt/instruction")
        read = Cond(tokens_BLD=tokens, pooled_BD=cond.pooled_BD, size_BD=cond.size_BD)
        features = [] if self.hint is None else [self.hint(hint).to(z_BCHW.dtype)]
        if self.lq_latent:
            if hint.lq_latent_BCHW is None:
                raise ValueError("this adaptor reads the LQ's latent (adaptor.lq_latent), and the hint has none")
            features.append(hint.lq_latent_BCHW.to(z_BCHW.dtype))
        return self.trunk(z_BCHW, t_B, torch.cat(features, dim=1), read)

    def fuse(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """The pure edit: the fusion, with the controls as its carry."""
        return self.fusion(tap, h_BCHW, temb_BD, carry)
