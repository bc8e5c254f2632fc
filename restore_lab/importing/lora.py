"""LoRA of the prior in diffusers' or PEFT's format, including InstantIR's previewer.

Spellings of one tensor: `unet.X.lora_A.weight`, `unet.X.lora.down.weight`, `X.processor.to_q_lora.down.weight`,
`base_model.model.X.lora_A.default.weight`. An update is scaled by alpha / rank; alpha is in `X.alpha`, in the file's
header, or in PEFT's adapter_config.json. If the composed network has another scale, B absorbs the ratio.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from restore_lab.importing.checkpoint import Checkpoint
from restore_lab.importing.instantir import INSTANTIR_WORDS, LICENCE, resampler_piece
from restore_lab.importing.layout import Layout, Piece, prior_words

if TYPE_CHECKING:
    from torch import Tensor

    from restore_lab.methods.module import RestorationModule

NETWORK_PREFIX = re.compile(r"^(unet|transformer|base_model\.model)\.")
SPELLINGS = (
    (r"\.processor\.", "."),
    (r"^encoder_hid_proj\.image_projection_layers\.0\.", "encoder_hid_proj."),
    (r"\.to_out_lora\.(?=down|up)", ".to_out.0.lora."),
    (r"_lora\.(?=down|up)", ".lora."),
    (r"\.(lora|lora_linear_layer)\.down\.", ".lora_A."),
    (r"\.(lora|lora_linear_layer)\.up\.", ".lora_B."),
    (r"\.(lora_[AB])\.\w+\.weight$", r".\1.weight"),
)


def tidy(key: str) -> str:
    """The key in PEFT's spelling without prefix: X.lora_A.weight."""
    key = NETWORK_PREFIX.sub("", key)
    for spelling, ours in SPELLINGS:
        key = re.sub(spelling, ours, key)
    return key


def is_setting(key: str) -> bool:
    """Whether a key is a layer's alpha."""
    return key.endswith(".alpha")


def is_lora_checkpoint(keys: Collection[str]) -> bool:
    """Whether the keys are only low-rank updates and their alphas."""
    return any(".lora_A." in key for key in keys) and all(
        ".lora_A." in key or ".lora_B." in key or is_setting(key) for key in keys
    )


def is_previewer(keys: Collection[str]) -> bool:
    """Whether the keys are a LoRA that covers InstantIR's resampler or streams."""
    return is_lora_checkpoint(keys) and any(key.startswith("encoder_hid_proj.") or "_ip." in key for key in keys)


def lora_sources(names: Iterable[str], module: RestorationModule, source: Checkpoint) -> dict[str, Piece]:
    """Updates of the prior's layers."""
    return _pieces(names, module, source, alpha=None)


def previewer_sources(names: Iterable[str], module: RestorationModule, source: Checkpoint) -> dict[str, Piece]:
    """Updates of prior, resampler and streams; alpha is 1 where the file has none, as in the release."""
    return _pieces(names, module, source, alpha=1.0)


def _pieces(
    names: Iterable[str], module: RestorationModule, source: Checkpoint, *, alpha: float | None
) -> dict[str, Piece]:
    streams = {
        name.removesuffix(".processor").replace(".", "_"): name.removesuffix(".processor")
        for name in getattr(module.backbone.denoiser, "attn_processors", {})
    }
    found: dict[str, Piece] = {}
    for name in names:
        host, _, place = name.removeprefix("lora.updates.").partition("/")
        layer, _, ending = place.rpartition("/lora_")
        layer, ending = layer.replace("/", "."), f"lora_{ending.replace('/', '.')}"
        piece = Piece(key=layer)
        if host == "resampler":
            renamed = resampler_piece(f"{layer}.weight")
            if renamed is None:
                continue
            stem = renamed.key.removesuffix(".weight")
            # Keys and values share a fused layer's A: copied here, since safetensors cannot store shared memory.
            take = renamed.take if "lora_B" in ending else clone
            piece = Piece(key=f"encoder_hid_proj.{stem}", take=take)
        elif host == "stream":
            attention, _, inner = layer.partition(".")
            piece = Piece(key=f"{streams[attention]}.{inner}")
        take = piece.take
        if ending.startswith("lora_B"):
            assert module.adaptor.lora is not None
            take = _scaled(take, _scale(source, piece.key, alpha=alpha) / module.adaptor.lora.scale)
        found[name] = Piece(key=f"{piece.key}.{ending}", take=take)
    return found


def _scale(source: Checkpoint, layer: str, *, alpha: float | None) -> float:
    """alpha / rank of a layer in the file; alpha is the rank where none is given."""
    down = source.tensors.get(f"{layer}.lora_A.weight")
    if down is None:
        return 1.0  # the caller reports the missing tensor
    own = source.tensors.get(f"{layer}.alpha")
    given = float(own) if own is not None else _setting(source, "lora_alpha")
    rank = float(down.shape[0])
    value = given if given is not None else alpha if alpha is not None else rank
    return value / (rank**0.5 if _setting(source, "use_rslora") else rank)


def _setting(source: Checkpoint, name: str) -> float | None:
    """A number of PEFT's settings, with or without the network's name as prefix."""
    given = [source.settings.get(key) for key in (f"unet.{name}", f"transformer.{name}", name)]
    return next((float(value) for value in given if value is not None), None)


def clone(value: Tensor) -> Tensor:
    """A copy with its own memory."""
    return value.clone()


def _scaled(take: Callable[[Tensor], Tensor], factor: float) -> Callable[[Tensor], Tensor]:
    """A transform that scales in float32, since half precision loses small values."""
    return take if factor == 1.0 else lambda value: factor * take(value).float()


def more_words(source: Checkpoint) -> list[str]:
    """Overrides of the prior (from its text width), of the rank, and of the target modules (name suffixes)."""
    layers = [key.removesuffix(".lora_A.weight") for key in source.tensors if key.endswith(".lora_A.weight")]
    rank = source.tensors[f"{layers[0]}.lora_A.weight"].shape[0]
    endings = sorted({match[0] for layer in layers if (match := re.search(r"[^.]+(\.\d+)*$", layer))})
    text = next((source.tensors[f"{x}.lora_A.weight"].shape[1] for x in layers if x.endswith("attn2.to_k")), None)
    own = [f"adaptor.lora.targets=[{','.join(endings)}]", f"adaptor.lora.rank={rank}", f"adaptor.lora.alpha={rank}"]
    return [*prior_words(text), *own]


PREVIEWER_LAYOUT = Layout(
    name="instantir_previewer",
    title="InstantIR's previewer LoRA",
    licence=LICENCE,
    words=INSTANTIR_WORDS,
    parts=("lora",),
    matches=is_previewer,
    sources=previewer_sources,
    tidy=tidy,
    settings=is_setting,
)
LORA_LAYOUT = Layout(
    name="lora",
    title="a LoRA (diffusers or peft)",
    licence="not known from the keys; see where it was published",
    words=("method=controlnet", "scale=full", "adaptor=prior_lora"),
    parts=("lora",),
    matches=lambda keys: is_lora_checkpoint(keys) and not is_previewer(keys),
    sources=lora_sources,
    tidy=tidy,
    settings=is_setting,
    more_words=more_words,
)
