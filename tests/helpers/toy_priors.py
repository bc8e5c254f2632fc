"""Random priors in diffusers format: small, complete, built offline in a second.

`toy_unet_folder(tmp_path, kind=...)` writes a folder that `load_backbone` reads like any real one. Kinds: "sd" (SD 1.5
shape: heads of a fixed count, epsilon), "mini" (the same on two levels, for tests that compile it), "sd21" (linear
projection, v prediction, zero terminal SNR), "sdxl" (two text encoders, text_time embedding, different transformer
depths per block), "sd3" (joint blocks, flow matching, two text encoders with projection, no T5), "sd35" (its first
blocks attend twice, queries and keys are normed).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from restore_lab.backbones.codec.codec import Codec
from restore_lab.backbones.mmdit import MMDiTBackbone
from restore_lab.backbones.schedule import FlowMatching, Schedule
from restore_lab.backbones.text.clip import TextEncoder
from restore_lab.backbones.text.sd3 import TripleTextEncoder
from restore_lab.backbones.unet import UNetBackbone
from restore_lab.types import Cond

TEXT_LENGTH = 16
TEXT_WIDTH = 16
TEXT_WIDTH_2 = 24
PROJECTION = 20

UNET: dict[str, dict[str, Any]] = {
    "sd": {
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
    },
    "mini": {
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT_WIDTH,
    },
    "sd21": {
        "block_out_channels": (16, 32),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": TEXT_WIDTH,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": TEXT_WIDTH + TEXT_WIDTH_2,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": PROJECTION + 6 * 8,
    },
}
MMDIT: dict[str, dict[str, Any]] = {
    "sd3": {},
    "sd35": {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
}
VAE: dict[str, dict[str, Any]] = {
    "mini": {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
}
SCHEDULER: dict[str, dict[str, Any]] = {
    "sd": {"prediction_type": "epsilon"},
    "mini": {"prediction_type": "epsilon"},
    "sd21": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "sdxl": {"prediction_type": "epsilon", "timestep_spacing": "leading"},
}


def toy_unet(kind: str, *, seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A random UNet of the kind; `changes` replace config entries."""
    config = {"norm_num_groups": 8, "sample_size": 8, **UNET[kind], **changes}
    return _seeded(seed, lambda: UNet2DConditionModel(**config))


def toy_mmdit(kind: str = "sd3", *, seed: int = 0, **changes: Any) -> SD3Transformer2DModel:
    """A random MM-DiT of the kind: four blocks, patches of 2; `changes` replace config entries."""
    config = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "joint_attention_dim": TEXT_WIDTH + TEXT_WIDTH_2,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 2 * PROJECTION,
        "out_channels": 4,
        "pos_embed_max_size": 12,
        **MMDIT[kind],
        **changes,
    }
    return _seeded(seed, lambda: SD3Transformer2DModel(**config))


def toy_vae(*, tiny: bool = False, seed: int = 0, **changes: Any) -> AutoencoderKL | AutoencoderTiny:
    """A random codec of compression 4 with 4 latent channels."""
    if tiny:
        width = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
        depth = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
        return _seeded(seed, lambda: AutoencoderTiny(**{**width, **depth, **changes}))
    blocks = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    config = {"norm_num_groups": 4, "sample_size": 32, "mid_block_add_attention": False, **blocks, **changes}
    return _seeded(seed, lambda: AutoencoderKL(**config))


def toy_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer without merges: every byte has a token of its own."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TEXT_LENGTH)


def toy_text_model(
    *, projected: bool = False, second: bool | None = None, seed: int = 0
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A random CLIP text model of two layers; with `projected` the second of SDXL's pair, or the first of SD3's."""
    tokenizer = toy_tokenizer()
    width = TEXT_WIDTH_2 if (projected if second is None else second) else TEXT_WIDTH
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=PROJECTION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _seeded(seed, lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def toy_unet_folder(tmp_path: Path, kind: str = "sd", *, tiny_vae: bool = False, seed: int = 0) -> Path:
    """A complete diffusers-format folder with random weights; returns its path."""
    folder = tmp_path / f"toy_{kind}"
    if kind in MMDIT:
        toy_mmdit(kind, seed=seed).save_pretrained(folder / "transformer")
    else:
        toy_unet(kind, seed=seed).save_pretrained(folder / "unet")
    toy_vae(tiny=tiny_vae, seed=seed + 1, **VAE.get(kind, {})).save_pretrained(folder / "vae")
    toy_text_model(projected=kind in MMDIT, second=False, seed=seed + 2).save_pretrained(folder / "text_encoder")
    toy_tokenizer().save_pretrained(folder / "tokenizer")
    if kind == "sdxl" or kind in MMDIT:
        toy_text_model(projected=True, seed=seed + 3).save_pretrained(folder / "text_encoder_2")
        toy_tokenizer().save_pretrained(folder / "tokenizer_2")
    toy_scheduler(kind).save_pretrained(folder / "scheduler")
    pipelines = {"sdxl": "StableDiffusionXLPipeline", **dict.fromkeys(MMDIT, "StableDiffusion3Pipeline")}
    pipeline = pipelines.get(kind, "StableDiffusionPipeline")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    return folder


def toy_scheduler(kind: str) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """Stable Diffusion's betas with the kind's prediction type, nothing is clipped; a flow's with SD3's shift."""
    if kind in MMDIT:
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, **SCHEDULER[kind])


def toy_backbone(kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A backbone of the kind in memory, with random weights; its own `embed` serves all but "sdxl"."""
    if kind in MMDIT:
        return MMDiTBackbone(
            transformer=toy_mmdit(kind, seed=seed, **changes),
            codec=Codec(toy_vae()),
            text=toy_triple_text(),
            schedule=FlowMatching(shift=3.0),
        )
    text = TextEncoder(encoders=[toy_text_model()], tokenizers=[toy_tokenizer()], penultimate=False)
    return UNetBackbone(
        unet=toy_unet(kind, seed=seed, **changes), codec=Codec(toy_vae()), text=text, schedule=Schedule.from_config({})
    )


def toy_triple_text(*, t5_length: int = 0) -> TripleTextEncoder:
    """Two CLIP towers with projection, no T5."""
    return TripleTextEncoder(
        clips=[toy_text_model(projected=True, second=False), toy_text_model(projected=True)],
        clip_tokenizers=[toy_tokenizer(), toy_tokenizer()],
        t5=None,
        t5_tokenizer=None,
        width=TEXT_WIDTH + TEXT_WIDTH_2,
        pooled=2 * PROJECTION,
        t5_length=t5_length,
        first_width=TEXT_WIDTH,
        cache_bytes=2**20,
    )


def toy_inputs(backbone: Any, *, size: tuple[int, int] = (8, 8), seed: int = 0) -> tuple[Tensor, Tensor, Cond]:
    """Two latents, two timesteps and a random condition of the right widths."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(2, 4, *size, generator=draw)
    tokens = torch.randn(2, TEXT_LENGTH, backbone.token_width, generator=draw)
    if backbone.family == "mmdit":
        pooled = torch.randn(2, 2 * PROJECTION, generator=draw)
        return z, torch.tensor([float(seed), 700.5]), Cond(tokens_BLD=tokens, pooled_BD=pooled)
    if backbone.unet.config.addition_embed_type is None:
        return z, torch.tensor([seed, 700]), Cond(tokens_BLD=tokens)
    pooled = torch.randn(2, PROJECTION, generator=draw)
    size_BD = torch.tensor([[32.0, 40, 0, 0, 32, 40]] * 2)
    return z, torch.tensor([seed, 700]), Cond(tokens_BLD=tokens, pooled_BD=pooled, size_BD=size_BD)


def _seeded(seed: int, make: Any) -> Any:
    """What `make()` builds under the seed, in eval mode; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        # diffusers and transformers start some layers at zero; random values everywhere let a test see every layer.
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def toy_dino(folder: Path) -> Path:
    """A random DINOv2 with its image processor; returns the folder."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=8
    )
    _seeded(0, lambda: Dinov2Model(config)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
    BitImageProcessor(do_resize=True, resample=3, **size).save_pretrained(folder)
    return folder
