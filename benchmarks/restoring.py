"""One restoration by either side, with what its steps took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.alternating import Seconds, clock
from benchmarks.theirs import Diffusers
from restore_lab.methods.module import RestorationModule
from restore_lab.types import Batch


class Stamps:
    """The clock at the first and at the last step of a sampling loop.

    Args:
        steps: of the loop.
        device: it waits for, at those two.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device, self.told, self.first, self.last = steps, device, 0, 0.0, 0.0

    def __call__(self) -> None:
        self.told += 1
        if self.told == 1:
            self.first = clock(self.device)
        if self.told == self.steps:
            self.last = clock(self.device)

    @property
    def step(self) -> float:
        """Seconds a step."""
        return (self.last - self.first) / (self.steps - 1)


class Restoring:
    """One restoration a call, with what its steps took; `latent_BCHW` and `image_BCHW` are what the last one gave."""

    latent_BCHW: Tensor
    image_BCHW: Tensor

    def __init__(self, run: Callable[[Stamps], tuple[Tensor, Tensor]], *, steps: int, device: torch.device) -> None:
        self.run, self.steps, self.device = run, steps, device

    def __call__(self) -> Seconds:
        stamps, start = Stamps(self.steps, self.device), clock(self.device)
        self.latent_BCHW, self.image_BCHW = self.run(stamps)
        return {"sampling step": stamps.step, "restoration": clock(self.device) - start}


def our_restoring(module: RestorationModule, batch: Batch, *, device: torch.device) -> Restoring:
    """`module.restore`; a step is told as the sampler asks for its prediction."""
    denoiser = module.denoiser
    seen: list[Tensor] = []
    module.decoder.register_forward_pre_hook(lambda part, given: seen.append(given[0]))

    def run(stamps: Stamps) -> tuple[Tensor, Tensor]:
        def told(*args: Any, **named: Any) -> Any:
            stamps()
            return denoiser(*args, **named)

        module.denoiser = told  # type: ignore[assignment]
        seen.clear()
        try:
            image_BCHW = module.restore(batch)
        finally:
            module.denoiser = denoiser
        return seen[0], image_BCHW

    return Restoring(run, steps=module.sampler.steps, device=device)


def their_restoring(
    side: Diffusers, batch: Batch, *, scale: float, steps: int, device: torch.device, control: float = 1.0
) -> Restoring:
    """The pipeline's call; a step is told by its own callback. `control` 0 leaves the ControlNet's residuals out."""
    pipe, told = side.pipeline(), side.inputs(batch, scale=scale, steps=steps)
    told["controlnet_conditioning_scale"] = control

    def run(stamps: Stamps) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def after(pipe: Any, step: int, t: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
            stamps()
            seen[:] = [found["latents"]]
            return found

        image_BCHW = pipe(**told, callback_on_step_end=after).images
        return seen[0], image_BCHW

    return Restoring(run, steps=steps, device=device)
