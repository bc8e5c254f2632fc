"""The sampling loop around a diffusers scheduler. `sampler=ddim`.

The scheduler is made from the prior's own noise schedule, so that betas, prediction type and zero terminal SNR always
agree with it. Shapes: latents (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule
    from restore_lab.samplers.guidance import ClassifierFree

Predict = Callable[[Tensor, Tensor], Tensor]


def ddim(schedule: Schedule, *, timestep_spacing: str) -> Any:
    """diffusers' DDIMScheduler on the prior's schedule, deterministic (eta 0), without clipping.

    Args:
        schedule: the prior's.
        timestep_spacing: "trailing" starts at the last timestep, which zero terminal SNR needs; "leading" is SD 1.5's.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        trained_betas=betas(schedule),
        prediction_type=schedule.prediction_type,
        timestep_spacing=timestep_spacing,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def betas(schedule: Schedule) -> list[float]:
    """The betas that give this schedule's cumulative alphas."""
    bar = schedule.alphas_cumprod.double()
    return (1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])).tolist()


class Sampler:
    """Steps from noise to a clean latent.

    Args:
        scheduler: makes a diffusers scheduler from the prior's schedule.
        steps: evaluations of the guided model.
        init: where to start.
        guidance: how the branches are weighted; read by the method, which builds them.
        progress: show a bar with the time left.
    """

    def __init__(
        self,
        *,
        scheduler: Callable[[Schedule], Any],
        steps: int,
        init: Callable[..., Tensor],
        guidance: ClassifierFree,
        progress: bool,
    ) -> None:
        if steps < 1:
            raise ValueError(f"sampler.steps={steps}: at least one step is needed")
        self.scheduler, self.steps, self.init, self.guidance, self.progress = scheduler, steps, init, guidance, progress

    @torch.no_grad()
    def __call__(self, predict: Predict, lq_latent_BCHW: Tensor, *, seeds: Sequence[int], schedule: Schedule) -> Tensor:
        """A clean latent for each image.

        Args:
            predict: the guided model at (z_t, t), t one integer an image.
            lq_latent_BCHW: the LQ's latent; gives the shape, and the start where `init` wants it.
            seeds: one an image, for its starting noise.
            schedule: the prior's.
        """
        from tqdm import tqdm

        scheduler = self.scheduler(schedule)
        scheduler.set_timesteps(self.steps, device=lq_latent_BCHW.device)
        z_BCHW = self.init(lq_latent_BCHW, seeds=seeds, scheduler=scheduler, schedule=schedule)
        for t in tqdm(scheduler.timesteps, desc="sampling", disable=not self.progress, leave=False):
            model_in = scheduler.scale_model_input(z_BCHW, t)
            model_out = predict(model_in, t.expand(len(z_BCHW)))
            z_BCHW = scheduler.step(model_out, t, z_BCHW).prev_sample
        return z_BCHW
