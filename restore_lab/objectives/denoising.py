"""The denoising loss (SPIRE Eq. 1) in noise, velocity, flow or x0. `objective=denoising|velocity|flow|regression`.

The loss is the mean squared error between what the model says of z_t = alpha z0 + sigma noise and the target, either in
the prior's own prediction or converted to another (flow matching in an SDXL, velocity in an SD3). Times are uniform
over the schedule, or logit-normal (Esser et al., arXiv 2403.03206, section 3.1: u = sigmoid(N(mean, std)), shifted as
the prior's schedule says), as a flow's prior was trained. Time and noise of an image come from its own seed.
Shapes: z0 (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import Positive, Share
from restore_lab.random import noise_like, uniform

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
Density = Literal["auto", "uniform", "logit_normal"]


class Denoising:
    """Mean squared error at random timesteps.

    Args:
        t_min, t_max: the range of times as shares of the schedule, [0, 1] for all of it.
        target: prediction type that the error is taken in; null for the prior's own.
        density: of the times: "uniform", "logit_normal", or "auto", which is logit-normal for a flow.
        mean, std: of the logit-normal density.
    """

    def __init__(
        self,
        *,
        t_min: Share,
        t_max: Share,
        target: Prediction | None = None,
        density: Density = "auto",
        mean: float = 0.0,
        std: Positive = 1.0,
    ) -> None:
        if not 0.0 <= t_min < t_max <= 1.0:
            raise ValueError(f"objective needs 0 <= t_min < t_max <= 1, not t_min={t_min}, t_max={t_max}")
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
            seeds: one an image.
            schedule: the prior's.
            predict: the model at (z_t, t).
        """
        t_B = self.times(seeds, schedule).to(z0_BCHW.device)
        noise_BCHW = noise_like(z0_BCHW, seeds, "diffusion noise")
        z_BCHW = schedule.add_noise(z0_BCHW, noise_BCHW, t_B)
        kind = self.target or schedule.prediction_type
        target_BCHW = schedule.target(z0_BCHW, noise_BCHW, t_B, prediction_type=kind)
        said_BCHW = schedule.convert(predict(z_BCHW, t_B).float(), z_BCHW, t_B, prediction_type=kind)
        return torch.nn.functional.mse_loss(said_BCHW, target_BCHW.float())

    def times(self, seeds: Sequence[int], schedule: Schedule) -> Tensor:
        """A timestep an image."""
        share_B = uniform(seeds, "timestep")
        logit_normal = schedule.prediction_type == "flow" if self.density == "auto" else self.density == "logit_normal"
        if logit_normal:
            share_B = torch.sigmoid(self.mean + self.std * torch.special.ndtri(share_B))
        return schedule.time(self.t_min + (self.t_max - self.t_min) * share_B)
