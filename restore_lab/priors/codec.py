"""The codec of a shipped prior: an AutoencoderKL trained on the scenes, with latents normalised per channel.

The loss is |x - D(E(x))| + `mse` (x - D(E(x)))^2 + `kl` KL(q(z|x) || N(0, 1)), averaged over all elements. On export,
the mean and standard deviation of each latent channel are folded into quant_conv and post_quant_conv, such that
scaling_factor is 1 and a diffusers pipeline loads the folder unchanged. Selected by `experiment=priors/tiny_sd`, stage
`codec`. Shapes: images (B, 3, H, W) in [0, 1], latents (B, channels, H / compression, W / compression).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from restore_lab.methods.trainable import Trainable
from restore_lab.priors.codec_start import initialise_as_dct
from restore_lab.storage.paths import place_of
from restore_lab.system.quiet import silence_libraries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from torch import Tensor, nn

    from restore_lab.types import Batch


INITIAL_LOGVAR = -6.0  # of the posterior; at 0 its noise would drown the signal for the first hundreds of steps


def fold_normalisation(vae: AutoencoderKL, mean_C: Tensor, std_C: Tensor) -> None:
    """Make z' = (z - mean) / std the codec's latent, in place, by rewriting quant_conv and post_quant_conv.

    The posterior's mean m becomes (m - mean) / std, its log-variance decreases by 2 log std, and post_quant_conv
    inverts both, so D(E(x)) is unchanged.
    """
    channels = mean_C.numel()
    with torch.no_grad():
        (weight, bias), (post_weight, post_bias) = _parameters(vae.quant_conv), _parameters(vae.post_quant_conv)
        weight[:channels] /= std_C[:, None, None, None]
        bias[:channels] = (bias[:channels] - mean_C) / std_C
        bias[channels:] -= 2 * std_C.log()
        post_bias += (post_weight[:, :, 0, 0] * mean_C[None, :]).sum(dim=1)
        post_weight *= std_C[None, :, None, None]


def copy_matching_weights(vae: AutoencoderKL, folder: Path) -> None:
    """Copy another codec's tensors of the same name and shape, in place."""
    with silence_libraries():
        source = type(vae).from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).state_dict()
    target = vae.state_dict()
    matching = {name: value for name, value in source.items() if name in target and target[name].shape == value.shape}
    vae.load_state_dict(matching, strict=False)


def _parameters(conv: nn.Conv2d | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a quant_conv, which an AutoencoderKL has by default."""
    assert conv is not None and conv.bias is not None
    return conv.weight, conv.bias


class CodecPretraining(Trainable):
    """Trains an AutoencoderKL from scratch.

    Args:
        channels: number of latent channels.
        widths: channels of each level; the compression is 2 ** (levels - 1).
        layers: residual blocks per level of the encoder (the decoder has one more).
        groups: groups of the group norms.
        mse, kl: loss weights.
        start: `dct` initialises the encoder as a transform coder (codec_start.py); a folder with an AutoencoderKL
            initialises the tensors of the same name and shape; null keeps the random initialisation.
    """

    divisible = False  # the latents' moments are those of whole batches
    mean_C: Tensor
    square_C: Tensor

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
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        self.mse, self.kl = mse, kl
        levels: dict[str, Any] = {  # diffusers annotates them as tuples of one string or number
            "block_out_channels": tuple(widths),
            "down_block_types": ("DownEncoderBlock2D",) * len(widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        }
        self.vae = AutoencoderKL(
            **levels,
            layers_per_block=layers,
            latent_channels=channels,
            norm_num_groups=groups,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )
        with torch.no_grad():
            _parameters(self.vae.quant_conv)[1][channels:] = INITIAL_LOGVAR
        if start == "dct":
            initialise_as_dct(self.vae, logvar=INITIAL_LOGVAR)
        elif start is not None:
            copy_matching_weights(self.vae, place_of(start))
        self.register_buffer("mean_C", torch.zeros(channels), persistent=False)
        self.register_buffer("square_C", torch.ones(channels), persistent=False)

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """Reconstruction and KL loss of one batch, and the PSNR in dB; the latent's noise comes from the seeds."""
        from restore_lab.random import noise_like

        if batch.hq_BCHW is None:
            raise ValueError("a codec learns from clean images; this data source gave none")
        x_BCHW = batch.hq_BCHW * 2 - 1
        vae: Any = self.vae  # diffusers annotates what it returns as tuple or object
        posterior = vae.encode(x_BCHW).latent_dist
        z_BCHW = posterior.mean + posterior.std * noise_like(posterior.mean, batch.seed, "codec")
        y_BCHW = vae.decode(z_BCHW).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        mse = F.mse_loss(y_BCHW, x_BCHW)
        loss = F.l1_loss(y_BCHW, x_BCHW) + self.mse * mse + self.kl * kl
        self._update_moments(posterior.mean.detach(), step)
        return {"loss": loss, "psnr": -10 * torch.log10(mse.detach() / 4)}

    def _update_moments(self, z_BCHW: Tensor, step: int) -> None:
        """Update the running first and second moments of each latent channel, over about a thousand batches."""
        weight = 1e-3 if step > 1000 else 1.0 / (step + 1)
        self.mean_C.lerp_(z_BCHW.float().mean(dim=(0, 2, 3)), weight)
        self.square_C.lerp_(z_BCHW.float().square().mean(dim=(0, 2, 3)), weight)

    def training_state(self) -> dict[str, Tensor]:
        """The moments, which are not parameters."""
        return {"mean_C": self.mean_C.clone(), "square_C": self.square_C.clone()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the moments."""
        self.mean_C, self.square_C = (state[name].to(self.device) for name in ("mean_C", "square_C"))

    def export(self, folder: Path) -> None:
        """Write the `vae` folder of a diffusers pipeline, in half precision."""
        vae = self.vae.float()
        fold_normalisation(vae, self.mean_C, (self.square_C - self.mean_C**2).clamp(min=1e-8).sqrt())
        vae.half().save_pretrained(folder)
