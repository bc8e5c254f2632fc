"""Reference networks in the original layouts, written from the papers' and releases' descriptions.

Latent diffusion's UNet as modules whose state dicts have the public keys (`input_blocks.4.1.proj_in.weight`), SUPIR's
control branch and connectors on it, DiffBIR's ControlNet, the KL encoder with SUPIR's copy of it. No code of the
package is used here: an importer that puts a tensor in the wrong place, or a part of ours that computes otherwise,
shows as another output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t at frequencies from 1 down to 1/10000."""
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, *, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over heads, by hand."""
    split = [x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v)]
    scores = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1])
    return (scores.softmax(dim=-1) @ split[2]).transpose(1, 2).flatten(2)


class Res(nn.Module):
    def __init__(self, inputs: int, outputs: int, temb: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(temb, outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        inner = self.in_layers(h) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(h) + self.out_layers(inner)


class Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, width, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        return self.to_out(attend(self.to_q(h), self.to_k(context), self.to_v(context), heads=self.heads))


class GEGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, h: Tensor) -> Tensor:
        value, gate = self.proj(h).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width), nn.Dropout(0), nn.Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        return self.net(h)


class Layer(nn.Module):
    """One transformer layer; `text` false has no attention to the text (InstantIR's aggregator)."""

    def __init__(self, width: int, context: int, heads: int, *, text: bool = True) -> None:
        super().__init__()
        self.attn1 = Attention(width, width, heads)
        self.ff = FeedForward(width)
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        if text:
            self.attn2, self.norm2 = Attention(width, context, heads), nn.LayerNorm(width)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        normed = self.norm1(h)
        h = h + self.attn1(normed, normed)
        if hasattr(self, "attn2"):
            h = h + self.attn2(self.norm2(h), context)
        return h + self.ff(self.norm3(h))


class Transformer(nn.Module):
    """A spatial transformer with linear projections (SD 2, SDXL)."""

    def __init__(self, width: int, context: int, heads: int, depth: int, *, text: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(Layer(width, context, heads, text=text) for _ in range(depth))

    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        x = self.proj_in(self.norm(h).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            x = block(x, context)
        return h + self.proj_out(x).transpose(1, 2).reshape(h.shape)


class Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.op(h)


class Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, h: Tensor, emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return super().forward(h)


class Seq(nn.Sequential):
    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for module in self:
            h = module(h, emb, context)
        return h


class Encoder(nn.Module):
    """time_embed, label_emb, input_blocks, middle_block.

    Args:
        inputs: channels of the first convolution.
        widths: of each level.
        heads: of each level.
        depths: transformer layers of each level, 0 for none; the last is the middle's too.
        layers: residual blocks of each level.
        context, label: widths of text token and of vector y, 0 for none.
    """

    def __init__(
        self,
        *,
        inputs: int,
        widths: Sequence[int],
        heads: Sequence[int],
        depths: Sequence[int],
        middle_depth: int,
        layers: int,
        context: int,
        label: int,
    ) -> None:
        super().__init__()
        self.width, temb = widths[0], 4 * widths[0]
        self.time_embed = nn.Sequential(nn.Linear(widths[0], temb), nn.SiLU(), nn.Linear(temb, temb))
        if label:
            self.label_emb = nn.Sequential(nn.Sequential(nn.Linear(label, temb), nn.SiLU(), nn.Linear(temb, temb)))
        self.input_blocks = nn.ModuleList([Seq(First(inputs, widths[0], 3, padding=1))])
        self.channels, now = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for _ in range(layers):
                self.input_blocks.append(Seq(*self.pair(now, width, temb, context, heads[level], depths[level])))
                now = width
                self.channels.append(now)
            if level < len(widths) - 1:
                self.input_blocks.append(Seq(Down(now)))
                self.channels.append(now)
        self.middle_block = Seq(
            Res(now, now, temb), Transformer(now, context, heads[-1], middle_depth), Res(now, now, temb)
        )

    @staticmethod
    def pair(inputs: int, outputs: int, temb: int, context: int, heads: int, depth: int) -> list[nn.Module]:
        """A residual block and, if it has one, the attention after it."""
        own: list[nn.Module] = [Res(inputs, outputs, temb)]
        return own + ([Transformer(outputs, context, heads, depth)] if depth else [])

    def embedded(self, t: Tensor, y: Tensor | None) -> Tensor:
        emb = self.time_embed(sinusoids(t, self.width))
        return emb if y is None else emb + self.label_emb(y)

    def encode(self, x: Tensor, emb: Tensor, context: Tensor, *, hint: Tensor | float = 0.0) -> list[Tensor]:
        """Every input block's output and the middle's; `hint` is added after the first."""
        found, h = [], x
        for i, block in enumerate(self.input_blocks):
            h = block(h, emb, context) + (hint if i == 0 else 0.0)
            found.append(h)
        return [*found, self.middle_block(h, emb, context)]


class UNet(Encoder):
    """The whole, with output_blocks and out; `project(i, ...)` may meet the decoder."""

    def __init__(self, *, widths: Sequence[int], heads, depths, middle_depth, layers, context, label) -> None:
        super().__init__(
            inputs=4,
            widths=widths,
            heads=heads,
            depths=depths,
            middle_depth=middle_depth,
            layers=layers,
            context=context,
            label=label,
        )
        temb, now, skips = 4 * widths[0], widths[-1], list(self.channels)
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for i in range(layers + 1):
                own = self.pair(now + skips.pop(), widths[level], temb, context, heads[level], depths[level])
                now = widths[level]
                self.output_blocks.append(Seq(*own, *([Up(now)] if level and i == layers else [])))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, 4, 3, padding=1))

    def decode(self, found: list[Tensor], emb: Tensor, context: Tensor) -> Tensor:
        """From the skips and the middle, as they are, to the output."""
        *skips, h = found
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embedded(t, y)
        return self.decode(self.encode(x, emb, context), emb, context)


class ZeroSFT(nn.Module):
    def __init__(self, control: int, skip: int, up: int) -> None:
        super().__init__()
        self.param_free_norm = nn.GroupNorm(32, skip + up)
        self.mlp_shared = nn.Sequential(nn.Conv2d(control, 128, 3, padding=1), nn.SiLU())
        self.zero_mul, self.zero_add = (nn.Conv2d(128, skip + up, 3, padding=1) for _ in range(2))
        self.zero_conv = nn.Conv2d(control, skip, 1)

    def forward(self, c: Tensor, skip: Tensor, up: Tensor | None = None) -> Tensor:
        h = skip + self.zero_conv(c)
        h = h if up is None else torch.cat([up, h], dim=1)
        a = self.mlp_shared(c)
        return self.param_free_norm(h) * (1 + self.zero_mul(a)) + self.zero_add(a)


class ZeroCrossAttn(nn.Module):
    def __init__(self, control: int, query: int) -> None:
        super().__init__()
        self.attn = Attention(query, control, query // 64)
        self.norm1, self.norm2 = nn.GroupNorm(32, query), nn.GroupNorm(32, control)

    def forward(self, c: Tensor, h: Tensor) -> Tensor:
        query, context = (x.flatten(2).transpose(1, 2) for x in (self.norm1(h), self.norm2(c)))
        return h + self.attn(query, context).transpose(1, 2).reshape(h.shape)


class Control(Encoder):
    """SUPIR's control branch: z_lq through a convolution, added after the first."""

    def __init__(self, **shape) -> None:
        super().__init__(inputs=4, **shape)
        self.input_hint_block = Seq(First(4, shape["widths"][0], 3, padding=1))

    def forward(self, z_lq: Tensor, t: Tensor, xt: Tensor, context: Tensor, y: Tensor) -> list[Tensor]:
        emb = self.embedded(t, y)
        return self.encode(xt, emb, context, hint=self.input_hint_block(z_lq, emb, context))


class ControlledUNet(UNet):
    """SUPIR's UNet: connectors before every output block and after the middle, attentions before the upsamplers.

    `project_modules` are counted from the last place to the first.
    """

    def __init__(self, **shape) -> None:
        super().__init__(**shape)
        skips, up, modules = list(self.channels), shape["widths"][-1], []
        modules.append(ZeroSFT(up, up, 0))
        for block in self.output_blocks:
            skip = skips.pop()
            modules.append(ZeroSFT(skip, skip, up))
            up = block[0].out_layers[3].out_channels
            if isinstance(block[-1], Up):
                modules.append(ZeroCrossAttn(skip, up))
        self.project_modules = nn.ModuleList(reversed(modules))

    def forward(self, x: Tensor, t: Tensor, context: Tensor, y: Tensor, control: list[Tensor]) -> Tensor:
        emb = self.embedded(t, y)
        *skips, h = self.encode(x, emb, context)
        *controls, middle = control
        projects = list(self.project_modules)
        h = projects.pop()(middle, h)
        for block in self.output_blocks:
            c = controls.pop()
            h = projects.pop()(c, skips.pop(), h)
            for layer in block:
                h = projects.pop()(c, h) if isinstance(layer, Up) else h
                h = layer(h, emb, context)
        return self.out(h)


class Nested(nn.Module):
    """A module without a forward, for names."""


class KLRes(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs, eps=1e-6), nn.GroupNorm(32, outputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, h: Tensor) -> Tensor:
        inner = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))
        return inner + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else h)


class KLAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        n = self.norm(h)
        q, k, v = (conv(n).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        return h + self.proj_out(attend(q, k, v, heads=1).transpose(1, 2).reshape(h.shape))


class KLEncoder(nn.Module):
    """LDM's encoder: double_z, attention in the middle, downsampling with a pad below and to the right."""

    def __init__(self, *, widths: Sequence[int], layers: int, latent: int = 4) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down, now = nn.ModuleList(), widths[0]
        for i, width in enumerate(widths):
            level = Nested()
            level.block = nn.ModuleList(KLRes(now if j == 0 else width, width) for j in range(layers))
            level.attn = nn.ModuleList()
            now = width
            if i < len(widths) - 1:
                level.downsample = Nested()
                level.downsample.conv = nn.Conv2d(now, now, 3, stride=2)
            self.down.append(level)
        self.mid = Nested()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = KLRes(now, now), KLAttention(now), KLRes(now, now)
        self.norm_out = nn.GroupNorm(32, now, eps=1e-6)
        self.conv_out = nn.Conv2d(now, 2 * latent, 3, padding=1)

    def forward(self, x: Tensor, *, levels: list[Tensor] | None = None) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                h = block(h)
            if levels is not None:
                levels.append(h)
            if hasattr(level, "downsample"):
                h = level.downsample.conv(F.pad(h, (0, 1, 0, 1)))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        return self.conv_out(F.silu(self.norm_out(h)))


class RDB(nn.Module):
    """ESRGAN's residual dense block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for i in range(4):
            setattr(self, f"conv{i + 1}", nn.Conv2d(width + 32 * i, 32, 3, padding=1))
        self.conv5 = nn.Conv2d(width + 128, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = F.leaky_relu(self.conv1(x), 0.2)
        x2 = F.leaky_relu(self.conv2(torch.cat([x, x1], 1)), 0.2)
        x3 = F.leaky_relu(self.conv3(torch.cat([x, x1, x2], 1)), 0.2)
        x4 = F.leaky_relu(self.conv4(torch.cat([x, x1, x2, x3], 1)), 0.2)
        return x + 0.2 * self.conv5(torch.cat([x, x1, x2, x3, x4], 1))


class RRDB(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = RDB(width), RDB(width), RDB(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class FuseRes(KLRes):
    """The autoencoder's residual block, whose 1x1 shortcut has another name here."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        if inputs != outputs:
            self.conv_out = self.nin_shortcut
            del self.nin_shortcut

    def forward(self, h: Tensor) -> Tensor:
        inner = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))
        return inner + (self.conv_out(h) if hasattr(self, "conv_out") else h)


class Fuse(nn.Module):
    """StableSR's controllable feature wrapping at one level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encode_enc_1, self.encode_enc_3 = FuseRes(2 * width, width), FuseRes(width, width)
        self.encode_enc_2 = nn.Sequential(RRDB(width), RRDB(width))

    def forward(self, enc: Tensor, dec: Tensor, w: float) -> Tensor:
        return dec + w * self.encode_enc_3(self.encode_enc_2(self.encode_enc_1(torch.cat([enc, dec], 1))))


class KLDecoder(nn.Module):
    """LDM's decoder; with `fuse`, a `fusion_layer_i` at every level but the first and the last."""

    def __init__(self, *, widths: Sequence[int], layers: int, latent: int = 4, fuse: bool = False) -> None:
        super().__init__()
        now = widths[-1]
        self.conv_in = nn.Conv2d(latent, now, 3, padding=1)
        self.mid = Nested()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = KLRes(now, now), KLAttention(now), KLRes(now, now)
        ups = []
        for i in reversed(range(len(widths))):
            level = Nested()
            level.block = nn.ModuleList(KLRes(now if j == 0 else widths[i], widths[i]) for j in range(layers + 1))
            level.attn = nn.ModuleList()
            now = widths[i]
            if i:
                level.upsample = Nested()
                level.upsample.conv = nn.Conv2d(now, now, 3, padding=1)
            if fuse and 0 < i < len(widths) - 1:
                setattr(self, f"fusion_layer_{i}", Fuse(now))
            ups.insert(0, level)
        self.up = nn.ModuleList(ups)
        self.norm_out = nn.GroupNorm(32, now, eps=1e-6)
        self.conv_out = nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, z: Tensor, features: Sequence[Tensor], *, w: float) -> Tensor:
        h = self.conv_in(z)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        for i in reversed(range(len(self.up))):
            for block in self.up[i].block:
                h = block(h)
            if hasattr(self, f"fusion_layer_{i}"):
                h = getattr(self, f"fusion_layer_{i}")(features[i], h, w)
            if i:
                h = self.up[i].upsample.conv(F.interpolate(h, scale_factor=2, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


class DiffBIRControl(Encoder):
    """IRControlNet: [x, hint] in the first convolution, a zero convolution on every feature."""

    def __init__(self, **shape) -> None:
        super().__init__(inputs=8, label=0, **shape)
        self.zero_convs = nn.ModuleList(Seq(First(width, width, 1)) for width in self.channels)
        self.middle_block_out = Seq(First(self.channels[-1], self.channels[-1], 1))

    def forward(self, x: Tensor, hint: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        emb = self.embedded(t, None)
        found = self.encode(torch.cat([x, hint], dim=1), emb, context)
        convs = [*self.zero_convs, self.middle_block_out]
        return [conv(h, emb, context) for conv, h in zip(convs, found, strict=True)]


def randomised(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Every parameter random, so that no zero convolution hides what precedes it."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return module.eval()
