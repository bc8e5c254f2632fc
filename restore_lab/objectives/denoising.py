"""The denoising loss (SPIRE Eq. 1) in whatever the prior predicts: noise, velocity or x0. `objective=denoising`.

t is uniform over the prior's timesteps, z_t = alpha z0 + sigma noise; the loss is the mean squared error against the
schedule's target. Timestep and noise of an image come from its own seed. Shapes: z0 (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restore_lab.random import noise_like, uniform

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


class Denoising:
    """Mean squared error at random timesteps.

    Args:
        t_min, t_max: the range of timesteps as fractions of the schedule, [0, 1] for all of it.
    """

    def __init__(self, *, t_min: float, t_max: float) -> None:
        if not 0.0 <= t_min < t_max <= 1.0:
            raise ValueError(f"objective needs 0 <= t_min < t_max <= 1, not t_min={t_min}, t_max={t_max}")
        self.t_min, self.t_max = t_min, t_max

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
        fraction_B = self.t_min + (self.t_max - self.t_min) * uniform(seeds, "timestep")
        # A t_min above 0 can round the fraction up to 1, where there is no timestep.
        t_B = (fraction_B * schedule.num_train_timesteps).long().clamp(max=schedule.num_train_timesteps - 1)
        t_B = t_B.to(z0_BCHW.device)
        noise_BCHW = noise_like(z0_BCHW, seeds, "diffusion noise")
        z_BCHW = schedule.add_noise(z0_BCHW, noise_BCHW, t_B)
        target_BCHW = schedule.target(z0_BCHW, noise_BCHW, t_B)
        return torch.nn.functional.mse_loss(predict(z_BCHW, t_B).float(), target_BCHW.float())
