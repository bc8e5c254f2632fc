"""restore_lab's side of the comparison with diffusers, and what both sides are given.

Ours is `method=controlnet` as it is composed. Text embeddings are made before, on both sides. Zero convolutions are
given weights, or a broken control would pass for a right one; the codec's posterior is given no spread, because
diffusers draws from it and restore_lab takes its mode. An SD3 ControlNet has half the prior's blocks
(`adaptor.trunk.depth=half`), where both sides let the same blocks hear the same controls.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.configs import composed
from restore_lab.backbones.base import Backbone
from restore_lab.backbones.codec.codec import Codec
from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.backbones.loading.load import DTYPES
from restore_lab.config.build import build
from restore_lab.methods.module import RestorationModule
from restore_lab.random import generator
from restore_lab.system.quiet import silence_libraries
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
    """The method of a config, not settled: a shipped prior as it is, any other with random weights.

    It is a copy, as diffusers' side is: weights that were copied in a row lie closer together in memory than weights
    that were read from files, and a small model's step takes up to 3 % less.
    """
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
    return copy.deepcopy(module.to(device)).eval()


def settle(module: RestorationModule, cfg: Any) -> None:
    """The options of speed that the config says, as every verb takes them; trained if `module` is in training mode."""
    build(cfg.speed).apply(module)


def random_prior(settings: Any, device: torch.device) -> Backbone:
    """A prior of the config's shape and types whose weights were never trained, and whose texts are random too."""
    shape = build(settings, meta=True)
    made = {}
    with silence_libraries(), device:
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
