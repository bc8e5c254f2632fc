"""The codec of a shipped prior: an AutoencoderKL trained on the scenes, its latents normalised per channel.

Loss: |x - D(E(x))| + `mse` * (x - D(E(x)))^2 + `kl` * KL(q(z|x) || N(0, 1)), means over all elements. When training
ends, each latent channel's mean and standard deviation are folded into the two 1x1 convolutions around the latent, so
that scaling_factor is 1 and any diffusers pipeline reads the folder as it is. Selected by `experiment=priors/tiny_sd`,
stage `codec`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from restore_lab.methods.trainable import Trainable
from restore_lab.priors.codec_start import start_as_dct
from restore_lab.storage.paths import place_of
from restore_lab.system.quiet import silence_libraries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from diffusers import AutoencoderKL
    from torch import Tensor

    from restore_lab.types import Batch


LOGVAR = -6.0  # of the posterior at the start: at 0 its noise drowns the signal, and hundreds of steps are lost


def fold_normalisation(vae: AutoencoderKL, mean_C: Tensor, std_C: Tensor) -> None:
    """Make z' = (z - mean) / std the codec's latent, exactly, by rewriting quant_conv and post_quant_conv.

    The posterior's mean becomes (m - mean) / std, its log-variance falls by 2 log std, and the decoder's first
    convolution undoes both, so D(E(x)) is unchanged.
    """
    channels = mean_C.numel()
    with torch.no_grad():
        quant, post = vae.quant_conv, vae.post_quant_conv
        quant.weight[:channels] /= std_C[:, None, None, None]
        quant.bias[:channels] = (quant.bias[:channels] - mean_C) / std_C
        quant.bias[channels:] -= 2 * std_C.log()
        post.bias += (post.weight[:, :, 0, 0] * mean_C[None, :]).sum(dim=1)
        post.weight *= std_C[None, :, None, None]


def take_over(vae: AutoencoderKL, folder: Path) -> None:
    """Start from another codec: its tensors of the same name and shape, in place."""
    with silence_libraries():
        found = type(vae).from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).state_dict()
    own = vae.state_dict()
    alike = {name: value for name, value in found.items() if name in own and own[name].shape == value.shape}
    vae.load_state_dict(alike, strict=False)


class CodecPretraining(Trainable):
    """Trains an AutoencoderKL from nothing.

    Args:
        channels: of the latent.
        widths: of the levels; the compression is 2 ** (levels - 1).
        layers: residual blocks a level of the encoder (the decoder has one more).
        groups: of the group norms.
        mse, kl: weights of the losses.
        start: `dct` for an encoder that starts as a transform coder (codec_start.py), a folder with an AutoencoderKL
            whose tensors of the same name and shape are taken over, or null.
    """

    divides = False  # the latents' moments are taken over whole batches

    def __init__(
        self,
        *,
        channels: int,
        widths: Sequence[int],
        layers: int,
        groups: int,
        mse: float,
        kl: float,
        start: str | None = None,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.mse, self.kl = mse, kl
        self.vae = AutoencoderKL(
            block_out_channels=tuple(widths),
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=layers,
            latent_channels=channels,
            norm_num_groups=groups,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )
        with torch.no_grad():
            self.vae.quant_conv.bias[channels:] = LOGVAR
        if start == "dct":
            start_as_dct(self.vae, logvar=LOGVAR)
        elif start is not None:
            take_over(self.vae, place_of(start))
        self.register_buffer("mean_C", torch.zeros(channels), persistent=False)
        self.register_buffer("square_C", torch.ones(channels), persistent=False)

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """Reconstruction and prior loss of one batch; the latent's noise comes from the samples' seeds."""
        from restore_lab.random import noise_like

        if batch.hq_BCHW is None:
            raise ValueError("a codec learns from clean images; this data source gave none")
        x_BCHW = batch.hq_BCHW * 2 - 1
        posterior = self.vae.encode(x_BCHW).latent_dist
        z_BCHW = posterior.mean + posterior.std * noise_like(posterior.mean, batch.seed, "codec")
        y_BCHW = self.vae.decode(z_BCHW).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        mse = F.mse_loss(y_BCHW, x_BCHW)
        loss = F.l1_loss(y_BCHW, x_BCHW) + self.mse * mse + self.kl * kl
        self._observe(posterior.mean.detach(), step)
        return {"loss": loss, "psnr": -10 * torch.log10(mse.detach() / 4)}

    def _observe(self, z_BCHW: Tensor, step: int) -> None:
        """Running first and second moments of each latent channel, over about the last thousand batches."""
        weight = 1e-3 if step > 1000 else 1.0 / (step + 1)
        self.mean_C.lerp_(z_BCHW.float().mean(dim=(0, 2, 3)), weight)
        self.square_C.lerp_(z_BCHW.float().square().mean(dim=(0, 2, 3)), weight)

    def training_state(self) -> dict[str, Tensor]:
        """The moments, which are not trained."""
        return {"mean_C": self.mean_C.clone(), "square_C": self.square_C.clone()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The moments again."""
        self.mean_C, self.square_C = (state[name].to(self.device) for name in ("mean_C", "square_C"))

    def export(self, folder: Path) -> None:
        """The `vae` folder of a diffusers pipeline, in half precision."""
        vae = self.vae.float()
        fold_normalisation(vae, self.mean_C, (self.square_C - self.mean_C**2).clamp(min=1e-8).sqrt())
        vae.half().save_pretrained(folder)
