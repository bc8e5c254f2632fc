"""The noise schedule of a variance-preserving prior and its three prediction types.

z_t = alpha(t) x0 + sigma(t) noise, alpha^2 + sigma^2 = 1, t an integer in [0, num_train_timesteps).
Built from a diffusers scheduler config; numbers equal DDIMScheduler's bit for bit. The velocity is Salimans & Ho's
v = alpha noise - sigma x0 (arXiv 2202.00512), zero terminal SNR is Lin et al., Algorithm 1 (arXiv 2305.08891).
Selected by the `scheduler/scheduler_config.json` of the folder that `backbone.path` names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# With zero terminal SNR alpha is 0 at the last step and the noise says nothing about x0. diffusers' Euler scheduler
# then takes alpha_cumprod = 2^-24; the same floor keeps x0 finite here. Only epsilon prediction divides by alpha.
ALPHA_FLOOR = 2.0**-12


class Schedule:
    """alpha(t), sigma(t) and the conversions between what the model says, x0 and the noise.

    Every `t` is an integer tensor of shape (B,) or a plain int. Conversions run in float32 whatever the model's dtype.
    """

    def __init__(self, *, alphas_cumprod: Tensor, prediction_type: str) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
        self.prediction_type = prediction_type
        self.alphas_cumprod = alphas_cumprod.to(torch.float32)
        self._on_device: dict[torch.device, Tensor] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """Read a diffusers scheduler config (the content of scheduler_config.json).

        Raises:
            ValueError: for a beta schedule or a prediction type that a variance-preserving prior does not have.
        """
        betas = _betas(config)
        if config.get("rescale_betas_zero_snr", False):
            betas = _zero_terminal_snr(betas)
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        return cls(alphas_cumprod=alphas_cumprod, prediction_type=config.get("prediction_type", "epsilon"))

    @property
    def num_train_timesteps(self) -> int:
        """How many timesteps the prior was trained on."""
        return len(self.alphas_cumprod)

    def alpha(self, t_B: Tensor | int) -> Tensor:
        """The weight of x0 at t: float32, the shape of t."""
        return self._alpha_cumprod(t_B) ** 0.5

    def sigma(self, t_B: Tensor | int) -> Tensor:
        """The standard deviation of the noise at t: float32, the shape of t."""
        return (1 - self._alpha_cumprod(t_B)) ** 0.5

    def add_noise(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor | int) -> Tensor:
        """z_t = alpha x0 + sigma noise."""
        a, s = self._alpha_sigma(t_B, x0_BCHW)
        return a * x0_BCHW + s * noise_BCHW

    def velocity(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor | int) -> Tensor:
        """v = alpha noise - sigma x0."""
        a, s = self._alpha_sigma(t_B, x0_BCHW)
        return a * noise_BCHW - s * x0_BCHW

    def target(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor | int) -> Tensor:
        """What a perfect model of this prediction type says: the regression target of the denoising loss."""
        if self.prediction_type == "epsilon":
            return noise_BCHW
        if self.prediction_type == "sample":
            return x0_BCHW
        return self.velocity(x0_BCHW, noise_BCHW, t_B)

    def to_x0(self, model_out_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor | int) -> Tensor:
        """The clean latent that the model's output stands for.

        For epsilon at zero terminal SNR alpha is floored at 2^-12 (see `ALPHA_FLOOR`): finite, but no information.
        """
        a, s = self._alpha_sigma(t_B, z_BCHW)
        if self.prediction_type == "epsilon":
            return (z_BCHW - s * model_out_BCHW) / a.clamp_min(ALPHA_FLOOR)
        if self.prediction_type == "sample":
            return model_out_BCHW
        return a * z_BCHW - s * model_out_BCHW

    def from_x0(self, x0_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor | int) -> Tensor:
        """The model output that stands for this clean latent: the inverse of `to_x0`, for samplers that edit x0.

        Divides by sigma, which is above 0 at every t; the floor of `to_x0` is kept so that the two stay inverse.
        """
        a, s = self._alpha_sigma(t_B, z_BCHW)
        if self.prediction_type == "epsilon":
            return (z_BCHW - a.clamp_min(ALPHA_FLOOR) * x0_BCHW) / s
        if self.prediction_type == "sample":
            return x0_BCHW
        return (a * z_BCHW - x0_BCHW) / s

    def to_noise(self, model_out_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor | int) -> Tensor:
        """The noise that the model's output stands for."""
        if self.prediction_type == "epsilon":
            return model_out_BCHW
        a, s = self._alpha_sigma(t_B, z_BCHW)
        if self.prediction_type == "sample":
            return (z_BCHW - a * model_out_BCHW) / s
        return a * model_out_BCHW + s * z_BCHW

    def _alpha_cumprod(self, t_B: Tensor | int) -> Tensor:
        """One copy of the table per device, so that a lookup on a GPU does not wait for the CPU."""
        if not isinstance(t_B, Tensor):
            return self.alphas_cumprod[t_B]
        if t_B.device not in self._on_device:
            self._on_device[t_B.device] = self.alphas_cumprod.to(t_B.device)
        return self._on_device[t_B.device][t_B]

    def _alpha_sigma(self, t_B: Tensor | int, like_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma shaped to multiply `like_BCHW`, on its device."""
        t_B = torch.as_tensor(t_B, device=like_BCHW.device)
        shape = (-1,) + (1,) * (like_BCHW.dim() - 1)
        return self.alpha(t_B).reshape(shape), self.sigma(t_B).reshape(shape)


def _betas(config: Mapping[str, Any]) -> Tensor:
    """The beta schedules that diffusers' DDIMScheduler knows, with its defaults: float32 of shape (T,)."""
    count = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float32)
    if kind == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":
        bars = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return torch.tensor([min(1 - bars[i + 1] / bars[i], 0.999) for i in range(count)], dtype=torch.float32)
    raise ValueError(f"beta_schedule {kind!r} is not one of linear, scaled_linear, squaredcos_cap_v2")


def _zero_terminal_snr(betas_T: Tensor) -> Tensor:
    """Lin et al., Algorithm 1: shift and scale sqrt(alpha_bar) so that it ends at 0 and starts where it did."""
    roots = torch.cumprod(1.0 - betas_T, dim=0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    roots = (roots - last) * (first / (first - last))
    bars = roots**2
    return 1 - torch.cat([bars[:1], bars[1:] / bars[:-1]])
