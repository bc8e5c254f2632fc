"""The denoising loss (SPIRE Eq. 1) in noise, velocity, flow or x0. `objective=denoising|velocity|flow|regression`.

The loss is the mean squared error of the model's prediction at z_t = alpha z0 + sigma noise, in the prior's prediction
type or converted to another one (flow for an SDXL prior, velocity for an SD3 prior). Timesteps are uniform over the
schedule, or logit-normal as in the training of flow priors (Esser et al., arXiv 2403.03206, section 3.1: u =
sigmoid(N(mean, std)), with the shift of the prior's schedule). Each image's timestep and noise come from its own seed.
Shapes: z0 (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import Positive, Share
from restore_lab.config.validate import check_arguments
from restore_lab.random import noise_like, uniform

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
Density = Literal["auto", "uniform", "logit_normal"]


@check_arguments
class Denoising:
    """Mean squared error at random timesteps.

    Args:
        t_min, t_max: range of the timesteps as fractions of the schedule, 0 and 1 for the whole schedule.
        target: prediction type of the error; null for the prior's.
        density: density of the timesteps: "uniform", "logit_normal", or "auto", logit-normal only for a flow prior.
        mean, std: parameters of the logit-normal density.
    """

    def __init__(
        self,
        *,
        t_min: Share,
        t_max: Share,
        target: PredictionType | None = None,
        density: Density = "auto",
        mean: float = 0.0,
        std: Positive = 1.0,
    ) -> None:
        if t_min >= t_max:
            raise ValueError(f"objective needs t_min < t_max, not t_min={t_min}, t_max={t_max}")
        self.t_min, self.t_max, self.target = t_min, t_max, target
        self.density, self.mean, self.std = density, mean, std

    def __call__(
        self,
        z0_BCHW: Tensor,
        *,
        seeds: Sequence[int],
        schedule: Schedule,
        predict: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            z0_BCHW: clean latents.
            seeds: one per image, for timestep and noise.
            schedule: the prior's noise schedule.
            predict: the model's output at (z_t, t).
        """
        t_B = self.times(seeds, schedule).to(z0_BCHW.device)
        noise_BCHW = noise_like(z0_BCHW, seeds, "diffusion noise")
        z_BCHW = schedule.add_noise(z0_BCHW, noise_BCHW, t_B)
        kind = self.target or schedule.prediction_type
        target_BCHW = schedule.target(z0_BCHW, noise_BCHW, t_B, prediction_type=kind)
        output_BCHW = schedule.convert(predict(z_BCHW, t_B).float(), z_BCHW, t_B, prediction_type=kind)
        # SPIRE, Eq. 1; InstantIR, Eq. 1; Diff-Restorer, Eq. 6
        return torch.nn.functional.mse_loss(output_BCHW, target_BCHW.float())

    def times(self, seeds: Sequence[int], schedule: Schedule) -> Tensor:
        """The timesteps, one per image, (B,)."""
        share_B = uniform(seeds, "timestep")
        logit_normal = schedule.prediction_type == "flow" if self.density == "auto" else self.density == "logit_normal"
        if logit_normal:
            share_B = torch.sigmoid(self.mean + self.std * torch.special.ndtri(share_B))  # Esser et al., section 3.1
        return schedule.time(self.t_min + (self.t_max - self.t_min) * share_B)
