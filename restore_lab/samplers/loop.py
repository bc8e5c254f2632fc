"""The sampling loop around a diffusers scheduler. `sampler=ddim|ddpm|unipc|dpmpp|euler_flow|lcm`.

The scheduler is built from the prior's noise schedule (schedulers.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from torch import Tensor

from restore_lab.backbones.schedule import FlowMatching
from restore_lab.config.kinds import Range
from restore_lab.random import generator
from restore_lab.samplers.base import Sampler, Start, SteeredDenoiser
from restore_lab.samplers.level import levels

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


@dataclass(kw_only=True, eq=False)
class SchedulerSampler(Sampler):
    """Sampling with a diffusers scheduler.

    Args:
        scheduler: builds a diffusers scheduler from the prior's schedule.
        start: fraction of the steps to take, counted from the end (the `strength` of img2img); below 1 and with
            `sampler/init=lq_noised` this is SDEdit.
    """

    scheduler: Callable[[Schedule], Any]
    start: Annotated[float, Range(0, 1, above=True, unit="a share of the steps")] = 1.0

    def sample(self, denoise: SteeredDenoiser, start: Start, *, seeds: Sequence[int], schedule: Schedule) -> Tensor:
        scheduler, first = self._set_timesteps(schedule)
        scale = getattr(scheduler, "scale_model_input", lambda z_BCHW, t: z_BCHW)
        corrects = hasattr(scheduler, "disable_corrector")  # UniPC
        noise = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            noise["generator"] = [generator(seed, "sampling noise") for seed in seeds]
        times = _times(scheduler, schedule)[first:]
        z_BCHW = start(times[0]) * getattr(scheduler, "init_noise_sigma", 1.0)  # flow schedulers have none
        steps = zip(scheduler.timesteps[first:], times, levels(schedule, times), _after(times, schedule), strict=True)
        for t, time, level, after in self.bar(list(steps)):
            fold = after if corrects and denoise.edits_step else None
            out_BCHW = denoise.output(scale(z_BCHW, t), time, level, fold=fold)
            z_BCHW = scheduler.step(out_BCHW, t, z_BCHW, **noise).prev_sample
            if denoise.edits_step and not corrects:
                z_BCHW = denoise.after_step(z_BCHW, level)
        return z_BCHW

    def _set_timesteps(self, schedule: Schedule) -> tuple[Any, int]:
        """The scheduler with its timesteps, and the index of the first to take."""
        scheduler, most = self.scheduler(schedule), schedule.num_train_timesteps
        if self.steps > most:
            raise ValueError(
                f"sampler.steps={self.steps}: the prior has {most} timesteps; give at most {most}, or sampler=edm"
            )
        scheduler.set_timesteps(self.steps)  # timesteps and coefficients stay on the CPU: no device synchronisation
        first = len(scheduler.timesteps) - max(1, round(self.start * len(scheduler.timesteps)))
        if first and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        return scheduler, first


def _times(scheduler: Any, schedule: Schedule) -> Tensor:
    """The timesteps in the prior's schedule, unrounded: some flow schedulers round theirs."""
    if isinstance(schedule, FlowMatching):
        return scheduler.sigmas[:-1] * schedule.num_train_timesteps
    return scheduler.timesteps


def _after(times: Tensor, schedule: Schedule) -> list[tuple[Tensor | float, Tensor | float]]:
    """alpha and sigma after each step."""
    return [*((schedule.alpha(t), schedule.sigma(t)) for t in times[1:]), (1.0, 0.0)]
