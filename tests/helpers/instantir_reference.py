"""InstantIR's networks in their original layout, around diffusers' UNet: adapter, aggregator, previewer.

Written from the paper's and the release's description; the UNet and its blocks are diffusers', run by its forward, so
that the adapter's numbers are those of `unet.attn_processors` and the aggregator's outputs enter as residuals.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.types import Cond
from tests.helpers.ldm_reference import attend, sinusoids

# Endings of the layers that the previewer's LoRA changes.
LORA = ("to_q", "to_kv", "0.to_out", "attn1.to_k", "attn1.to_v", "to_k_ip", "to_v_ip", "ln_k_ip.linear")
LORA += ("ln_v_ip.linear", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
LORA += ("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")


class Perceiver(nn.Module):
    """Queries look at image tokens and at themselves; keys and values are one layer."""

    def __init__(self, width: int, heads: int, dim_head: int) -> None:
        super().__init__()
        inner, self.heads = heads * dim_head, heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(latents), k, v, heads=self.heads))


class Resampler(nn.Module):
    def __init__(self, *, inputs: int, outputs: int, hidden: int, depth: int, heads: int, dim_head: int, queries: int):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, queries, hidden))
        self.proj_in, self.proj_out = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.norm_out = nn.LayerNorm(outputs)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            up, down = nn.Linear(hidden, 4 * hidden, bias=False), nn.Linear(4 * hidden, hidden, bias=False)
            ff = nn.Sequential(nn.LayerNorm(hidden), up, nn.GELU(), down)
            self.layers.append(nn.ModuleList([Perceiver(hidden, heads, dim_head), ff]))

    def forward(self, x: Tensor) -> Tensor:
        x, latents = self.proj_in(x), self.latents.expand(len(x), -1, -1)
        for attention, ff in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + ff(latents)
        return self.norm_out(self.proj_out(latents))


class Ada(nn.Module):
    """LN(x) (1 + scale) + shift, shift first."""

    def __init__(self, temb: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(temb, 2 * width)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        shift, scale = self.linear(F.silu(temb))[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Plain(nn.Module):
    """A self attention's processor: without weights, but it counts."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        return attn.to_out[1](attn.to_out[0](attend(q, k, v, heads=attn.heads)))


class TimeAware(nn.Module):
    """A text attention's processor with a stream; tokens and time are laid on it before a forward."""

    def __init__(self, *, width: int, tokens: int, temb: int) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = (nn.Linear(tokens, width, bias=False) for _ in range(2))
        self.ln_k_ip, self.ln_v_ip = Ada(temb, width), Ada(temb, width)
        self.shown: tuple[Tensor, Tensor] | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None) -> Tensor:
        tokens, temb = self.shown
        q = attn.to_q(hidden_states)
        text = attend(q, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states), heads=attn.heads)
        k, v = self.ln_k_ip(self.to_k_ip(tokens), temb), self.ln_v_ip(self.to_v_ip(tokens), temb)
        return attn.to_out[1](attn.to_out[0](text + attend(q, k, v, heads=attn.heads)))


def with_adapter(unet: UNet2DConditionModel, resampler: Resampler) -> UNet2DConditionModel:
    """The UNet with a processor for every attention, in diffusers' order."""
    unet = copy.deepcopy(unet)
    processors: dict[str, Any] = {}
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        processors[name] = Plain()
        if ".attn2." in name:
            sizes = {"tokens": unet.config.cross_attention_dim, "temb": unet.time_embedding.linear_2.out_features}
            processors[name] = TimeAware(width=attention.inner_dim, **sizes)
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = nn.Module()
    unet.encoder_hid_proj.image_projection_layers = nn.ModuleList([resampler])
    return unet


def adapter_state(unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """adapter.pt."""
    numbered = nn.ModuleList(unet.attn_processors.values())
    return {
        "image_proj": unet.encoder_hid_proj.image_projection_layers[0].state_dict(),
        "ip_adapter": numbered.state_dict(),
    }


def added_of(cond: Cond) -> dict[str, Tensor]:
    return {"text_embeds": cond.pooled_BD, "time_ids": cond.size_BD}


def temb_of(module: Any, t: Tensor, cond: Cond, *, width: int, size_width: int) -> Tensor:
    """The embedding of time, pooled text and sizes."""
    sizes = sinusoids(cond.size_BD.flatten(), size_width).reshape(len(t), -1)
    embeddings = []
    pairs = (module.time_embedding, sinusoids(t, width)), (module.add_embedding, torch.cat([cond.pooled_BD, sizes], -1))
    for layers, value in pairs:
        embeddings.append(layers.linear_2(F.silu(layers.linear_1(value))))
    return embeddings[0] + embeddings[1]


def run(unet: UNet2DConditionModel, z: Tensor, t: Tensor, cond: Cond, seen: Tensor, residuals: list | None = None):
    """The UNet with its adapter, looking at `seen`, perhaps with an aggregator's outputs."""
    width, size_width = unet.config.block_out_channels[0], unet.config.addition_time_embed_dim
    temb = temb_of(unet, t, cond, width=width, size_width=size_width)
    tokens = unet.encoder_hid_proj.image_projection_layers[0](seen)
    for processor in unet.attn_processors.values():
        processor.shown = (tokens, temb)
    extra: dict[str, Any] = {}
    if residuals is not None:
        extra = {"down_block_additional_residuals": residuals[:-1], "mid_block_additional_residual": residuals[-1]}
    kind, unet.config.encoder_hid_dim_type = unet.encoder_hid_proj, None
    unet.encoder_hid_proj = None
    try:
        return unet(z, t, cond.tokens_BLD, added_cond_kwargs=added_of(cond), **extra).sample
    finally:
        unet.encoder_hid_proj = kind


class Sft(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Conv2d(width, 128, 3, padding=1), nn.SiLU())
        self.mul, self.add = (nn.Conv2d(128, width, 3, padding=1) for _ in range(2))

    def forward(self, lq: Tensor, preview: Tensor) -> Tensor:
        a = self.mlp_shared(lq)
        return preview * (1 + self.mul(a)) + self.add(a)


class Aggregator(nn.Module):
    """diffusers' encoder half without attention to the text, over [LQ above preview]."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        own = copy.deepcopy(unet)
        self.width, self.size_width = own.config.block_out_channels[0], own.config.addition_time_embed_dim
        self.conv_in, self.ref_conv_in = own.conv_in, copy.deepcopy(own.conv_in)
        self.time_embedding, self.add_embedding = own.time_embedding, own.add_embedding
        self.down_blocks, self.mid_block = own.down_blocks, own.mid_block
        widths = [self.width]
        for block in (*self.down_blocks, self.mid_block):
            for attention in getattr(block, "attentions", None) or ():
                for layer in attention.transformer_blocks:
                    layer.attn2 = layer.norm2 = None
        for block in self.down_blocks:
            widths += [x.out_channels for x in (*block.resnets, *(block.downsamplers or ()))]
        pairs = [nn.ModuleList([Sft(width), nn.Conv2d(width, width, 1)]) for width in (*widths, widths[-1])]
        self.controlnet_down_blocks, self.controlnet_mid_block = nn.ModuleList(pairs[:-1]), pairs[-1]

    def forward(self, lq: Tensor, preview: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        temb = temb_of(self, t, cond, width=self.width, size_width=self.size_width)
        h = torch.cat([self.conv_in(lq), self.ref_conv_in(preview)], dim=-2)
        found = [h]
        for block in self.down_blocks:
            h, skips = block(hidden_states=h, temb=temb)
            found += list(skips)
        found.append(self.mid_block(h, temb))
        outs = []
        for (sft, zero), features in zip((*self.controlnet_down_blocks, self.controlnet_mid_block), found, strict=True):
            outs.append(zero(sft(*features.chunk(2, dim=-2))))
        return outs


def lora_of(unet: UNet2DConditionModel, *, rank: int, seed: int | None) -> dict[str, Tensor]:
    """A random LoRA of every layer that the previewer changes, in peft's names of the UNet with its adapter.

    Without a seed its shapes alone, on the meta device.
    """
    if seed is None:
        with torch.device("meta"):
            return {name: torch.empty(shape) for name, shape in lora_shapes(unet, rank=rank).items()}
    draw, found = torch.Generator().manual_seed(seed), {}
    for name, shape in lora_shapes(unet, rank=rank).items():
        value = torch.randn(shape, generator=draw)
        found[name] = value / math.sqrt(value[0].numel()) if ".lora_A." in name else 0.2 * value
    return found


def lora_shapes(unet: UNet2DConditionModel, *, rank: int) -> dict[str, tuple[int, ...]]:
    """Of A and B by name; a convolution's B is 1x1."""
    found: dict[str, tuple[int, ...]] = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and any(f".{name}".endswith(f".{ending}") for ending in LORA):
            outputs, inputs, *spread = layer.weight.shape
            found[f"{name}.lora_A.weight"] = (rank, inputs, *spread)
            found[f"{name}.lora_B.weight"] = (outputs, rank, *(1 for _ in spread))
    return found


def merged(unet: UNet2DConditionModel, lora: dict[str, Tensor], *, scale: float) -> UNet2DConditionModel:
    """The UNet with W + scale B A in its layers."""
    unet = copy.deepcopy(unet)
    with torch.no_grad():
        for key, down in lora.items():
            if key.endswith(".lora_A.weight"):
                name = key.removesuffix(".lora_A.weight")
                up = lora[f"{name}.lora_B.weight"]
                weight = unet.get_submodule(name).weight
                weight += scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return unet
