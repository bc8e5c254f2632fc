"""ControlNets: diffusers' ControlNetModel, and DiffBIR's IRControlNet (Lin et al. 2024) in LDM's layout.

diffusers: the trunk has its own names, `controlnet_cond_embedding` is the hint network, `controlnet_down_blocks.i` and
`controlnet_mid_block` are the zero convolutions, numbered by skip. DiffBIR: a flat dictionary of LDM's keys; the first
convolution reads z concatenated with the latent of the cleaned LQ; zero convolutions are `zero_convs.i.0` and
`middle_block_out.0`. The SwinIR that cleans the LQ is a separate pixel model and is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from restore_lab.importing.checkpoint import Checkpoint
from restore_lab.importing.layout import Layout, Piece, has_prefixes, prior_words
from restore_lab.importing.ldm import layers_of, unet_key
from restore_lab.methods.module import RestorationModule


def controlnet_sources(
    names: Iterable[str], module: RestorationModule, source: Checkpoint | None = None
) -> dict[str, Piece]:
    """Hint network, trunk, zero convolutions."""
    joins = sum(tap.kind == "join" for tap in module.backbone.taps)
    keys = {name: diffusers_key(name, joins=joins) for name in names}
    return {name: Piece(key=key) for name, key in keys.items() if key is not None}


def diffusers_key(name: str, *, joins: int) -> str | None:
    """ControlNetModel's key of a tensor of `adaptor=controlnet`; None if it has none.

    Args:
        name: this package's name.
        joins: number of skips; the zero convolution at join n belongs to the skip that is consumed there.
    """
    part, _, rest = name.partition(".")
    if part == "hint":
        return f"controlnet_cond_embedding.{rest}"
    if part == "trunk":
        return re.sub(r"^conv_hint\.", "controlnet_cond_embedding.conv_out.", rest)
    place = _zero_conv(rest, joins=joins)
    if part != "fusion" or place is None:
        return None
    skip, ending = place
    return f"controlnet_mid_block.{ending}" if skip is None else f"controlnet_down_blocks.{skip}.{ending}"


def diffbir_sources(names: Iterable[str], module: RestorationModule, source: Checkpoint) -> dict[str, Piece]:
    """Trunk and zero convolutions."""
    layers, joins = layers_of(module.adaptor.trunk), sum(tap.kind == "join" for tap in module.backbone.taps)
    found: dict[str, Piece] = {}
    for name in names:
        part, _, rest = name.partition(".")
        if part == "trunk" and (key := unet_key(rest, layers=layers)):
            found[name] = Piece(key=key)
        elif part == "fusion" and (place := _zero_conv(rest, joins=joins)):
            skip, ending = place
            found[name] = Piece(key=f"middle_block_out.0.{ending}" if skip is None else f"zero_convs.{skip}.0.{ending}")
    return found


def _zero_conv(name: str, *, joins: int) -> tuple[int | None, str] | None:
    """Skip index (None for the middle block) and suffix of a zero convolution's tensor."""
    match = re.fullmatch(r"convs\.(?:mid|join_(\d+))\.(weight|bias)", name)
    if match is None:
        return None
    return (joins - 1 - int(match[1]) if match[1] else None), match[2]


def is_controlnet(keys: Collection[str]) -> bool:
    """Whether the keys are a ControlNet in diffusers' layout."""
    return has_prefixes(keys, "controlnet_cond_embedding.conv_in.", "controlnet_down_blocks.", "controlnet_mid_block.")


def is_diffbir(keys: Collection[str]) -> bool:
    """LDM's ControlNet without a hint network: the hint is a latent."""
    return has_prefixes(keys, "input_blocks.0.", "zero_convs.0.", "middle_block_out.") and not has_prefixes(
        keys, "input_hint_block."
    )


def text_width(tensors: Mapping[str, Tensor]) -> int | None:
    """Width of the text tokens that a network in either layout reads; None if it reads none."""
    found = [value for key, value in tensors.items() if key.endswith("attn2.to_k.weight")]
    return found[0].shape[1] if found else None


CONTROLNET_LAYOUT = Layout(
    name="controlnet",
    title="a ControlNet (diffusers)",
    licence="not known from the keys; see where it was published",
    words=("method=controlnet", "scale=full", "adaptor=controlnet_diffusers"),
    parts=("hint", "trunk", "fusion"),
    matches=is_controlnet,
    sources=controlnet_sources,
    more_words=lambda source: prior_words(text_width(source.tensors)),
)
DIFFBIR_LAYOUT = Layout(
    name="diffbir",
    title="DiffBIR's IRControlNet",
    licence="Apache-2.0, https://github.com/XPixelGroup/DiffBIR",
    words=("method=controlnet", "scale=full", "adaptor=diffbir"),
    parts=("trunk", "fusion"),
    matches=is_diffbir,
    sources=diffbir_sources,
    tidy=lambda key: key.removeprefix("control_model."),
    more_words=lambda source: prior_words(text_width(source.tensors)),
)
