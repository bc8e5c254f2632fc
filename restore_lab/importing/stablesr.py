"""StableSR's controllable feature wrapping (Wang et al. 2024): `decoder.fusion_layer_i.*` of its autoencoder.

A layer is numbered by its level, 0 at full resolution. The file's autoencoder, losses and discriminator are not
imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from restore_lab.importing.checkpoint import Checkpoint
from restore_lab.importing.layout import Layout, Piece, has_prefixes
from restore_lab.methods.module import RestorationModule

FUSION = "decoder.fusion_layer_"
AUTOENCODER = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss.", "quantize.", "model_ema.")


def is_cfw(keys: Collection[str]) -> bool:
    """Whether the keys hold CFW's fusion layers."""
    return has_prefixes(keys, FUSION)


def cfw_sources(names: Iterable[str], module: RestorationModule, source: Checkpoint) -> dict[str, Piece]:
    """The fusion layers; this package numbers them from the latent's side."""
    matches = {name: match for name in names if (match := re.fullmatch(r"decoder\.blocks\.(\d+)\.(.+)", name))}
    levels = len({match[1] for match in matches.values()})
    return {name: Piece(key=f"{FUSION}{levels - int(match[1])}.{_inner(match[2])}") for name, match in matches.items()}


def _inner(name: str) -> str:
    part, _, rest = name.partition(".")
    if part == "dense":
        rest = re.sub(
            r"^(\d+)\.blocks\.(\d+)\.convs\.(\d+)", lambda m: f"{m[1]}.rdb{int(m[2]) + 1}.conv{int(m[3]) + 1}", rest
        )
        return f"encode_enc_2.{rest}"
    number = {"first": 1, "last": 3}[part]
    return f"encode_enc_{number}.{rest.replace('conv_shortcut', 'conv_out')}"


CFW_LAYOUT = Layout(
    name="stablesr_cfw",
    title="StableSR's feature wrapping (CFW)",
    licence="S-Lab License 1.0: non-commercial use only, https://github.com/IceClear/StableSR",
    words=("scale=full", "backbone=sd21", "decoder=cfw"),
    parts=("decoder",),
    matches=is_cfw,
    sources=cfw_sources,
    tidy=lambda key: key.removeprefix("first_stage_model."),
    base=lambda key: key.startswith(AUTOENCODER) and not key.startswith(FUSION),
    setting="decoder.weights",
)
