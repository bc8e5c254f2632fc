"""diffusers' side of the comparison: copies of our modules in its own classes.

StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline or StableDiffusion3ControlNetPipeline, around the
same weights, inputs and types.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from restore_lab.backbones.codec.codec import Codec
from restore_lab.importing.exporting import as_controlnet
from restore_lab.methods.module import RestorationModule
from restore_lab.random import noise_like
from restore_lab.system.quiet import silence_libraries
from restore_lab.types import Batch


def controlnet_of(module: RestorationModule) -> Any:
    """The adaptor as diffusers' ControlNet, with weights of its own.

    Raises:
        ValueError: for an adaptor that is none.
    """
    if module.backbone.family == "mmdit":
        return sd3_controlnet(module).eval()
    made = as_controlnet(module, {name: value.clone() for name, value in module.adaptor_state().items()})
    if made is None:
        raise ValueError("this adaptor is no ControlNet of diffusers'; a UNet's is adaptor=controlnet_diffusers")
    return made.eval()


def sd3_controlnet(module: RestorationModule) -> Any:
    """An MM-DiT's trunk with zero convolutions as diffusers' SD3ControlNetModel."""
    from diffusers import SD3ControlNetModel

    settings = dict(module.backbone.denoiser.config)
    settings |= {"num_layers": len(module.adaptor.trunk.transformer_blocks), "extra_conditioning_channels": 0}
    settings |= {"force_zeros_for_pooled_projection": False}  # it reads the text's vector, as ours does
    with silence_libraries(), torch.device("meta"):
        made = SD3ControlNetModel.from_config(settings)
    state: dict[str, Tensor] = {}
    for name, value in module.adaptor.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "trunk":
            state[rest.replace("hint_proj.", "pos_embed_input.proj.")] = value.clone()
        else:  # fusion.convs.block_3.weight: a convolution of one pixel is a linear layer
            _, block, ending = rest.split(".")
            linear = value.flatten(1) if value.dim() > 1 else value
            state[f"controlnet_blocks.{block.removeprefix('block_')}.{ending}"] = linear.clone()
    made.load_state_dict(state, assign=True)
    return made


class Diffusers:
    """diffusers' side: its ControlNet pipeline around copies of our modules.

    Args:
        module: ours, before anything is settled on it.
        dtype: of the ControlNet in restoring, the prior's; None leaves it float32, as in training.
    """

    def __init__(self, module: RestorationModule, *, dtype: torch.dtype | None = None) -> None:
        backbone = module.backbone
        self.family, self.schedule, self.embed = backbone.family, backbone.schedule, backbone.embed
        self.denoiser = copy.deepcopy(backbone.denoiser)
        self.vae = copy.deepcopy(backbone.codec.vae)
        self.codec = Codec(self.vae)
        self.controlnet = controlnet_of(module).to(backbone.denoiser.device, dtype)
        self.scheduler = module.sampler.scheduler(self.schedule)

    def compile(self, *, backend: str) -> None:
        """Both models through torch.compile, each as a whole, as diffusers' documentation has it."""
        self.denoiser.compile(backend=backend)
        self.controlnet.compile(backend=backend)

    def pipeline(self) -> Any:
        """The family's, without text encoders: it is given embeddings."""
        import diffusers

        absent: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
        if self.family == "mmdit":
            cls = diffusers.StableDiffusion3ControlNetPipeline
            absent |= dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))
        elif self.denoiser.config.addition_embed_type == "text_time":
            cls, two = diffusers.StableDiffusionXLControlNetPipeline, ("text_encoder_2", "tokenizer_2")
            absent |= {**dict.fromkeys(two), "add_watermarker": False}
        else:
            cls = diffusers.StableDiffusionControlNetPipeline
            absent |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        denoiser = {"transformer" if self.family == "mmdit" else "unet": self.denoiser}
        with silence_libraries():
            made = cls(vae=self.vae, controlnet=self.controlnet, scheduler=self.scheduler, **denoiser, **absent)
        made.set_progress_bar_config(disable=True)
        return made

    def inputs(self, batch: Batch, *, scale: float, steps: int) -> dict[str, Any]:
        """What the pipeline is told for a batch: our noise, our words, and the LQ as its ControlNet reads it."""
        lq_BCHW: Any = batch.lq_BCHW
        size, dtype = tuple(lq_BCHW.shape[-2:]), self.denoiser.dtype
        latent = (len(batch), self.codec.channels, *(side // self.codec.compression for side in size))
        said = self.embed(batch.caption, size)
        told: dict[str, Any] = {
            "prompt_embeds": said.tokens_BLD.to(dtype),
            "latents": noise_like(torch.zeros(latent), batch.seed, "init").to(lq_BCHW.device, dtype),
            "guidance_scale": scale,
            "num_inference_steps": steps,
            "height": size[0],
            "width": size[1],
            "output_type": "pt",
        }
        if self.family == "mmdit":
            told["control_image"] = 2 * lq_BCHW - 1
        else:
            told["image"] = lq_BCHW
        if said.pooled_BD is not None:
            told["pooled_prompt_embeds"] = said.pooled_BD.to(dtype)
        if scale > 1:
            null = self.embed(("",) * len(batch), size)
            told["negative_prompt_embeds"] = null.tokens_BLD.to(dtype)
            if null.pooled_BD is not None:
                told["negative_pooled_prompt_embeds"] = null.pooled_BD.to(dtype)
        return told
