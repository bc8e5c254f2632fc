"""The noise schedule of a prior, z_t = alpha(t) x0 + sigma(t) noise, and its prediction type.

There are two families. Variance preserving (SD, SDXL): alpha^2 + sigma^2 = 1, t an integer in [0, T); values equal
diffusers' DDIMScheduler bit for bit; velocity is v = alpha noise - sigma x0 (Salimans & Ho, arXiv 2202.00512), zero
terminal SNR is Lin et al., Algorithm 1 (arXiv 2305.08891). Flow matching (SD3, Esser et al., arXiv 2403.03206, section
3): alpha = 1 - s, sigma = s, t = T s a real number in [0, T]; the model predicts the flow noise - x0. Selected by
`scheduler/scheduler_config.json` in the folder `backbone.path`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")

# With zero terminal SNR alpha is 0 at the last timestep, where epsilon prediction does not determine x0 and divides by
# alpha. diffusers' Euler scheduler sets alpha_cumprod = 2^-24 there; this is the same lower bound.
ALPHA_FLOOR = 2.0**-12
# The lower bound of sigma as a divisor; sigma is 0 at t = 0 of a flow.
SIGMA_FLOOR = 2.0**-12


class Schedule(ABC):
    """alpha(t), sigma(t) and the conversions between model output, x0 and noise.

    Every `t` is a tensor of shape (B,) or a number. alpha and sigma are float32, whatever the model's dtype. From a
    model output m, x0 is (z - sigma m) / alpha for "epsilon", m for "sample", alpha z - sigma m for "v_prediction"
    (where alpha^2 + sigma^2 = 1), and (z - sigma m) / (alpha + sigma) for "flow".
    """

    prediction_type: str
    num_train_timesteps: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """Read a diffusers scheduler config (the content of scheduler_config.json).

        Raises:
            ValueError: for an unsupported beta schedule or prediction type.
        """
        if str(config.get("_class_name", "")).startswith("FlowMatch"):
            return FlowMatching.from_config(config)
        return VariancePreserving.from_config(config)

    @abstractmethod
    def alpha(self, t_B: Tensor | float) -> Tensor:
        """The weight of x0 at t, float32, in the shape of t."""

    @abstractmethod
    def sigma(self, t_B: Tensor | float) -> Tensor:
        """The standard deviation of the noise at t, float32, in the shape of t."""

    @abstractmethod
    def time(self, share_B: Tensor) -> Tensor:
        """The timesteps at fractions of the schedule in [0, 1), from no noise to pure noise, for training."""

    @abstractmethod
    def time_of(self, ratio: float) -> float:
        """The model's timestep with sigma / alpha nearest to `ratio`."""

    @property
    def top(self) -> float:
        """The last timestep, where sampling starts."""
        return float(self.num_train_timesteps - 1)

    def ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha at t, float64, finite: the sigma of EDM."""
        return self.sigma(t).double() / self.alpha(t).double().clamp_min(ALPHA_FLOOR)

    def share(self, t: Tensor) -> Tensor:
        """sigma / alpha at t as a fraction of its value at the last timestep, in [0, 1], float64."""
        return (self.ratio(t) / self.ratio(torch.tensor(self.top, dtype=torch.float64))).clamp(max=1.0)

    def share_of(self, ratio: float) -> float:
        """`share` for a value of sigma / alpha; above 1 if that is above the last timestep's."""
        return ratio / float(self.ratio(torch.tensor(self.top, dtype=torch.float64)))

    def add_noise(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor | float) -> Tensor:
        """z_t = alpha x0 + sigma noise."""
        a, s = self._alpha_sigma(t_B, x0_BCHW)
        return a * x0_BCHW + s * noise_BCHW

    def velocity(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor | float) -> Tensor:
        """v = alpha noise - sigma x0."""
        a, s = self._alpha_sigma(t_B, x0_BCHW)
        return a * noise_BCHW - s * x0_BCHW  # Salimans & Ho, section 4

    def target(
        self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor | float, *, prediction_type: str | None = None
    ) -> Tensor:
        """The regression target of the denoising loss.

        Args:
            x0_BCHW, noise_BCHW: clean latents and noise of z_t.
            t_B: timesteps.
            prediction_type: another prediction type than the prior's.
        """
        kind = prediction_type or self.prediction_type
        if kind == "epsilon":
            return noise_BCHW
        if kind == "sample":
            return x0_BCHW
        if kind == "flow":
            return noise_BCHW - x0_BCHW  # Esser et al., section 3
        return self.velocity(x0_BCHW, noise_BCHW, t_B)

    def to_x0(self, model_out_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor | float) -> Tensor:
        """The clean latent predicted by the model's output.

        For "epsilon" at zero terminal SNR alpha is at least 2^-12 (`ALPHA_FLOOR`): x0 is finite, but not informative.
        """
        a, s = self._alpha_sigma(t_B, z_BCHW)
        if self.prediction_type == "epsilon":
            return (z_BCHW - s * model_out_BCHW) / a.clamp_min(ALPHA_FLOOR)  # InstantIR, Eq. 2
        if self.prediction_type == "sample":
            return model_out_BCHW
        if self.prediction_type == "flow":
            return (z_BCHW - s * model_out_BCHW) / (a + s)
        return a * z_BCHW - s * model_out_BCHW  # Salimans & Ho, section 4

    def from_x0(self, x0_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor | float) -> Tensor:
        """The model output that predicts this clean latent: the inverse of `to_x0`, for samplers that edit x0.

        It divides by sigma, which is at least `SIGMA_FLOOR`, and uses the lower bound of alpha of `to_x0`.
        """
        a, s = self._alpha_sigma(t_B, z_BCHW)
        if self.prediction_type == "sample":
            return x0_BCHW
        s = s.clamp_min(SIGMA_FLOOR)
        if self.prediction_type == "epsilon":
            return (z_BCHW - a.clamp_min(ALPHA_FLOOR) * x0_BCHW) / s
        if self.prediction_type == "flow":
            return (z_BCHW - (a + s) * x0_BCHW) / s
        return (a * z_BCHW - x0_BCHW) / s

    def to_noise(self, model_out_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor | float) -> Tensor:
        """The noise predicted by the model's output."""
        if self.prediction_type == "epsilon":
            return model_out_BCHW
        a, s = self._alpha_sigma(t_B, z_BCHW)
        if self.prediction_type == "sample":
            return (z_BCHW - a * model_out_BCHW) / s.clamp_min(SIGMA_FLOOR)
        if self.prediction_type == "flow":
            return (z_BCHW + a * model_out_BCHW) / (a + s)
        return a * model_out_BCHW + s * z_BCHW

    def convert(self, model_out_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor | float, *, prediction_type: str) -> Tensor:
        """The model's output, converted to another prediction type."""
        if prediction_type == self.prediction_type:
            return model_out_BCHW
        x0_BCHW = self.to_x0(model_out_BCHW, z_BCHW, t_B)
        noise_BCHW = self.to_noise(model_out_BCHW, z_BCHW, t_B)
        return self.target(x0_BCHW, noise_BCHW, t_B, prediction_type=prediction_type)

    def _alpha_sigma(self, t_B: Tensor | float, like_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, broadcastable to `like_BCHW` and on its device; looked up on t's device."""
        t_B = torch.as_tensor(t_B)
        shape, device = (-1,) + (1,) * (like_BCHW.dim() - 1), like_BCHW.device
        return self.alpha(t_B).reshape(shape).to(device), self.sigma(t_B).reshape(shape).to(device)


class VariancePreserving(Schedule):
    """A table of cumulative alphas; t is an integer, and real numbers are rounded."""

    def __init__(self, *, alphas_cumprod: Tensor, prediction_type: str) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
        self.prediction_type = prediction_type
        self.alphas_cumprod = alphas_cumprod.to(torch.float32)
        self.num_train_timesteps = len(alphas_cumprod)
        self._on_device: dict[torch.device, Tensor] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VariancePreserving:
        """As `Schedule.from_config`."""
        betas = _betas(config)
        if config.get("rescale_betas_zero_snr", False):
            betas = _zero_terminal_snr(betas)
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        return cls(alphas_cumprod=alphas_cumprod, prediction_type=config.get("prediction_type", "epsilon"))

    def alpha(self, t_B: Tensor | float) -> Tensor:
        return self._alpha_cumprod(t_B) ** 0.5

    def sigma(self, t_B: Tensor | float) -> Tensor:
        return (1 - self._alpha_cumprod(t_B)) ** 0.5

    def time(self, share_B: Tensor) -> Tensor:
        # A share just below 1 can round up to T, which is not a timestep.
        return (share_B * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1)

    def time_of(self, ratio: float) -> float:
        return float((self.ratios - ratio).abs().argmin())

    @property
    def ratios(self) -> Tensor:
        """sigma / alpha at all timesteps, (T,), float64, increasing."""
        bar = self.alphas_cumprod.double()
        return ((1 - bar) / bar.clamp_min(ALPHA_FLOOR**2)).sqrt()

    def ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha, linearly interpolated between timesteps, because samplers may use real numbers."""
        table, t = self.ratios, t.detach().double().cpu().clamp(0, self.num_train_timesteps - 1)
        low, part = t.floor().long(), t - t.floor()
        return table[low] + part * (table[(low + 1).clamp(max=len(table) - 1)] - table[low])

    def _alpha_cumprod(self, t_B: Tensor | float) -> Tensor:
        """The cumulative alphas at t, from one copy of the table per device, to avoid synchronisation."""
        if not isinstance(t_B, Tensor):
            return self.alphas_cumprod[round(t_B)]
        if t_B.device not in self._on_device:
            self._on_device[t_B.device] = self.alphas_cumprod.to(t_B.device)
        return self._on_device[t_B.device][t_B.round().long() if t_B.is_floating_point() else t_B]


class FlowMatching(Schedule):
    """The straight path of rectified flow.

    Args:
        shift: s -> shift s / (1 + (shift - 1) s), more noise for larger images (Esser et al., Eq. 23); 3 for SD3.
        num_train_timesteps: T, the range of the model's time embedding.
    """

    def __init__(self, *, shift: float = 1.0, num_train_timesteps: int = 1000) -> None:
        self.prediction_type, self.shift, self.num_train_timesteps = "flow", float(shift), num_train_timesteps

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FlowMatching:
        """As `Schedule.from_config`.

        Raises:
            ValueError: for a resolution-dependent shift (`use_dynamic_shifting`).
        """
        if config.get("use_dynamic_shifting", False):
            raise ValueError("use_dynamic_shifting is not supported; SD3 and SD3.5 have a fixed shift")
        return cls(shift=config.get("shift", 1.0), num_train_timesteps=config.get("num_train_timesteps", 1000))

    @property
    def top(self) -> float:
        return float(self.num_train_timesteps)

    def alpha(self, t_B: Tensor | float) -> Tensor:
        return 1 - self.sigma(t_B)

    def sigma(self, t_B: Tensor | float) -> Tensor:
        return torch.as_tensor(t_B).to(torch.float32) / self.num_train_timesteps

    def time(self, share_B: Tensor) -> Tensor:
        # Esser et al., Eq. 23
        return self.num_train_timesteps * self.shift * share_B / (1 + (self.shift - 1) * share_B)

    def time_of(self, ratio: float) -> float:
        return self.num_train_timesteps * ratio / (1 + ratio) if math.isfinite(ratio) else self.top

    def ratio(self, t: Tensor) -> Tensor:
        s = t.detach().double().cpu() / self.num_train_timesteps
        return s / (1 - s).clamp_min(ALPHA_FLOOR)

    def share(self, t: Tensor) -> Tensor:
        """s, because sigma / alpha is unbounded for a flow."""
        return (t.detach().double().cpu() / self.num_train_timesteps).clamp(0, 1)

    def share_of(self, ratio: float) -> float:
        return ratio / (1 + ratio)


def _betas(config: Mapping[str, Any]) -> Tensor:
    """The betas of diffusers' DDIMScheduler, with its defaults, (T,), float32."""
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
    """Betas with zero terminal SNR (Lin et al., Algorithm 1): sqrt(alpha_bar) shifted and scaled to end at 0."""
    roots = torch.cumprod(1.0 - betas_T, dim=0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    roots = (roots - last) * (first / (first - last))  # Lin et al., Algorithm 1
    bars = roots**2
    return 1 - torch.cat([bars[:1], bars[1:] / bars[:-1]])
