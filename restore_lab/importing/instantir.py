"""InstantIR's files (Huang et al. 2024): adapter (DCP), aggregator, previewer LoRA.

adapter.pt: `image_proj.*` is the resampler, with one layer for keys and values (here two), and `ip_adapter.n.*` are the
streams, where n counts diffusers' attention processors, self attentions included. aggregator.pt: diffusers' names, plus
`ref_conv_in` and a connector in each `controlnet_down_blocks.i` ([SFT, zero convolution]), numbered by skip. The
previewer is a LoRA in diffusers' format (lora.py) that also covers the resampler and the streams.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from torch import Tensor

from restore_lab.importing.checkpoint import Checkpoint
from restore_lab.importing.layout import Layout, Piece, has_prefixes
from restore_lab.methods.module import RestorationModule

LICENCE = "Apache-2.0, https://huggingface.co/InstantX/InstantIR"
INSTANTIR_WORDS = ("method=instantir", "scale=full")
RESAMPLER = {  # inside a layer, ours to theirs
    "ln0": "0.norm1",
    "ln1": "0.norm2",
    "attn.to_q": "0.to_q",
    "attn.to_out.0": "0.to_out",
    "ff.0": "1.0",
    "ff.1.net.0.proj": "1.1",
    "ff.1.net.2": "1.3",
}
SFT_CONNECTOR = {"shared.0": "0.mlp_shared.0", "alpha": "0.mul", "beta": "0.add", "zero": "1"}


def half(index: int, value: Tensor) -> Tensor:
    """The half of a joint key-value projection for keys (0) or values (1)."""
    return value.chunk(2, dim=0)[index]


def keys_half(value: Tensor) -> Tensor:
    """The key half of a joint key-value projection."""
    return half(0, value)


def values_half(value: Tensor) -> Tensor:
    """The value half of a joint key-value projection."""
    return half(1, value)


def resampler_piece(name: str) -> Piece | None:
    """The source in IP-Adapter's resampler of a tensor of diffusers' resampler."""
    if name in ("latents", "proj_in.weight", "proj_in.bias", "proj_out.weight", "proj_out.bias"):
        return Piece(key=name)
    if name.startswith("norm_out."):
        return Piece(key=name)
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return None
    place, inner, ending = match.groups()
    if inner in ("attn.to_k", "attn.to_v"):
        take = keys_half if inner == "attn.to_k" else values_half
        return Piece(key=f"layers.{place}.0.to_kv.{ending}", take=take)
    return Piece(key=f"layers.{place}.{RESAMPLER[inner]}.{ending}") if inner in RESAMPLER else None


def adapter_sources(names: Iterable[str], module: RestorationModule, source: Checkpoint) -> dict[str, Piece]:
    """Resampler and streams."""
    processors = module.backbone.denoiser.attn_processors
    numbers = {name.removesuffix(".processor").replace(".", "_"): n for n, name in enumerate(processors)}
    found: dict[str, Piece] = {}
    for name in names:
        rest = name.removeprefix("stream.")
        if rest.startswith("resampler.") and (piece := resampler_piece(rest.removeprefix("resampler."))):
            found[name] = Piece(key=f"image_proj.{piece.key}", take=piece.take)
        elif match := re.fullmatch(r"layers\.(\w+)\.((?:to_[kv]_ip|ln_[kv]_ip\.linear)\.\w+)", rest):
            found[name] = Piece(key=f"ip_adapter.{numbers[match[1]]}.{match[2]}")
    return found


def aggregator_sources(names: Iterable[str], module: RestorationModule, source: Checkpoint) -> dict[str, Piece]:
    """Trunk and connectors; the connector at join n belongs to the skip that is consumed there, the last first."""
    joins = sum(tap.kind == "join" for tap in module.backbone.taps)
    found: dict[str, Piece] = {}
    for name in names:
        part, _, rest = name.partition(".")
        if part == "trunk":
            found[name] = Piece(key=re.sub(r"^conv_reference\.", "ref_conv_in.", rest))
        elif match := re.fullmatch(r"connectors\.(?:mid|join_(\d+))\.(.+)\.(weight|bias)", rest):
            place = f"controlnet_down_blocks.{joins - 1 - int(match[1])}" if match[1] else "controlnet_mid_block"
            if match[2] in SFT_CONNECTOR:
                found[name] = Piece(key=f"{place}.{SFT_CONNECTOR[match[2]]}.{match[3]}")
    return found


def tidy_adapter(key: str) -> str:
    """A key of a training checkpoint in the release's spelling."""
    return re.sub(r"^adapter_modules\.", "ip_adapter.", re.sub(r"^image_proj_model\.", "image_proj.", key))


def is_adapter(keys: Collection[str]) -> bool:
    """Whether the keys are the adapter's: a resampler, and attention with time-conditioned layer norms."""
    return has_prefixes(keys, "image_proj.latents", "ip_adapter.") and any(".ln_k_ip." in key for key in keys)


def is_aggregator(keys: Collection[str]) -> bool:
    """Whether the keys are the aggregator's: a trunk that reads a reference."""
    return has_prefixes(keys, "ref_conv_in.", "controlnet_mid_block.")


ADAPTER_LAYOUT = Layout(
    name="instantir_adapter",
    title="InstantIR's adapter (DCP)",
    licence=LICENCE,
    words=INSTANTIR_WORDS,
    parts=("stream",),
    matches=is_adapter,
    sources=adapter_sources,
    tidy=tidy_adapter,
)
AGGREGATOR_LAYOUT = Layout(
    name="instantir_aggregator",
    title="InstantIR's aggregator",
    licence=LICENCE,
    words=INSTANTIR_WORDS,
    parts=("trunk", "fusion"),
    matches=is_aggregator,
    sources=aggregator_sources,
)
