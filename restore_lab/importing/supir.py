"""SUPIR's v0Q and v0F (Yu et al. 2024): sgm's layout, full files with SDXL or pruned files without it.

`model.control_model.*` is the trunk, `model.diffusion_model.project_modules.n` are the connectors, numbered from the
last to the first (the middle block has the highest number; the attentions before the upsamplers are included), and
`first_stage_model.denoise_encoder.*` is the robust encoder. All other keys belong to the prior.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from restore_lab.adaptors.fusion.base import Fusion
from restore_lab.importing.checkpoint import Checkpoint
from restore_lab.importing.layout import Layout, Piece, has_prefixes
from restore_lab.importing.ldm import kl_encoder_piece, layers_of, unet_key
from restore_lab.methods.module import RestorationModule

CONTROL = "model.control_model."
PROJECT = "model.diffusion_model.project_modules."
ENCODER = "first_stage_model.denoise_encoder."
PRIOR = ("model.diffusion_model.", "first_stage_model.", "conditioner.", "denoiser.", "model_ema.")
ZERO_SFT = {  # ours to theirs: of ZeroSFT, then of ZeroCrossAttn
    "norm": "param_free_norm",
    "shared.0": "mlp_shared.0",
    "gamma": "zero_mul",
    "beta": "zero_add",
    "zero": "zero_conv",
}
ZERO_CROSS_ATTENTION = {"norm": "norm1", "norm_control": "norm2"}


def is_supir(keys: Collection[str]) -> bool:
    """Whether the keys have a trunk with its hint block, and connectors."""
    return has_prefixes(keys, f"{CONTROL}input_hint_block.", PROJECT)


def supir_sources(names: Iterable[str], module: RestorationModule, source: Checkpoint) -> dict[str, Piece]:
    """Trunk, connectors, robust encoder."""
    layers = layers_of(module.adaptor.trunk)
    fusion = module.adaptor.fusion
    points = list(fusion.points.values()) if isinstance(fusion, Fusion) else []
    numbers = {point.key: len(points) - 1 - i for i, point in enumerate(points)}
    found: dict[str, Piece] = {}
    for name in names:
        part, _, rest = name.partition(".")
        piece = None
        if part == "trunk" and rest.startswith("conv_hint."):
            piece = Piece(key=f"{CONTROL}input_hint_block.0.{rest.removeprefix('conv_hint.')}")
        elif part == "trunk" and (key := unet_key(rest, layers=layers)):
            piece = Piece(key=CONTROL + key)
        elif part == "fusion":
            piece = _connector(rest.removeprefix("connectors."), numbers)
        elif part == "lq_encoder" and (inner := kl_encoder_piece(rest.removeprefix("encoder."))):
            piece = Piece(key=ENCODER + inner.key, take=inner.take)
        if piece is not None:
            found[name] = piece
    return found


def _connector(name: str, numbers: Mapping[str, int]) -> Piece | None:
    place, _, rest = name.partition(".")
    stem, _, ending = rest.rpartition(".")
    if place not in numbers:
        return None
    if place.startswith("upsample"):
        inner = ZERO_CROSS_ATTENTION.get(stem) or (
            f"attn.{stem.removeprefix('attention.')}" if "attention." in stem else None
        )
    else:
        inner = ZERO_SFT.get(stem)
    return Piece(key=f"{PROJECT}{numbers[place]}.{inner}.{ending}") if inner else None


SUPIR_LAYOUT = Layout(
    name="supir",
    title="SUPIR (v0Q or v0F)",
    licence="SUPIR's own: non-commercial use only, https://github.com/Fanghua-Yu/SUPIR",
    words=("method=supir", "scale=full", "adaptor=supir_release"),
    parts=("trunk", "fusion", "lq_encoder"),
    matches=is_supir,
    sources=supir_sources,
    base=lambda key: key.startswith(PRIOR) and not key.startswith((PROJECT, ENCODER)),
)
