"""Consistency distillation (Luo et al. 2023, "LCM"; InstantIR, section 3.2, Eq. 5). `method=instantir stage=previewer`.

The consistency function is f(z, t) = c_skip(t) z + c_out(t) x0(z, t), with the boundary condition f(z, 0) = z: c_skip =
sd^2 / (s^2 + sd^2), c_out = s / sqrt(s^2 + sd^2), s = 10 t, sd = 0.5, for timesteps t of the prior's schedule. One step
of an N-step solver with the teacher goes from z_s to z_t; the loss is the distance of f(z_s, s) to f(z_t, t), with stop
gradient on the second: squared (Eq. 5) or pseudo-Huber (the release, sqrt(d^2 + c^2) - c with c = 0.001).
Shapes: latents (B, C, h, w), timesteps (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import NonNegative, Range
from restore_lab.config.validate import check_arguments
from restore_lab.random import noise_like, uniform

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule

SIGMA_DATA, TIME_SCALING = 0.5, 10.0
HUBER = 0.001


def boundary(t_B: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, float32, in the shape of t."""
    scaled_B = TIME_SCALING * t_B.float()
    total_B = scaled_B.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / total_B, scaled_B / total_B.sqrt()


def consistency_function(model_out_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor, *, schedule: Schedule) -> Tensor:
    """f(z, t), from the model's output at (z, t)."""
    skip, out = (c.reshape(-1, 1, 1, 1).to(z_BCHW.device) for c in boundary(t_B))
    return skip * z_BCHW + out * schedule.to_x0(model_out_BCHW, z_BCHW, t_B)  # Luo et al., section 4.1


@check_arguments
class Distillation:
    """The consistency distillation loss (Eq. 5) at random solver steps.

    Args:
        solver_steps: N.
        w_min, w_max: range of the teacher's guidance scale, sampled per image.
        distance: "squared" or "huber".
    """

    def __init__(
        self,
        *,
        solver_steps: Annotated[int, Range(1, 1000)],
        w_min: NonNegative,
        w_max: NonNegative,
        distance: Literal["squared", "huber"],
    ) -> None:
        self.solver_steps, self.w_min, self.w_max, self.distance = solver_steps, float(w_min), float(w_max), distance

    def __call__(
        self,
        z0_BCHW: Tensor,
        *,
        seeds: Sequence[int],
        schedule: Schedule,
        student: Callable[[Tensor, Tensor], Tensor],
        teacher: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            z0_BCHW: clean latents.
            seeds: one per image, for timestep, noise and guidance scale.
            schedule: the prior's noise schedule.
            student: the consistency function of (z, t), a clean latent.
            teacher: the guided prior's output at (z, t, w), with guidance scales w of shape (B,).
        """
        s_B, t_B = self.times(seeds, schedule)
        s_B, t_B = s_B.to(z0_BCHW.device), t_B.to(z0_BCHW.device)
        z_s = schedule.add_noise(z0_BCHW, noise_like(z0_BCHW, seeds, "diffusion noise"), s_B)
        output = student(z_s, s_B)
        with torch.no_grad():
            w_B = self.w_min + (self.w_max - self.w_min) * uniform(seeds, "guidance")  # Luo et al., section 4.2
            target = student(solver_step(teacher(z_s, s_B, w_B.to(z_s.device)), z_s, s_B, t_B, schedule), t_B)
        difference = output.float() - target.float()
        if self.distance == "squared":
            return difference.square().mean()  # InstantIR, Eq. 5
        return ((difference.square() + HUBER**2).sqrt() - HUBER).mean()

    def times(self, seeds: Sequence[int], schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Timesteps s, uniform over the solver's steps, and t, one solver step lower: s - T / N, at least 0."""
        step = schedule.num_train_timesteps // self.solver_steps
        index_B = (uniform(seeds, "solver step") * self.solver_steps).long().clamp(max=self.solver_steps - 1)
        s_B = (index_B + 1) * step - 1
        return s_B, (s_B - step).clamp(min=0)  # Luo et al., section 4.3: skipping steps


def solver_step(out_BCHW: Tensor, z_BCHW: Tensor, s_B: Tensor, t_B: Tensor, schedule: Schedule) -> Tensor:
    """A DDIM step from s to t: alpha_t x0 + sigma_t noise, with the predicted x0 and noise."""
    x0_BCHW = schedule.to_x0(out_BCHW, z_BCHW, s_B)
    return schedule.add_noise(x0_BCHW, schedule.to_noise(out_BCHW, z_BCHW, s_B), t_B)
