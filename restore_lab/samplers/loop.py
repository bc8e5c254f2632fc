"""The sampling loop around a diffusers scheduler. `sampler=ddim|unipc`.

The scheduler is made from the prior's own noise schedule, so that betas, prediction type and zero terminal SNR always
agree with it. Each step converts what the model says to x0, lets the fidelity guidance edit it, and converts it back;
where nothing is edited nothing is converted. Shapes: latents (B, C, h, w), variance preserving.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from restore_lab.samplers.fidelity import Free
from restore_lab.samplers.level import Level, levels

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule
    from restore_lab.samplers.fidelity import RestorationGuided
    from restore_lab.samplers.guidance import ClassifierFree

Predict = Callable[[Tensor, Tensor, Level], Tensor]
T = TypeVar("T")


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


def unipc(schedule: Schedule, *, timestep_spacing: str) -> Any:
    """diffusers' UniPCMultistepScheduler on the prior's schedule: order 2, "bh2" (Zhao et al. 2023; Diff-Restorer's).

    It works in log SNR, which has no value at zero terminal SNR; there diffusers' floor of alpha stands in.
    """
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        trained_betas=betas(schedule),
        prediction_type=schedule.prediction_type,
        timestep_spacing=timestep_spacing,
        rescale_betas_zero_snr=float(schedule.alphas_cumprod[-1]) == 0.0,  # changes no other beta, sets the floor
    )


def betas(schedule: Schedule) -> list[float]:
    """The betas that give this schedule's cumulative alphas."""
    bar = schedule.alphas_cumprod.double()
    return (1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])).tolist()


@dataclass(kw_only=True, eq=False)
class Sampler(ABC):
    """From noise to a clean latent: what all samplers have.

    Args:
        steps: evaluations of the guided model.
        init: where to start.
        guidance: how the branches are weighted; read by the method, which builds them.
        fidelity: edits the predicted clean latent.
        strength: how far the adaptor's edits go, a function of the step's level; read by the method.
        colour: gives the restored image a reference's colours; called by the method.
        progress: show a bar with the time left.
    """

    steps: int
    init: Callable[..., Tensor]
    guidance: ClassifierFree
    fidelity: Free | RestorationGuided
    strength: Callable[[Level], float]
    colour: Callable[[Tensor, Tensor], Tensor]
    progress: bool

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampler.steps={self.steps}: at least one step is needed")

    @abstractmethod
    def __call__(
        self, predict: Predict, lq_latent_BCHW: Tensor, *, centre_BCHW: Tensor, seeds: Sequence[int], schedule: Schedule
    ) -> Tensor:
        """A clean latent for each image.

        Args:
            predict: the guided model at (z_t, t, level), t one integer an image.
            lq_latent_BCHW: the LQ's latent; gives the shape, and the start where `init` wants it.
            centre_BCHW: where the fidelity guidance pulls.
            seeds: one an image, for its starting noise.
            schedule: the prior's.
        """

    def bar(self, steps: Iterable[T]) -> Iterable[T]:
        """The steps, with a bar if one is wanted."""
        from tqdm import tqdm

        return tqdm(steps, desc="sampling", total=self.steps, disable=not self.progress, leave=False)


@dataclass(kw_only=True, eq=False)
class SchedulerSampler(Sampler):
    """Any diffusers scheduler's steps.

    Args:
        scheduler: makes a diffusers scheduler from the prior's schedule.
        start: share of the steps that are taken, the last ones: below 1 with `init` the noised latent it is SDEdit.
    """

    scheduler: Callable[[Schedule], Any]
    start: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.start <= 1:
            raise ValueError(f"sampler.start={self.start} is a share of the steps; give a number above 0, up to 1")

    @torch.no_grad()
    def __call__(
        self, predict: Predict, lq_latent_BCHW: Tensor, *, centre_BCHW: Tensor, seeds: Sequence[int], schedule: Schedule
    ) -> Tensor:
        scheduler = self.scheduler(schedule)
        scheduler.set_timesteps(self.steps, device=lq_latent_BCHW.device)
        timesteps = scheduler.timesteps[-max(1, round(self.start * len(scheduler.timesteps))) :]
        if self.start < 1 and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(len(scheduler.timesteps) - len(timesteps))
        z_BCHW = self.init(lq_latent_BCHW, seeds=seeds, t=int(timesteps[0]), schedule=schedule)
        z_BCHW = z_BCHW * scheduler.init_noise_sigma
        steps = zip(timesteps, levels(schedule, timesteps), strict=True)
        for t, level in self.bar(steps):
            model_in = scheduler.scale_model_input(z_BCHW, t)
            t_B = t.expand(len(z_BCHW))
            model_out = predict(model_in, t_B, level)
            if not isinstance(self.fidelity, Free):
                x0_BCHW = schedule.to_x0(model_out, model_in, t_B.long())
                x0_BCHW = self.fidelity.on_x0(x0_BCHW, centre_BCHW=centre_BCHW, level=level)
                model_out = schedule.from_x0(x0_BCHW, model_in, t_B.long())
            z_BCHW = scheduler.step(model_out, t, z_BCHW).prev_sample
        return z_BCHW
