"""The sampling loop around a diffusers scheduler. `sampler=ddim|ddpm|unipc|dpmpp|euler_flow|lcm`.

The scheduler is built from the prior's noise schedule (schedulers.py). Each step evaluates the guided model, applies
the fidelity guidance to the predicted clean latent, calls `scheduler.step` and applies the fidelity guidance to the
result. Conversions to and from clean latents are skipped if the guidance does not edit them. A solver with a corrector
(UniPC) recomputes each step from its own last sample and would discard an edit of the result: for these, the edit is
made on the clean latent instead, such that a first-order step gives the same result.
Shapes: latents (B, C, h, w), scaled as the prior's input.
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
    from restore_lab.samplers.fidelity.base import FidelityGuidance
    from restore_lab.samplers.guidance import ClassifierFree
    from restore_lab.samplers.tiling import Gaussian

Predict = Callable[[Tensor, Tensor, Level, Steer], Prediction]
T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Sampler(ABC):
    """The base class of the samplers: from noise to a clean latent.

    Args:
        steps: number of evaluations of the guided model.
        init: the initial latents.
        guidance: classifier-free guidance; read by the method, which evaluates the branches.
        fidelity: fidelity guidance towards the LQ image.
        strength: scale of the adaptor's edits, a function of the step's level; read by the method.
        colour: colour correction of the restored image; called by the method.
        progress: show a progress bar.
        tiling: tiling of large latents; read by the method, which calls the model; null for none.
    """

    steps: Annotated[int, Range(1, 10_000, unit="sampling steps")]
    init: Callable[..., Tensor]
    guidance: ClassifierFree
    fidelity: FidelityGuidance
    strength: Callable[[Level], float]
    colour: Callable[[Tensor, Tensor], Tensor]
    progress: bool
    tiling: Gaussian | None = None

    @abstractmethod
    def __call__(
        self, predict: Predict, lq_latent_BCHW: Tensor, *, centre_BCHW: Tensor, seeds: Sequence[int], schedule: Schedule
    ) -> Tensor:
        """The clean latents, (B, C, h, w).

        Args:
            predict: the guided model, a function of (z_t, t, level, steer), with t of shape (B,).
            lq_latent_BCHW: the LQ latent; gives the shape, and the initial latent if `init` uses it.
            centre_BCHW: the latent that the fidelity guidance pulls towards.
            seeds: noise seeds, one per image.
            schedule: the prior's noise schedule.
        """

    def bar(self, steps: Iterable[T]) -> Iterable[T]:
        """The steps, with a progress bar if `progress`."""
        from tqdm import tqdm

        return tqdm(steps, desc="sampling", total=self.steps, disable=not self.progress, leave=False)


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

    @torch.no_grad()
    def __call__(
        self, predict: Predict, lq_latent_BCHW: Tensor, *, centre_BCHW: Tensor, seeds: Sequence[int], schedule: Schedule
    ) -> Tensor:
        scheduler = self.scheduler(schedule)
        if self.steps > (most := schedule.num_train_timesteps):
            raise ValueError(
                f"sampler.steps={self.steps}: the prior has {most} timesteps; give at most {most}, or sampler=edm"
            )
        scheduler.set_timesteps(self.steps)  # timesteps and coefficients stay on the CPU: no device synchronisation
        first = len(scheduler.timesteps) - max(1, round(self.start * len(scheduler.timesteps)))
        if first and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        steps, times = scheduler.timesteps[first:], _times(scheduler, schedule)[first:]
        noise = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            noise["generator"] = [generator(seed, "sampling noise") for seed in seeds]
        z_BCHW = self.init(lq_latent_BCHW, seeds=seeds, t=float(times[0]), schedule=schedule)
        z_BCHW, state = z_BCHW * getattr(scheduler, "init_noise_sigma", 1.0), None  # flow schedulers have none
        for t, time, after, level in self.bar(
            list(zip(steps, times, [*times[1:], None], levels(schedule, times), strict=True))
        ):
            model_in = scheduler.scale_model_input(z_BCHW, t) if hasattr(scheduler, "scale_model_input") else z_BCHW
            t_B = time.expand(len(z_BCHW)).to(z_BCHW.device)
            sync(model_in)  # on XLA, one compiled program of the model serves all steps
            prediction = predict(model_in, t_B, level, self.fidelity.before_model(level=level, state=state))
            sync(prediction.out_BCHW)
            out_BCHW, state = self._edit(
                prediction,
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

    def _edit(
        self,
        prediction: Prediction,
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
        """The model output with the fidelity guidance's edits, and the guidance's next state."""
        fidelity = self.fidelity
        through_x0 = through_x0 and fidelity.edits_step
        if not (fidelity.edits_x0 or fidelity.watches or through_x0):
            return prediction.out_BCHW, state
        x0_BCHW = schedule.to_x0(prediction.out_BCHW, z_BCHW, t)
        if fidelity.watches:
            state = fidelity.watch(x0_BCHW, prediction.preview_BCHW, state=state)
        if not (fidelity.edits_x0 or through_x0):
            return prediction.out_BCHW, state
        x0_BCHW = fidelity.on_x0(x0_BCHW, centre_BCHW=centre_BCHW, level=level)
        if through_x0:
            x0_BCHW = edit_through_x0(
                x0_BCHW,
                z_BCHW,
                now=(schedule.alpha(t), schedule.sigma(t)),
                after=(1.0, 0.0) if after is None else (schedule.alpha(after), schedule.sigma(after)),
                edit=lambda next_BCHW: fidelity.after_step(next_BCHW, centre_BCHW=centre_BCHW, level=level),
            )
        return schedule.from_x0(x0_BCHW, z_BCHW, t), state


def _times(scheduler: Any, schedule: Schedule) -> Tensor:
    """The timesteps in the prior's schedule, unrounded: some flow schedulers round theirs."""
    if isinstance(schedule, FlowMatching):
        return scheduler.sigmas[:-1] * schedule.num_train_timesteps
    return scheduler.timesteps


def edit_through_x0(
    x0_BCHW: Tensor,
    z_BCHW: Tensor,
    *,
    now: tuple[Tensor, Tensor],
    after: tuple[Tensor | float, Tensor | float],
    edit: Callable[[Tensor], Tensor],
) -> Tensor:
    """The clean latent for which a first-order step gives the edited next latent.

    The step is z' = alpha' x0 + sigma' (z - alpha x0) / sigma = k x0 + (sigma' / sigma) z, with k = alpha' - sigma'
    alpha / sigma. An edit of z' by d is therefore an edit of x0 by d / k.

    Args:
        x0_BCHW: the predicted clean latent.
        z_BCHW: the latent before the step.
        now, after: (alpha, sigma) of the latent before and after the step.
        edit: maps the latent after the step to the edited one.
    """
    (alpha, sigma), (alpha_after, sigma_after) = now, after
    k = alpha_after - sigma_after * alpha / sigma
    next_BCHW = k * x0_BCHW + sigma_after / sigma * z_BCHW
    return x0_BCHW + (edit(next_BCHW) - next_BCHW) / k
