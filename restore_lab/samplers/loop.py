"""The sampling loop around a diffusers scheduler. `sampler=ddim|ddpm|unipc|dpmpp|euler_flow|lcm`.

The scheduler is made from the prior's own noise schedule (schedulers.py). Each step asks the guided model, lets the
fidelity guidance edit what it says as a clean latent, steps, and lets it edit the result; what edits nothing converts
nothing. A solver with a corrector (UniPC) starts each step again from its own last sample, which would undo an edit of
the result: there the edit is put into the clean latent, so that a first-order step would give the same result.
Shapes: latents (B, C, h, w), as the prior sees them.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
from torch import Tensor

from restore_lab.backbones.schedule import FlowMatching
from restore_lab.config.kinds import Range
from restore_lab.random import generator
from restore_lab.samplers.fidelity.base import Prediction, Steer
from restore_lab.samplers.level import Level, levels
from restore_lab.system.xla import sync

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule
    from restore_lab.samplers.fidelity.base import Free
    from restore_lab.samplers.guidance import ClassifierFree
    from restore_lab.samplers.tiling import Gaussian

Predict = Callable[[Tensor, Tensor, Level, Steer], Prediction]
T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Sampler(ABC):
    """From noise to a clean latent: what all samplers have.

    Args:
        steps: evaluations of the guided model.
        init: where to start.
        guidance: how the branches are weighted; read by the method, which builds them.
        fidelity: keeps the sample near the LQ.
        strength: how far the adaptor's edits go, a function of the step's level; read by the method.
        colour: gives the restored image a reference's colours; called by the method.
        progress: show a bar with the time left.
        tiling: cuts large latents; read by the method, which asks the model; null for none.
    """

    steps: Annotated[int, Range(1, 10_000, unit="sampling steps")]
    init: Callable[..., Tensor]
    guidance: ClassifierFree
    fidelity: Free
    strength: Callable[[Level], float]
    colour: Callable[[Tensor, Tensor], Tensor]
    progress: bool
    tiling: Gaussian | None = None

    @abstractmethod
    def __call__(
        self, predict: Predict, lq_latent_BCHW: Tensor, *, centre_BCHW: Tensor, seeds: Sequence[int], schedule: Schedule
    ) -> Tensor:
        """A clean latent for each image.

        Args:
            predict: the guided model at (z_t, t, level, steer), t one number an image.
            lq_latent_BCHW: the LQ's latent; gives the shape, and the start where `init` wants it.
            centre_BCHW: where the fidelity guidance pulls.
            seeds: one an image, for its noise.
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
    start: Annotated[float, Range(0, 1, above=True, unit="a share of the steps")] = 1.0

    @torch.no_grad()
    def __call__(
        self, predict: Predict, lq_latent_BCHW: Tensor, *, centre_BCHW: Tensor, seeds: Sequence[int], schedule: Schedule
    ) -> Tensor:
        scheduler = self.scheduler(schedule)
        if self.steps > (most := schedule.num_train_timesteps):
            raise ValueError(
                f"sampler.steps={self.steps}: the prior has {most} timesteps; give at most {most}, or sampler=edm"
            )
        scheduler.set_timesteps(self.steps)  # times and coefficients stay on the host, which then never waits for them
        first = len(scheduler.timesteps) - max(1, round(self.start * len(scheduler.timesteps)))
        if first and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        steps, times = scheduler.timesteps[first:], _times(scheduler, schedule)[first:]
        noise = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            noise["generator"] = [generator(seed, "sampling noise") for seed in seeds]
        z_BCHW = self.init(lq_latent_BCHW, seeds=seeds, t=float(times[0]), schedule=schedule)
        z_BCHW, state = z_BCHW * getattr(scheduler, "init_noise_sigma", 1.0), None  # a flow's has none
        for t, time, after, level in self.bar(
            list(zip(steps, times, [*times[1:], None], levels(schedule, times), strict=True))
        ):
            model_in = scheduler.scale_model_input(z_BCHW, t) if hasattr(scheduler, "scale_model_input") else z_BCHW
            t_B = time.expand(len(z_BCHW)).to(z_BCHW.device)
            sync(model_in)  # a program of the model alone serves all steps, whatever the solver does between
            said = predict(model_in, t_B, level, self.fidelity.before_model(level=level, state=state))
            sync(said.out_BCHW)
            out_BCHW, state = self._edited(
                said,
                model_in,
                time,
                after,
                state,
                centre_BCHW=centre_BCHW,
                level=level,
                schedule=schedule,
                through_x0=hasattr(scheduler, "disable_corrector"),
            )
            z_BCHW = scheduler.step(out_BCHW, t, z_BCHW, **noise).prev_sample
            if self.fidelity.edits_step and not hasattr(scheduler, "disable_corrector"):
                z_BCHW = self.fidelity.after_step(z_BCHW, centre_BCHW=centre_BCHW, level=level)
        return z_BCHW

    def _edited(
        self,
        said: Prediction,
        z_BCHW: Tensor,
        t: Tensor,
        after: Tensor | None,
        state: Any,
        *,
        centre_BCHW: Tensor,
        level: Level,
        schedule: Schedule,
        through_x0: bool,
    ) -> tuple[Tensor, Any]:
        """The model's output as the fidelity guidance leaves it, and what it remembers."""
        fidelity = self.fidelity
        through_x0 = through_x0 and fidelity.edits_step
        if not (fidelity.edits_x0 or fidelity.watches or through_x0):
            return said.out_BCHW, state
        x0_BCHW = schedule.to_x0(said.out_BCHW, z_BCHW, t)
        if fidelity.watches:
            state = fidelity.watch(x0_BCHW, said.preview_BCHW, state=state)
        if not (fidelity.edits_x0 or through_x0):
            return said.out_BCHW, state
        x0_BCHW = fidelity.on_x0(x0_BCHW, centre_BCHW=centre_BCHW, level=level)
        if through_x0:
            x0_BCHW = stepped_through_x0(
                x0_BCHW,
                z_BCHW,
                now=(schedule.alpha(t), schedule.sigma(t)),
                after=(1.0, 0.0) if after is None else (schedule.alpha(after), schedule.sigma(after)),
                edit=lambda next_BCHW: fidelity.after_step(next_BCHW, centre_BCHW=centre_BCHW, level=level),
            )
        return schedule.from_x0(x0_BCHW, z_BCHW, t), state


def _times(scheduler: Any, schedule: Schedule) -> Tensor:
    """The times that the steps stand at, as the prior counts them: some schedulers round a flow's."""
    if isinstance(schedule, FlowMatching):
        return scheduler.sigmas[:-1] * schedule.num_train_timesteps
    return scheduler.timesteps


def stepped_through_x0(
    x0_BCHW: Tensor,
    z_BCHW: Tensor,
    *,
    now: tuple[Tensor, Tensor],
    after: tuple[Tensor | float, Tensor | float],
    edit: Callable[[Tensor], Tensor],
) -> Tensor:
    """The clean latent whose first-order step is the edited first-order step of `x0_BCHW`.

    The step is z' = alpha' x0 + sigma' (z - alpha x0) / sigma = k x0 + (sigma' / sigma) z, k = alpha' - sigma' alpha /
    sigma; so x0 moves by (edit(z') - z') / k.

    Args:
        x0_BCHW: the predicted clean latent.
        z_BCHW: the latent it was predicted from.
        now, after: (alpha, sigma) of this step's latent and of the next.
        edit: of the next latent.
    """
    (alpha, sigma), (alpha_after, sigma_after) = now, after
    k = alpha_after - sigma_after * alpha / sigma
    next_BCHW = k * x0_BCHW + sigma_after / sigma * z_BCHW
    return x0_BCHW + (edit(next_BCHW) - next_BCHW) / k
