"""DRA's restoration adapters (section 3.2, Figs. 2, 3): a chain behind the prior's blocks. `adaptor=dra|dra_natural`.

Adapter i sits behind a block whose output is X_t. The LQ stream, at first the LQ's latent, later what the adapter
before made of it, passes a first layer; time embedding (SiLU, linear) and X_t are added; two blocks with residuals
follow; their output is the stream for the next adapter, and through a linear layer that starts at zero it is added to
X_t. On a UNet the adapters stand behind every block but the last, on an MM-DiT behind every fourth, with linear layers
in the place of convolutions. The paper gives neither kernels nor norms: `dra` has the kernels that make its parameter
counts (fitted), `dra_natural` 3x3 throughout. Shapes: LQ latent (B, C, h, w), X_t (B, c, h', w').
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.adaptors.control import Beside
from restore_lab.adaptors.fusion.zero_conv import zero_conv
from restore_lab.adaptors.fusion.zero_sft import group_norm
from restore_lab.types import Cond, Hint, Tap

if TYPE_CHECKING:
    from restore_lab.adaptors.lora import Lora
    from restore_lab.adaptors.visual_stream import VisualStream
    from restore_lab.backbones.base import Backbone


class MapNorm(nn.Module):
    """Layer norm over the channels of a map, without weights, as in a DiT's blocks."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.layer_norm(x_BCHW.movedim(1, -1), x_BCHW.shape[1:2], eps=1e-6).movedim(-1, 1)


def adapter_block(channels: int, *, kernels: Sequence[int], transformer: bool) -> nn.Sequential:
    """Norm, SiLU and a convolution for each kernel; on an MM-DiT norm, linear layer and SiLU."""
    if transformer:
        return nn.Sequential(MapNorm(), nn.Conv2d(channels, channels, 1), nn.SiLU())
    layers: list[nn.Module] = []
    for size in kernels:
        layers += [group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, size, padding=size // 2)]
    return nn.Sequential(*layers)


class RestorationAdapter(nn.Module):
    """One adapter.

    Args:
        inputs: channels of the stream that comes in.
        channels: of X_t.
        temb: width of the time embedding.
        lq_kernel: of the first layer.
        kernels: of the layers in each of the two residual blocks.
        transformer: the MM-DiT's form.
    """

    def __init__(
        self, *, inputs: int, channels: int, temb: int, lq_kernel: int, kernels: Sequence[int], transformer: bool
    ) -> None:
        super().__init__()
        self.lq = nn.Conv2d(inputs, channels, lq_kernel, padding=lq_kernel // 2)
        self.time = nn.Linear(temb, channels)
        self.blocks = nn.ModuleList(adapter_block(channels, kernels=kernels, transformer=transformer) for _ in range(2))
        self.out = zero_conv(channels, channels)

    def forward(self, x_BCHW: Tensor, stream_BCHW: Tensor, temb_BD: Tensor) -> tuple[Tensor, Tensor]:
        """X_t as it flows on, and the stream for the next adapter."""
        dtype = self.lq.weight.dtype
        if stream_BCHW.shape[-2:] != x_BCHW.shape[-2:]:
            stream_BCHW = resampled(stream_BCHW, x_BCHW.shape[-2:])
        time_BC11 = self.time(F.silu(temb_BD.to(dtype)))[:, :, None, None]
        h = self.lq(stream_BCHW.to(dtype)) + time_BC11 + x_BCHW.to(dtype)
        for block in self.blocks:
            h = h + block(h)
        return x_BCHW + self.out(h).to(x_BCHW.dtype), h


def resampled(map_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """A map at another size: averaged when it shrinks, bilinear when it grows."""
    if size[0] < map_BCHW.shape[-2]:
        return F.interpolate(map_BCHW, size=tuple(size), mode="area")
    return F.interpolate(map_BCHW, size=tuple(size), mode="bilinear", align_corners=False)


class RestorationAdapters(Beside):
    """The chain, and LoRA in the prior beside it; an `Edit` whose carry is the LQ stream.

    Args:
        backbone: whose blocks are followed by adapters.
        lq_kernel, kernels: of the adapters on a UNet.
        every: on an MM-DiT, blocks from one adapter to the next.
        stream: builds a visual stream in the prior; null for none.
        lora: builds LoRA in the prior; null for none.
        visual: width of what an image encoder sees, for the stream.
    """

    lq_latent = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        lq_kernel: int,
        kernels: Sequence[int],
        every: int,
        stream: Callable[..., VisualStream] | None,
        lora: Callable[..., Lora] | None,
        visual: int = 0,
    ) -> None:
        super().__init__()
        transformer = backbone.family == "mmdit"
        if every < 1:
            raise ValueError(f"adaptor.every={every} must be at least 1")
        blocks = [tap for tap in backbone.taps if tap.kind in ("block", "middle") and tap.name != "patch"]
        places = blocks[every - 1 :: every] if transformer else blocks[:-1]
        if not places:
            raise ValueError(f"adaptor.every={every}: this backbone has only {len(blocks)} blocks")
        inputs = backbone.codec.channels
        self.patch = places[0].stride if transformer else 1
        self.embed = None
        if transformer:
            inputs = places[0].channels
            self.embed = nn.Conv2d(backbone.codec.channels, inputs, self.patch, stride=self.patch)
            self.embed.load_state_dict(backbone.denoiser.pos_embed.proj.state_dict())
        self.adapters = nn.ModuleDict()
        for tap in places:
            self.adapters[tap.name.replace(".", "_")] = RestorationAdapter(
                inputs=inputs,
                channels=tap.channels,
                temb=backbone.temb_width,
                lq_kernel=1 if transformer else lq_kernel,
                kernels=kernels,
                transformer=transformer,
            )
            inputs = tap.channels
        self.put_beside(backbone, stream=stream, lora=lora, visual=visual)

    def control(self, z_BCHW: Tensor, t_B: Tensor, hint: Hint, cond: Cond) -> Tensor:
        """The stream before the first adapter.

        Raises:
            ValueError: if the hint has no latent.
        """
        if hint.lq_latent_BCHW is None:
            raise ValueError("restoration adapters read the LQ's latent, and the hint has none")
        if self.embed is None:
            return hint.lq_latent_BCHW
        return self.embed(hint.lq_latent_BCHW.to(self.embed.weight.dtype))

    def fuse(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        """The pure edit: what flows on behind a block that has an adapter, and the stream handed on."""
        name = tap.name.replace(".", "_")
        if name not in self.adapters:
            return h_BCHW, carry
        return self.adapters[name](h_BCHW, carry, temb_BD)
