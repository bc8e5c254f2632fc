"""Control adaptors: hint network, trunk and fusion around a frozen backbone. `adaptor=spire|supir|instantir|...`.

`control()` runs hint network and trunk once per step; `fuse` is the pure `Edit` that adds the result to the backbone:
`backbone(z, t, cond, at=adaptor.fuse, carry=adaptor.control(z, t, hint, cond))`. A visual stream and LoRA can be added
in the prior itself. All channel counts come from the backbone's taps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from restore_lab.adaptors.hint_net import HintNet
from restore_lab.adaptors.lora import Lora
from restore_lab.config.kinds import Count, CountOrZero
from restore_lab.config.validate import check_arguments
from restore_lab.types import Cond, Hint, Tap

if TYPE_CHECKING:
    from restore_lab.adaptors.stream import VisualStream
    from restore_lab.adaptors.trunk.mmdit import MMDiTTrunk
    from restore_lab.adaptors.trunk.unet import Trunk
    from restore_lab.backbones.base import Backbone


class HintEncoder(Protocol):
    """A network that maps the hint to features at the latent's size, with `out` channels."""

    out: int

    def __call__(self, hint: Hint) -> Tensor: ...


class Adaptor(nn.Module):
    """The base class of all adaptors: an optional visual stream and LoRA in the prior, and no other edit.

    Attributes:
        text: the text that the adaptor reads; "semantic" differs per guidance branch.
        lq_latent, reference: whether the adaptor reads the LQ latent, and a reference latent.
    """

    text: str = "none"
    lq_latent: bool = False
    reference: bool = False

    def install(
        self,
        backbone: Backbone,
        *,
        stream: Callable[..., VisualStream] | None,
        lora: Callable[..., Lora] | None,
        visual: int,
    ) -> None:
        """Build the visual stream and LoRA in the prior; call it last, after all copies of the prior's modules."""
        self.stream = None if stream is None else stream(backbone, inputs=visual)
        self.lora = None
        if lora is not None:
            self.lora = lora(backbone) if self.stream is None else lora(backbone, others=self.stream.lora_hosts())

    def precompute(self, hint: Hint) -> Hint:
        """The hint with the features that are the same in all steps; none by default."""
        return hint

    def reads(self, cond: Cond) -> tuple[Tensor | None, ...]:
        """The parts of a branch's condition that `control` reads; branches with equal parts share one call."""
        return (cond.tokens_BLD, cond.pooled_BD) if self.text == "semantic" else ()

    def control(self, z_BCHW: Tensor, t_B: Tensor, hint: Hint, cond: Cond) -> Any:
        """The initial carry of `fuse`; None for an adaptor that is only in the prior."""
        return None

    def fuse(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        """The pure edit; the identity by default."""
        return h_BCHW, carry


class StreamAdaptor(Adaptor):
    """An adaptor without a trunk: only a visual stream and LoRA in the prior (InstantIR's DCP). `adaptor=dcp`."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        stream: Callable[..., VisualStream] | None,
        lora: Callable[..., Lora] | None,
        visual: int = 0,
    ) -> None:
        super().__init__()
        if stream is None and lora is None:
            raise ValueError("this adaptor has neither a stream nor LoRA; set adaptor/stream=dcp or adaptor/lora=...")
        self.install(backbone, stream=stream, lora=lora, visual=visual)


@check_arguments
class ControlAdaptor(Adaptor):
    """SPIRE's adaptor and its variants.

    Args:
        backbone: the frozen prior; the trunk is initialised as a copy of its encoder.
        trunk: builds the trunk from the backbone and the hint's channels.
        fusion: builds the fusion from the backbone and the trunk's controls.
        text: text of the trunk's cross attention: "instruction" (SPIRE), "semantic", the prior's text (ControlNet),
            "none" (always the empty text), or "removed" (no cross attention, as in InstantIR).
        hint_widths: channels of the hint network at each resolution; null for no hint network.
        hint_channels: output channels of the hint network; null for the latent's channels, 0 for its last width.
        hint_signed: whether the hint network reads the LQ in [-1, 1]; diffusers' ControlNets read it in [0, 1].
        encoder: builds another hint network from the codec's compression, instead of E'(y); it has `out` channels and
            reads the whole hint (Diff-Restorer's control encoder).
        lq_latent: feed the trunk the LQ latent, with or without the hint network's features (SUPIR: without). SPIRE's
            paper does not; in short training runs the hint network need not learn the codec's encoding then.
        stream: builds a visual stream in the prior; null for none.
        lora: builds LoRA in the prior; null for none.
        visual: width of the image encoder's features, for the stream.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        trunk: Callable[..., Trunk | MMDiTTrunk],
        fusion: Callable[..., nn.Module],
        text: Literal["instruction", "semantic", "none", "removed"],
        hint_widths: Sequence[Count] | None,
        hint_channels: CountOrZero | None,
        hint_signed: bool = True,
        lq_latent: bool = False,
        encoder: Callable[..., HintEncoder] | None = None,
        stream: Callable[..., VisualStream] | None = None,
        lora: Callable[..., Lora] | None = None,
        visual: int = 0,
    ) -> None:
        super().__init__()
        if hint_widths is None and encoder is None and not lq_latent:
            raise ValueError("this adaptor sees nothing of the LQ; set adaptor.lq_latent=true or give hint_widths")
        self.text, self.lq_latent = text, lq_latent
        codec, channels = backbone.codec, backbone.codec.channels if lq_latent else 0
        self.hint: HintEncoder | None = None if encoder is None else encoder(compression=codec.compression)
        if self.hint is None and hint_widths is not None:
            out = codec.channels if hint_channels is None else hint_channels
            self.hint = HintNet(compression=codec.compression, widths=hint_widths, out=out, signed=hint_signed)
        self.trunk = trunk(
            backbone, hint_channels=channels + (0 if self.hint is None else self.hint.out), text=text != "removed"
        )
        self.reference = self.trunk.feed == "spatial"
        if self.reference and (self.hint is not None or not lq_latent):
            raise ValueError("adaptor.trunk.feed=spatial lays the LQ's latent above a reference; set lq_latent alone")
        self.fusion = fusion(backbone, controls=self.trunk.controls)
        self.install(backbone, stream=stream, lora=lora, visual=visual)

    def precompute(self, hint: Hint) -> Hint:
        """The hint with the hint network's features."""
        return hint if self.hint is None else replace(hint, features_BCHW=self.hint(hint))

    def reads(self, cond: Cond) -> tuple[Tensor | None, ...]:
        """The text tokens, for `text=semantic`, and the pooled text, which every trunk's time embedding reads."""
        return super().reads(cond) or (cond.pooled_BD,)

    def control(self, z_BCHW: Tensor, t_B: Tensor, hint: Hint, cond: Cond) -> dict[str, Tensor]:
        """The trunk's features by tap name.

        Args:
            z_BCHW: noisy latents.
            t_B: timesteps, (B,).
            hint: the LQ image, its latent if `lq_latent`, a reference if the trunk reads one, and the instruction
                tokens unless `text` is "semantic" or "removed".
            cond: the branch's condition; the trunk shares its pooled text and size conditioning (SDXL).
        """
        tokens = hint.instruction_BLD if self.text in ("instruction", "none") else cond.tokens_BLD
        if tokens is None:
            raise ValueError("this adaptor reads an instruction, and the hint has none; fill prompt/instruction")
        read = Cond(tokens_BLD=tokens, pooled_BD=cond.pooled_BD, size_BD=cond.size_BD)
        features: list[Tensor] = []
        if self.hint is not None:
            features_BCHW = self.hint(hint) if hint.features_BCHW is None else hint.features_BCHW
            features.append(features_BCHW.to(z_BCHW.dtype))
        if self.lq_latent:
            if hint.lq_latent_BCHW is None:
                raise ValueError("this adaptor reads the LQ's latent (adaptor.lq_latent), and the hint has none")
            features.append(hint.lq_latent_BCHW.to(z_BCHW.dtype))
        return self.trunk(z_BCHW, t_B, torch.cat(features, dim=1), read, hint.reference_BCHW)

    def fuse(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """The pure edit: the fusion, with the controls as carry."""
        return self.fusion(tap, h_BCHW, temb_BD, carry)
