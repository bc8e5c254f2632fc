"""One ControlNet, driven by restore_lab and by diffusers: the same classes, weights, inputs and types on both sides.

Ours is `method=controlnet` as it is composed; theirs are copies of its modules in StableDiffusionControlNetPipeline,
StableDiffusionXLControlNetPipeline or StableDiffusion3ControlNetPipeline. Text embeddings are made before, on both.
Zero convolutions are given weights, or a broken control would pass for a right one; the codec's posterior is given no
spread, because diffusers draws from it and restore_lab takes its mode. An SD3 ControlNet has half the prior's blocks
(`adaptor.trunk.depth=half`), where both sides let the same blocks hear the same controls.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.alternating import Seconds, clock
from benchmarks.configs import composed
from restore_lab.backbones.base import Backbone
from restore_lab.backbones.codec import Codec
from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.backbones.loading import DTYPES
from restore_lab.build import build
from restore_lab.importing.exporting import as_controlnet
from restore_lab.methods.base import RestorationModule
from restore_lab.quiet import quiet
from restore_lab.random import generator, noise_like
from restore_lab.types import Batch

TOYS = {"sd15": "tiny_sd", "sdxl": "tiny_sdxl", "sd3": "tiny_sd3"}  # the shipped toy in each shape
PIXELS = {"sd15": 512, "sdxl": 1024, "sd3": 1024}  # what the priors were trained at
CACHE_BYTES = 10**9
CAPTION = "a lighthouse on a rock, in the evening"
ADAPTORS = {
    "unet": ("adaptor=controlnet_diffusers",),
    "mmdit": ("adaptor=controlnet", "adaptor.hint_widths=null", "adaptor.lq_latent=true", "adaptor.trunk.depth=half"),
}


def config(size: str, *words: str, toy: bool) -> Any:
    """What `restore-lab train` would read for the ControlNet of a prior.

    Args:
        size: "sd15", "sdxl" or "sd3".
        words: overrides.
        toy: the shipped prior of that shape in its place.
    """
    family = "mmdit" if size == "sd3" else "unet"
    prior = [f"backbone={TOYS[size]}"] if toy else [f"backbone={size}", f"backbone.path=config:{size}"]
    objective = "flow" if family == "mmdit" else "denoising"
    scale = "scale=tiny" if toy else "scale=full"
    said = ("method=controlnet", scale, *prior, *ADAPTORS[family], "sampler=ddim", f"objective={objective}")
    return composed("train", *said, *words)


def method(cfg: Any, *, device: torch.device) -> RestorationModule:
    """The method of a config, not settled: a shipped prior as it is, any other with random weights."""
    torch.manual_seed(0)
    given = {} if str(cfg.backbone.path).startswith("asset:") else {"backbone": random_prior(cfg.backbone, device)}
    module = build(cfg.module, **given)
    for part in module.adaptor.modules():
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Conv2d | nn.Linear) and weight is not None and not weight.any():
            part.reset_parameters()
    codec = module.backbone.codec
    without_spread(codec.vae)
    if cfg.backbone.cache_latents:
        codec.disk = DiskCache(cfg.backbone.cache_dir, base="benchmark", max_bytes=CACHE_BYTES)
    return module.to(device).eval()


def settle(module: RestorationModule, cfg: Any) -> None:
    """The options of speed that the config says, as every verb takes them; trained if `module` is in training mode."""
    build(cfg.speed).settle(module)


def random_prior(settings: Any, device: torch.device) -> Backbone:
    """A prior of the config's shape and types whose weights were never trained, and whose texts are random too."""
    shape = build(settings, meta=True)
    made = {}
    with quiet(), device:
        for name, part in (("denoiser", shape.denoiser), ("vae", shape.codec.vae)):
            made[name] = type(part).from_config(part.config)
    dtype = DTYPES[settings.dtype]
    parts: dict[str, Any] = {
        {"unet": "unet", "mmdit": "transformer"}[shape.family]: made["denoiser"].to(dtype),
        "codec": Codec(made["vae"].to(DTYPES[settings.codec_dtype or settings.dtype])),
        "text": MadeUp(shape.text([""]), dtype=dtype),
        "schedule": shape.schedule,
    }
    return type(shape)(**parts).to(device)


class MadeUp(nn.Module):
    """Text encoders' words for the two texts that are asked for, drawn at random.

    Args:
        like: what the encoders would say of one text: tokens (1, L, D) and, where they have one, a vector (1, P).
        dtype: of both.
    """

    texts = (CAPTION, "")

    def __init__(self, like: Sequence[Tensor | None], *, dtype: torch.dtype) -> None:
        super().__init__()
        for name, part in zip(("tokens", "pooled"), like, strict=True):
            drawn = [
                torch.randn(part.shape, generator=generator(name, text)) for text in self.texts if part is not None
            ]
            self.register_buffer(name, torch.cat(drawn).to(dtype) if drawn else None)

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """One row a text."""
        rows = [self.texts.index(text) for text in texts]
        return self.tokens[rows], None if self.pooled is None else self.pooled[rows]


def without_spread(vae: Any) -> None:
    """A codec whose posterior is its mode: the log-variance at its floor."""
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    channels = vae.config.latent_channels
    with torch.no_grad():
        last.weight[channels:] = 0
        last.bias[channels:] = -30.0


def batches(*, count: int, batch: int, pixels: int, device: torch.device) -> list[Batch]:
    """Pairs of smooth random images in [0, 1], the LQ a blurred HQ, the same on every run."""
    found = []
    for number in range(count):
        draw = generator("benchmark", number)
        coarse = torch.rand(batch, 3, pixels // 8, pixels // 8, generator=draw)
        hq_BCHW = nn.functional.interpolate(coarse, size=(pixels, pixels), mode="bilinear").to(device)
        lq_BCHW = nn.functional.avg_pool2d(hq_BCHW, 5, stride=1, padding=2)
        seeds = tuple(1000 * number + index for index in range(batch))
        words = {"caption": (CAPTION,) * batch, "key": tuple(f"{seed}" for seed in seeds), "seed": seeds}
        found.append(Batch(hq_BCHW=hq_BCHW, lq_BCHW=lq_BCHW, recipe=(None,) * batch, **words))
    return found


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
    with quiet(), torch.device("meta"):
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
        with quiet():
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


class Stamps:
    """The clock at the first and at the last step of a sampling loop.

    Args:
        steps: of the loop.
        device: it waits for, at those two.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device, self.told, self.first, self.last = steps, device, 0, 0.0, 0.0

    def __call__(self) -> None:
        self.told += 1
        if self.told == 1:
            self.first = clock(self.device)
        if self.told == self.steps:
            self.last = clock(self.device)

    @property
    def step(self) -> float:
        """Seconds a step."""
        return (self.last - self.first) / (self.steps - 1)


class Restoring:
    """One restoration a call, with what its steps took; `latent_BCHW` and `image_BCHW` are what the last one gave."""

    latent_BCHW: Tensor
    image_BCHW: Tensor

    def __init__(self, run: Callable[[Stamps], tuple[Tensor, Tensor]], *, steps: int, device: torch.device) -> None:
        self.run, self.steps, self.device = run, steps, device

    def __call__(self) -> Seconds:
        stamps, start = Stamps(self.steps, self.device), clock(self.device)
        self.latent_BCHW, self.image_BCHW = self.run(stamps)
        return {"sampling step": stamps.step, "restoration": clock(self.device) - start}


def our_restoring(module: RestorationModule, batch: Batch, *, device: torch.device) -> Restoring:
    """`module.restore`; a step is told as the sampler asks for its prediction."""
    guided = module.guided
    seen: list[Tensor] = []
    module.decoder.register_forward_pre_hook(lambda part, given: seen.append(given[0]))

    def run(stamps: Stamps) -> tuple[Tensor, Tensor]:
        def told(*args: Any, **named: Any) -> Any:
            stamps()
            return guided(*args, **named)

        module.guided = told  # type: ignore[method-assign]
        seen.clear()
        image_BCHW = module.restore(batch)
        return seen[0], image_BCHW

    return Restoring(run, steps=module.sampler.steps, device=device)


def their_restoring(
    side: Diffusers, batch: Batch, *, scale: float, steps: int, device: torch.device, control: float = 1.0
) -> Restoring:
    """The pipeline's call; a step is told by its own callback. `control` 0 leaves the ControlNet's residuals out."""
    pipe, told = side.pipeline(), side.inputs(batch, scale=scale, steps=steps)
    told["controlnet_conditioning_scale"] = control

    def run(stamps: Stamps) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def after(pipe: Any, step: int, t: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
            stamps()
            seen[:] = [found["latents"]]
            return found

        image_BCHW = pipe(**told, callback_on_step_end=after).images
        return seen[0], image_BCHW

    return Restoring(run, steps=steps, device=device)
