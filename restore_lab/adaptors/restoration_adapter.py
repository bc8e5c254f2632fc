"""DRA's restoration adapters (section 3.2, Figs. 2, 3): a chain after the prior's blocks. `adaptor=dra|dra_natural`.

Each adapter follows a block of the prior with output X_t. Its input is the LQ stream: the LQ latent for the first
adapter, the previous adapter's output for the others. It applies a first layer, adds the time embedding (SiLU, linear)
and X_t, and applies two residual blocks. The result is the next adapter's LQ stream and, after a zero-initialised
linear layer, is added to X_t. In a UNet there is an adapter after every block but the last; in an MM-DiT after every
fourth, with linear layers instead of convolutions. The paper gives neither kernel sizes nor norms: `dra` has kernel
sizes fitted to its parameter counts, `dra_natural` 3x3 throughout. Shapes: LQ latent (B, C, h, w), X_t (B, c, h', w').
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.adaptors.control import Adaptor
from restore_lab.adaptors.fusion.zero_conv import zero_conv
from restore_lab.adaptors.fusion.zero_sft import group_norm
from restore_lab.config.kinds import Count
from restore_lab.types import Cond, Hint, Tap

if TYPE_CHECKING:
    from restore_lab.adaptors.lora import Lora
    from restore_lab.adaptors.stream import VisualStream
    from restore_lab.backbones.base import Backbone


class MapNorm(nn.Module):
    """Layer norm over the channels of a feature map, without affine parameters, as in DiT blocks."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.layer_norm(x_BCHW.movedim(1, -1), x_BCHW.shape[1:2], eps=1e-6).movedim(-1, 1)


def adapter_block(channels: int, *, kernels: Sequence[int], transformer: bool) -> nn.Sequential:
    """Norm, SiLU and convolution per kernel size; for an MM-DiT norm, linear layer and SiLU."""
    if transformer:
        return nn.Sequential(MapNorm(), nn.Conv2d(channels, channels, 1), nn.SiLU())
    layers: list[nn.Module] = []
    for size in kernels:
        layers += [group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, size, padding=size // 2)]
    return nn.Sequential(*layers)


class RestorationAdapter(nn.Module):
    """One adapter.

    Args:
        inputs: channels of the incoming LQ stream.
        channels: channels of X_t.
        temb: width of the time embedding.
        lq_kernel: kernel size of the first layer.
        kernels: kernel sizes in each of the two residual blocks.
        transformer: whether the prior is an MM-DiT.
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
        """The edited X_t, and the LQ stream for the next adapter."""
        dtype = self.lq.weight.dtype
        if stream_BCHW.shape[-2:] != x_BCHW.shape[-2:]:
            stream_BCHW = resize_features(stream_BCHW, x_BCHW.shape[-2:])
        time_BC11 = self.time(F.silu(temb_BD.to(dtype)))[:, :, None, None]
        h = self.lq(stream_BCHW.to(dtype)) + time_BC11 + x_BCHW.to(dtype)  # DRA, Fig. 3
        for block in self.blocks:
            h = h + block(h)
        return x_BCHW + self.out(h).to(x_BCHW.dtype), h  # DRA, Fig. 3 and section 3.2: the adapter's output


def resize_features(map_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """A feature map at another size: area averaging to downsample, bilinear to upsample."""
    if size[0] < map_BCHW.shape[-2]:
        return F.interpolate(map_BCHW, size=tuple(size), mode="area")
    return F.interpolate(map_BCHW, size=tuple(size), mode="bilinear", align_corners=False)


class RestorationAdapters(Adaptor):
    """The chain of adapters, with LoRA in the prior; an `Edit` whose carry is the LQ stream.

    Args:
        backbone: the prior.
        lq_kernel, kernels: kernel sizes of the adapters in a UNet.
        every: number of MM-DiT blocks per adapter.
        stream: builds a visual stream in the prior; null for none.
        lora: builds LoRA in the prior; null for none.
        visual: width of the image encoder's features, for the stream.
    """

    lq_latent = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        lq_kernel: int,
        kernels: Sequence[int],
        every: Count,
        stream: Callable[..., VisualStream] | None,
        lora: Callable[..., Lora] | None,
        visual: int = 0,
    ) -> None:
        super().__init__()
        transformer = backbone.family == "mmdit"
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
        self.install(backbone, stream=stream, lora=lora, visual=visual)

    def control(self, z_BCHW: Tensor, t_B: Tensor, hint: Hint, cond: Cond) -> Tensor:
        """The LQ stream for the first adapter.

        Raises:
            ValueError: if the hint has no LQ latent.
        """
        if hint.lq_latent_BCHW is None:
            raise ValueError("restoration adapters read the LQ's latent, and the hint has none")
        if self.embed is None:
            return hint.lq_latent_BCHW
        return self.embed(hint.lq_latent_BCHW.to(self.embed.weight.dtype))

    def fuse(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        """The pure edit: the output of a block with an adapter, and the next adapter's LQ stream."""
        name = tap.name.replace(".", "_")
        if name not in self.adapters:
            return h_BCHW, carry
        return self.adapters[name](h_BCHW, carry, temb_BD)
