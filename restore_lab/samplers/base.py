"""The base of the samplers, and the denoiser that they call.

A sampler is a loop over noise levels, in the manner of k-diffusion: `x0 = denoise(z, t, level)` predicts the clean
latent, and the loop moves z to the next level. Prompts, guidance, tiles and fidelity guidance are inside `denoise`.
Shapes: latents z = alpha x0 + sigma noise, (B, C, h, w), scaled as the prior's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
from torch import Tensor

from restore_lab.config.kinds import Range
from restore_lab.samplers.fidelity.base import Prediction, Steer
from restore_lab.samplers.level import Level
from restore_lab.system.xla import sync

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule
    from restore_lab.samplers.fidelity.base import FidelityGuidance
    from restore_lab.samplers.guidance import ClassifierFree
    from restore_lab.samplers.tiling import Gaussian

Predict = Callable[[Tensor, Tensor, Level, Steer], Prediction]
Start = Callable[[Tensor], Tensor]
T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Sampler(ABC):
    """A sampler, with the settings of a restoration that the config groups below `sampler` choose.

    A subclass writes `sample`. The pipeline (methods/pipeline.py) reads guidance, strength, colour and tiling, so
    `sample` need not.

    Args:
        steps: number of evaluations of the guided model.
        init: the initial latents.
        guidance: classifier-free guidance.
        fidelity: fidelity guidance towards the LQ image.
        strength: scale of the adaptor's edits, a function of the step's level.
        colour: colour correction of the restored image.
        progress: show a progress bar.
        tiling: tiling of large latents; null for none.
    """

    steps: Annotated[int, Range(1, 10_000, unit="sampling steps")]
    init: Callable[..., Tensor]
    guidance: ClassifierFree
    fidelity: FidelityGuidance
    strength: Callable[[Level], float]
    colour: Callable[[Tensor, Tensor], Tensor]
    progress: bool
    tiling: Gaussian | None = None

    @torch.no_grad()
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
        denoise = SteeredDenoiser(predict, self.fidelity, centre_BCHW=centre_BCHW, schedule=schedule)

        def start(t: Tensor) -> Tensor:
            return self.init(lq_latent_BCHW, seeds=seeds, t=float(t), schedule=schedule)

        return self.sample(denoise, start, seeds=seeds, schedule=schedule)

    @abstractmethod
    def sample(self, denoise: SteeredDenoiser, start: Start, *, seeds: Sequence[int], schedule: Schedule) -> Tensor:
        """The loop: the clean latents, (B, C, h, w).

        Args:
            denoise: predicts the clean latent.
            start: the initial latent at a timestep.
            seeds: noise seeds, one per image.
            schedule: the prior's noise schedule.
        """

    def bar(self, steps: Iterable[T]) -> Iterable[T]:
        """The steps, with a progress bar if `progress`."""
        from tqdm import tqdm

        return tqdm(steps, desc="sampling", total=self.steps, disable=not self.progress, leave=False)


class SteeredDenoiser:
    """The guided model with fidelity guidance, for one batch: it keeps the guidance's state from step to step.

    Args:
        predict, centre_BCHW, schedule: as for `Sampler`.
        fidelity: the fidelity guidance.

    Attributes:
        edits_step: whether `after_step` changes anything.
    """

    def __init__(
        self, predict: Predict, fidelity: FidelityGuidance, *, centre_BCHW: Tensor, schedule: Schedule
    ) -> None:
        self.predict, self.fidelity, self.centre_BCHW, self.schedule = predict, fidelity, centre_BCHW, schedule
        self.edits_step, self.state = fidelity.edits_step, None

    def __call__(self, z_BCHW: Tensor, t: Tensor, level: Level) -> Tensor:
        """The guided prediction of the clean latent from z at the timestep t, (B, C, h, w).

        Args:
            z_BCHW: the noisy latent.
            t: the model's timestep, one for the batch, on the CPU.
            level: the step's noise level.
        """
        prediction = self._evaluate(z_BCHW, t, level)
        return self._guide(self.schedule.to_x0(prediction.out_BCHW, z_BCHW, t), prediction, level)

    def output(
        self, z_BCHW: Tensor, t: Tensor, level: Level, *, fold: tuple[Tensor | float, Tensor | float] | None = None
    ) -> Tensor:
        """The model's output (epsilon, v, flow) instead of the clean latent, for a solver that takes that.

        It is converted to the clean latent and back only if the guidance reads or edits that.

        Args:
            z_BCHW, t, level: as above.
            fold: alpha and sigma after the step, to edit the clean latent such that a first-order step gives the result
                of `after_step`. For a solver that recomputes a step from its own last sample (UniPC's corrector) and
                would lose an edit of the step's result.
        """
        prediction = self._evaluate(z_BCHW, t, level)
        if not (self.fidelity.edits_x0 or self.fidelity.watches or fold):
            return prediction.out_BCHW
        x0_BCHW = self._guide(self.schedule.to_x0(prediction.out_BCHW, z_BCHW, t), prediction, level)
        if not (self.fidelity.edits_x0 or fold):
            return prediction.out_BCHW
        if fold:
            now = (self.schedule.alpha(t), self.schedule.sigma(t))
            x0_BCHW = fold_edit(x0_BCHW, z_BCHW, now=now, after=fold, edit=lambda next_: self.after_step(next_, level))
        return self.schedule.from_x0(x0_BCHW, z_BCHW, t)

    def after_step(self, z_BCHW: Tensor, level: Level) -> Tensor:
        """The latent after the step, edited by the guidance."""
        return self.fidelity.after_step(z_BCHW, centre_BCHW=self.centre_BCHW, level=level)

    def _evaluate(self, z_BCHW: Tensor, t: Tensor, level: Level) -> Prediction:
        steer = self.fidelity.before_model(level=level, state=self.state)
        sync(z_BCHW)  # on XLA, one compiled program of the model serves all steps
        prediction = self.predict(z_BCHW, t.expand(len(z_BCHW)).to(z_BCHW.device), level, steer)
        sync(prediction.out_BCHW)
        return prediction

    def _guide(self, x0_BCHW: Tensor, prediction: Prediction, level: Level) -> Tensor:
        if self.fidelity.watches:
            self.state: Any = self.fidelity.watch(x0_BCHW, prediction.preview_BCHW, state=self.state)
        return self.fidelity.on_x0(x0_BCHW, centre_BCHW=self.centre_BCHW, level=level)


def fold_edit(
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
