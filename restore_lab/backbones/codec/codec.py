"""The codec of a latent prior: images in [0, 1] to normalised latents and back.

Wraps diffusers' AutoencoderKL or AutoencoderTiny, whose images are in [-1, 1]. Shapes: image (B, 3, H, W) with H and W
multiples of `compression`, latent (B, channels, H / compression, W / compression). Latents are normalised by the
config: (z - mean) / std * scaling_factor, or (z - shift_factor) * scaling_factor.
An AutoencoderKL processes images of more than `pixels` pixels, if set, in bands of rows (banded.py).
Selected by the `vae` folder of `backbone.path`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from restore_lab.backbones.codec.banded import decode_in_bands, encode_in_bands
from restore_lab.backbones.disk_cache import DiskCache, content
from restore_lab.system.xla import to_host

Generators = torch.Generator | Sequence[torch.Generator]


class Codec(nn.Module):
    """Encoder and decoder with frozen weights; gradients pass through to the inputs.

    Attributes:
        compression: image side over latent side.
        channels: latent channels.
        pixels: pixels per band, for larger images and without gradients; None for no bands.
    """

    vae: Any  # diffusers' types of its outputs are unions
    pixels: int | None = None

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, *, disk: DiskCache | None = None) -> None:
        """`disk` caches latents across runs (see `encode_cached`); None for no cache."""
        super().__init__()
        self.vae, self.disk = vae, disk
        tiny = isinstance(vae, AutoencoderTiny)
        blocks = vae.config["encoder_block_out_channels" if tiny else "block_out_channels"]
        self.compression = 2 ** (len(blocks) - 1)
        self.channels = int(vae.config["latent_channels"])
        self.scale, self.shift = self._normalisation()

    def encode(
        self, image_BCHW: Tensor, *, generator: Generators | None = None, encoder: nn.Module | None = None
    ) -> Tensor:
        """Normalised latents of images in [0, 1].

        Args:
            image_BCHW: float in [0, 1].
            generator: samples the posterior, one generator or one per image; None for the mode.
            encoder: replaces the vae's `encoder` (SUPIR's robust encoder), with the vae's quant_conv.

        Raises:
            ValueError: if the size is not a multiple of `compression`, or the vae has no posterior to sample.
        """
        self._check(image_BCHW)
        if isinstance(self.vae, AutoencoderTiny):
            if generator is not None:
                raise ValueError("AutoencoderTiny has no posterior to draw from; leave out generator")
            (z,) = self.vae.encode((2 * image_BCHW - 1).to(self._dtype), return_dict=False)
        else:
            posterior = self._posterior(image_BCHW, encoder)
            z = posterior.mode()
            if generator is not None:
                z = z + posterior.std * _noise(z, generator)
        return (z.to(image_BCHW.dtype) - self._like(self.shift, image_BCHW)) * self._like(self.scale, image_BCHW)

    @torch.no_grad()
    def encode_cached(self, image_BCHW: Tensor) -> Tensor:
        """`encode` with the disk cache, for images that repeat exactly, such as uncropped HQ images.

        With a cache, images are encoded one by one, so that a cached latent does not depend on its batch.
        """
        disk = self.disk
        if disk is None:
            return self.encode(image_BCHW)
        device = image_BCHW.device
        latents = [
            disk.get(["latent", content(image[0])], self.vae, lambda image=image: (self.encode(image.to(device)),))[0]
            for image in to_host(image_BCHW).split(1)
        ]
        return torch.cat([to_host(latent) for latent in latents]).to(device)

    def _posterior(self, image_BCHW: Tensor, encoder: nn.Module | None) -> DiagonalGaussianDistribution:
        """The posterior of images in [0, 1], by `encoder` or the vae's encoder."""
        rows = self.rows(image_BCHW.shape[-2:])
        if rows is not None:
            coder = encoder or self.vae.encoder
            h = encode_in_bands(coder, image_BCHW, rows=rows)
        else:
            x = (2 * image_BCHW - 1).to(self._dtype)
            if encoder is None:
                return self.vae.encode(x).latent_dist
            h = encoder(x)
        return DiagonalGaussianDistribution(h if self.vae.quant_conv is None else self.vae.quant_conv(h))

    def rows(self, size: Sequence[int]) -> int | None:
        """The rows per band for an image of (height, width); None for no bands."""
        small = self.pixels is None or size[0] * size[1] <= self.pixels
        if self.pixels is None or small or isinstance(self.vae, AutoencoderTiny) or torch.is_grad_enabled():
            return None
        return max(2 * self.compression, self.pixels // size[1])

    def decode(
        self, z_BCHW: Tensor, *, clamp: bool = True, decoder: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Images of normalised latents, (B, 3, H, W).

        Args:
            z_BCHW: normalised latents.
            clamp: clamp to [0, 1]; false keeps all gradients.
            decoder: replaces the vae's `decoder`, after the vae's post_quant_conv.
        """
        z = (z_BCHW / self._like(self.scale, z_BCHW) + self._like(self.shift, z_BCHW)).to(self._dtype)
        rows = self.rows([self.compression * side for side in z.shape[-2:]])
        if rows is not None and decoder is None:
            decoder = partial(decode_in_bands, self.vae.decoder, rows=rows)
        if decoder is None:
            sample = self.vae.decode(z).sample
        else:
            sample = decoder(z if self.vae.post_quant_conv is None else self.vae.post_quant_conv(z))
        if not torch.is_grad_enabled():  # in place, to save memory for large images
            image = sample.to(z_BCHW.dtype).add_(1).div_(2)
            return image.clamp_(0, 1) if clamp else image
        image = (sample.to(z_BCHW.dtype) + 1) / 2
        return image.clamp(0, 1) if clamp else image

    def features(self, image_BCHW: Tensor) -> list[Tensor]:
        """The KL encoder's features of images in [0, 1] at each level, before downsampling; the finest level first."""
        self._check(image_BCHW)
        h, levels = self.vae.encoder.conv_in((2 * image_BCHW - 1).to(self._dtype)), []
        for block in self.vae.encoder.down_blocks:
            for resnet in block.resnets:
                h = resnet(h, None)
            levels.append(h)
            for downsampler in block.downsamplers or ():
                h = downsampler(h)
        return levels

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(scale, shift) of z_normalised = (z - shift) * scale: one number, or one per channel."""
        config = self.vae.config
        factor = float(config.get("scaling_factor") or 1.0)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            return tuple(factor / s for s in std), tuple(float(m) for m in mean)
        return (factor,), (float(config.get("shift_factor") or 0.0),)

    def _like(self, values: tuple[float, ...], z_BCHW: Tensor) -> Tensor:
        return torch.tensor(values, dtype=z_BCHW.dtype, device=z_BCHW.device).reshape(1, -1, 1, 1)

    def _check(self, image_BCHW: Tensor) -> None:
        height, width = image_BCHW.shape[-2:]
        if height % self.compression or width % self.compression:
            raise ValueError(
                f"image of {height}x{width}: both sides must be multiples of {self.compression}; pad the image first"
            )


def _noise(like_BCHW: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise; with one generator per image it does not depend on the batch."""
    if isinstance(generator, torch.Generator):
        return _draw(tuple(like_BCHW.shape), generator).to(like_BCHW)
    if len(generator) != len(like_BCHW):
        raise ValueError(f"{len(generator)} generators for {len(like_BCHW)} images; pass one, or one per image")
    return torch.stack([_draw(tuple(like_BCHW.shape[1:]), one) for one in generator]).to(like_BCHW)


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
