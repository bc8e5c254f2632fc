"""Load a `Backbone` from a diffusers-format folder, a hub id or a single file.

Paths are resolved in places.py; the parts are read in diffusers_folder.py, single_file.py and text/loading.py.
`meta=True` builds the modules on torch's meta device without weights, for example to count SDXL's parameters and FLOPs
on a laptop.
Config lines: `backbone=tiny_sd|tiny_sd3|sd15|sd21|sdxl|sd3`, `backbone.path=/folder/of/a/finetune`,
`backbone.path=/x/sd_xl_base_1.0.safetensors`, `backbone.codec_dtype=float32`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch

from restore_lab.backbones.base import Backbone
from restore_lab.backbones.codec.codec import Codec
from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.backbones.loading.diffusers_folder import BackboneError, Folder, read_json
from restore_lab.backbones.loading.places import DENOISERS, as_list, find_codec, find_prior
from restore_lab.backbones.schedule import Schedule
from restore_lab.backbones.text.loading import load_text, load_triple_text
from restore_lab.config.kinds import DType, Positive, Range
from restore_lab.config.validate import check_arguments
from restore_lab.storage.identity import fingerprint
from restore_lab.system.quiet import silence_libraries

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CACHE_BYTES = 256 * 2**20


@check_arguments
def load_backbone(
    path: str | Sequence[str],
    *,
    family: Literal["unet", "mmdit"],
    dtype: DType = "float32",
    meta: bool = False,
    cache_text: bool = True,
    without: Sequence[str] = (),
    t5_length: Annotated[int, Range(0, 512, unit="tokens")] = 256,
    text_dtype: DType | None = None,
    codec_dtype: DType | None = None,
    codec_path: str | None = None,
    config_path: str | None = None,
    cache_dir: str | None = None,
    cache_latents: bool = False,
    cache_gigabytes: Positive = 50.0,
) -> Backbone:
    """The frozen prior at `path`.

    Args:
        path: a place, or several that are tried in order (see places.py).
        family: "unet" (SD 1.5, SD 2.1, SDXL) or "mmdit" (SD3, SD3.5); must match the prior at `path`.
        dtype: dtype of the denoiser, and the default for codec and text encoders: float32, float16 or bfloat16.
        meta: build from configs on the meta device in float32, without weights and tokenizers.
        cache_text: cache text embeddings in memory; turn it off for texts that do not repeat (procedural captions).
        without: text encoders of an MM-DiT to omit ("text_encoder_3" saves T5's nine gigabytes).
        t5_length: number of T5 tokens; zeros without T5.
        text_dtype: dtype of the text encoders; null for `dtype`.
        codec_dtype: dtype of the codec; null for `dtype`. A codec that overflows in float16 (`force_upcast` in its
            config, as SDXL's) stays float32 instead.
        codec_path: folder or hub id of another codec; null for the prior's.
        config_path: the configs and tokenizers of a single file (single_file.py).
        cache_dir: folder of the disk cache of text embeddings; null for no disk cache.
        cache_latents: also cache latents of HQ images on disk, useful if the same crops repeat.
        cache_gigabytes: maximum size of the disk cache.

    Raises:
        BackboneError: if there is no prior at `path`, or it cannot be read.
    """
    without = as_list(without)
    prior = find_prior(as_list(path), family=family, meta=meta, config_path=config_path, without=without)
    denoiser = _diffusers_part(prior, DENOISERS[family], dtype=DTYPES[dtype], meta=meta)
    vae = _codec(prior, codec_path, dtype=DTYPES[codec_dtype or dtype], meta=meta)
    disk = None if meta else _disk_cache(prior, codec_path, folder=cache_dir, gigabytes=cache_gigabytes)
    codec, schedule = Codec(vae, disk=disk if cache_latents else None), load_schedule(prior)
    cache_bytes = CACHE_BYTES if cache_text else 0
    options: Any = {"dtype": DTYPES[text_dtype or dtype], "meta": meta, "cache_bytes": cache_bytes, "disk": disk}
    if family == "mmdit":
        from restore_lab.backbones.mmdit import MMDiTBackbone

        text = load_triple_text(prior, transformer=denoiser, without=without, t5_length=t5_length, **options)
        return MMDiTBackbone(transformer=denoiser, codec=codec, text=text, schedule=schedule)
    from restore_lab.backbones.unet import UNetBackbone

    text = load_text(prior, penultimate=denoiser.config.addition_embed_type == "text_time", **options)
    return UNetBackbone(unet=denoiser, codec=codec, text=text, schedule=schedule)


def _disk_cache(prior: Folder, codec_path: str | None, *, folder: str | None, gigabytes: float) -> DiskCache | None:
    """The disk cache of these encoders' outputs; None without a folder."""
    if folder is None:
        return None
    codec = [] if codec_path is None else [home.root / part for home, part in [find_codec(codec_path)]]
    base = json.dumps([[place.name, fingerprint(place)] for place in [*prior.encoders(), *codec]])
    return DiskCache(folder, base=base, max_bytes=int(gigabytes * 10**9))


def load_schedule(prior: Folder) -> Schedule:
    """The noise schedule of a prior."""
    file = prior.root / "scheduler" / "scheduler_config.json"
    try:
        return Schedule.from_config(read_json(file))
    except ValueError as error:
        raise BackboneError(f"{file}: {error}") from error


def _codec(prior: Folder, codec_path: str | None, *, dtype: torch.dtype, meta: bool) -> Any:
    """The prior's codec or the one at `codec_path`; float32 if it would overflow in float16."""
    home, part = (prior, "vae") if codec_path is None or meta else find_codec(codec_path)
    if dtype == torch.float16 and home.config(part).get(
        "force_upcast", home.config(part).get("_class_name") == "AutoencoderKL"
    ):
        dtype = torch.float32
    return _diffusers_part(home, part, dtype=dtype, meta=meta)


def _diffusers_part(prior: Folder, part: str, *, dtype: torch.dtype, meta: bool) -> Any:
    """The denoiser or the VAE, of the class in its config."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    classes = (UNet2DConditionModel, SD3Transformer2DModel, AutoencoderKL, AutoencoderTiny)
    known = {cls.__name__: cls for cls in classes}
    config = prior.config(part)
    name = config.get("_class_name")
    if name not in known:
        raise BackboneError(f"{prior.root / part}: class {name!r} is not one of {', '.join(known)}")
    if meta:
        with silence_libraries(), torch.device("meta"):
            return known[name].from_config(config)
    return prior.read(known[name], part, dtype=dtype)
