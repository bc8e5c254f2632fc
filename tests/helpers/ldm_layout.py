"""Modules of diffusers and transformers as the single files that Stable Diffusion was released in.

Written from the original code bases' module trees (CompVis' LDM, Stability's generative-models and sd3-ref), the other
way round than diffusers' converters, which the tests hold against it. `single_file(name, parts)` gives the state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
UNET |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
UNET |= {"conv_norm_out": "out.0", "conv_out": "out.2"}
UNET |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
UNET |= {"mid_block.resnets.1": "middle_block.2"}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
OPEN_CLIP |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def single_file(name: str, parts: Mapping[str, Any]) -> State:
    """The state dict of a checkpoint: sd15, sd21, sdxl, sd3 or sd35."""
    denoiser = unet(parts["unet"]) if "unet" in parts else mmdit(parts["transformer"])
    state = prefixed("model.diffusion_model.", denoiser) | prefixed("first_stage_model.", vae(parts["vae"]))
    if name == "sd15":
        return state | prefixed("cond_stage_model.transformer.", clip(parts["text_encoder"]))
    if name == "sd21":
        return state | prefixed("cond_stage_model.model.", open_clip(parts["text_encoder"]))
    if name == "sdxl":
        state |= prefixed("conditioner.embedders.0.transformer.", clip(parts["text_encoder"]))
        return state | prefixed("conditioner.embedders.1.model.", open_clip(parts["text_encoder_2"]))
    first = {key: value for key, value in clip(parts["text_encoder"]).items() if not key.startswith("text_projection")}
    state |= prefixed("text_encoders.clip_l.transformer.", first)
    state |= prefixed("text_encoders.clip_g.transformer.", clip(parts["text_encoder_2"]))
    if "text_encoder_3" in parts:
        t5 = {k: v for k, v in parts["text_encoder_3"].state_dict().items() if k != "encoder.embed_tokens.weight"}
        state |= prefixed("text_encoders.t5xxl.transformer.", t5)
    return state


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value.clone().contiguous() for key, value in state.items()}


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> State:
    """Keys that start with one of the names, under its other name; each must be taken once."""
    found: State = {}
    for key, value in state.items():
        whose = [old for old in names if key.startswith(f"{old}.")]
        assert len(whose) == 1, (key, whose)
        found[names[whose[0]] + key[len(whose[0]) :]] = value
    return found


def unet(model: Any) -> State:
    names = dict(UNET)
    names |= dict(_unet_blocks(model))
    found = renamed(model.state_dict(), names)
    return {_resnet(key): value for key, value in found.items()}


def _unet_blocks(model: Any) -> Iterator[tuple[str, str]]:
    """(diffusers' name, LDM's name) of resnets, attentions and what changes the size."""
    index = 1
    for i, block in enumerate(model.down_blocks):
        for j in range(len(block.resnets)):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{index}.0"
            if getattr(block, "attentions", None):
                yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{index}.1"
            index += 1
        if block.downsamplers:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for i, block in enumerate(model.up_blocks):
        for j in range(len(block.resnets)):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{index}.0"
            attends = bool(getattr(block, "attentions", None))
            if attends:
                yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{index}.1"
            if block.upsamplers and j == len(block.resnets) - 1:
                yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{index}.{1 + attends}.conv"
            index += 1


def _resnet(key: str) -> str:
    for old, new in RESNET.items():
        for place in (".0.", "middle_block.2."):
            if f"{place}{old}." in key and "transformer_blocks" not in key:
                return key.replace(f"{place}{old}.", f"{place}{new}.")
    return key


def vae(model: Any) -> State:
    """LDM's autoencoder: levels of the decoder count from the finest, attention is by 1x1 convolutions."""
    levels, found = len(model.decoder.up_blocks), {}
    for key, value in model.state_dict().items():
        words = key.split(".")
        half, rest = words[0], words[1:]
        if rest[0] == "down_blocks":
            kind = ["block", rest[3]] if rest[2] == "resnets" else ["downsample"]
            rest = ["down", rest[1], *kind, *rest[4:]]
        elif rest[0] == "up_blocks":
            kind = ["block", rest[3]] if rest[2] == "resnets" else ["upsample"]
            rest = ["up", str(levels - 1 - int(rest[1])), *kind, *rest[4:]]
        elif rest[0] == "mid_block":
            rest = ["mid", f"block_{int(rest[2]) + 1}" if rest[1] == "resnets" else "attn_1", *rest[3:]]
        name = ".".join([half, *rest]).replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "attn_1" in name:
            for old, new in {
                "group_norm": "norm",
                "to_q": "q",
                "to_k": "k",
                "to_v": "v",
                "to_out.0": "proj_out",
            }.items():
                name = name.replace(f"attn_1.{old}.", f"attn_1.{new}.")
            value = value[..., None, None] if value.ndim == 2 else value
        found[name] = value
    return found


def clip(model: Any) -> State:
    """transformers' own names, as they were when the checkpoints were written."""
    state = model.state_dict()
    return {key if key.startswith("text_") else f"text_model.{key}": value for key, value in state.items()}


def open_clip(model: Any) -> State:
    """OpenCLIP's text tower: q, k and v in one matrix, the projection transposed."""
    state, found = clip(model), {}
    body = {key.removeprefix("text_model."): value for key, value in state.items()}
    found["token_embedding.weight"] = body["embeddings.token_embedding.weight"]
    found["positional_embedding"] = body["embeddings.position_embedding.weight"]
    for end in ("weight", "bias"):
        found[f"ln_final.{end}"] = body[f"final_layer_norm.{end}"]
    for i in range(model.config.num_hidden_layers):
        old, new = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for end in ("weight", "bias"):
            found |= {f"{new}.{there}.{end}": body[f"{old}.{here}.{end}"] for here, there in OPEN_CLIP.items()}
            qkv = [body[f"{old}.self_attn.{letter}_proj.{end}"] for letter in "qkv"]
            found[f"{new}.attn.in_proj_{end}"] = torch.cat(qkv)
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T
    return found


def mmdit(model: Any) -> State:
    """SD3's transformer: q, k and v in one matrix, scale and shift the other way round in its last layers."""
    state = model.state_dict()
    names = {
        "pos_embed.proj": "x_embedder.proj",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
    }
    for old, new in (("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")):
        names |= {f"time_text_embed.{old}.linear_{i + 1}": f"{new}.mlp.{2 * i}" for i in (0, 1)}
    found = {f"{new}.{end}": state[f"{old}.{end}"] for old, new in names.items() for end in ("weight", "bias")} | {
        "pos_embed": state["pos_embed.pos_embed"]
    }
    last = len(model.transformer_blocks) - 1
    for end in ("weight", "bias"):
        found[f"final_layer.adaLN_modulation.1.{end}"] = _swapped(state[f"norm_out.linear.{end}"])
    for i in range(last + 1):
        found |= _joint_block(state, f"transformer_blocks.{i}", f"joint_blocks.{i}", last=i == last)
    return found


def _joint_block(state: Mapping[str, Tensor], old: str, new: str, *, last: bool) -> State:
    found: State = {}
    for end in ("weight", "bias"):
        found[f"{new}.x_block.attn.qkv.{end}"] = torch.cat([state[f"{old}.attn.to_{x}.{end}"] for x in "qkv"])
        added = [state[f"{old}.attn.add_{x}_proj.{end}"] for x in "qkv"]
        found[f"{new}.context_block.attn.qkv.{end}"] = torch.cat(added)
        names = {"attn.to_out.0": "x_block.attn.proj", "norm1.linear": "x_block.adaLN_modulation.1"}
        names |= {"ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2"}
        if f"{old}.attn2.to_q.{end}" in state:
            names |= {"attn2.to_out.0": "x_block.attn2.proj"}
            found[f"{new}.x_block.attn2.qkv.{end}"] = torch.cat([state[f"{old}.attn2.to_{x}.{end}"] for x in "qkv"])
        context = state[f"{old}.norm1_context.linear.{end}"]
        found[f"{new}.context_block.adaLN_modulation.1.{end}"] = _swapped(context) if last else context
        if not last:
            names |= {"attn.to_add_out": "context_block.attn.proj"}
            names |= {"ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2"}
        found |= {f"{new}.{there}.{end}": state[f"{old}.{here}.{end}"] for here, there in names.items()}
    norms = {"attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k"}
    norms |= {"attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k"}
    norms |= {"attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k"}
    for here, there in norms.items():
        if f"{old}.{here}.weight" in state:
            found[f"{new}.{there}.weight"] = state[f"{old}.{here}.weight"]
    return found


def _swapped(value: Tensor) -> Tensor:
    shift, scale = value.chunk(2)
    return torch.cat([scale, shift])
