"""A method around a network in closed form: samplers, guidance and previews without trained weights.

`ClosedForm` is a `RestorationModule` whose prior is a function of (z, t, cond) and whose adaptor adds a function of
what its trunk hears; everything between, from branches to blending, is the package's own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from restore_lab.adaptors.control import Adaptor as BaseAdaptor
from restore_lab.adaptors.control import ControlAdaptor
from restore_lab.backbones.schedule import Schedule
from restore_lab.methods.conditioning import Conditioner, Conditions
from restore_lab.methods.denoiser import Denoiser
from restore_lab.methods.module import RestorationModule
from restore_lab.methods.reference import Reference
from restore_lab.methods.trainable import Trainable
from restore_lab.samplers.fidelity.base import Prediction
from restore_lab.types import Cond, Edit, Hint, Tap, identity_edit

TAP = Tap(name="out", kind="middle", channels=4, stride=1)
SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Prior(nn.Module):
    """`say(z, t, cond)` with one tap, at its output."""

    family = "unet"

    def __init__(self, say: Callable[[Tensor, Tensor, Cond], Tensor], *, schedule: Schedule) -> None:
        super().__init__()
        self.say, self.schedule, self.denoiser = say, schedule, nn.Linear(1, 1)

    def forward(self, z_BCHW: Tensor, t_B: Tensor, cond: Cond, at: Edit = identity_edit, carry: Any = None) -> Tensor:
        return at(TAP, self.say(z_BCHW, t_B, cond), t_B, carry)[0]


class Adaptor(ControlAdaptor):
    """Adds `control(z, t, hint, cond)` at the prior's output; reads of a condition what a trunk does."""

    def __init__(
        self,
        control: Callable[[Tensor, Tensor, Hint, Cond], Tensor],
        *,
        text: str = "semantic",
        reference: bool = False,
        stream: nn.Module | None = None,
        lora: Any = None,
    ) -> None:
        BaseAdaptor.__init__(self)
        self.say, self.text, self.reference = control, text, reference
        self.stream, self.lora = stream, lora
        self.calls: list[int] = []  # how many rows each call of the trunk had

    def control(self, z_BCHW: Tensor, t_B: Tensor, hint: Hint, cond: Cond) -> Tensor:
        self.calls.append(len(z_BCHW))
        return self.say(z_BCHW, t_B, hint, cond)

    def fuse(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return h_BCHW + carry, carry


class ClosedForm(RestorationModule):
    """A method of such a prior and adaptor, with a composed sampler."""

    def __init__(self, *, prior: Prior, adaptor: Adaptor, sampler: Any, reference: Reference | None = None) -> None:
        Trainable.__init__(self)
        self.backbone, self.adaptor, self.sampler = prior, adaptor, sampler
        self.denoiser = Denoiser(prior, adaptor, reference=reference or Reference(kind="lq"))
        self.conditioner = Conditioner(backbone=prior, adaptor=adaptor, prompts=None, lq_encoder=None)

    def denoise(self, z_BCHW: Tensor, t_B: Tensor, conditions: Conditions, *, level: Any, **step: Any) -> Prediction:
        """A step of sampling with the sampler's guidance and strength."""
        chosen = {"guidance": self.sampler.guidance, "strength": self.sampler.strength(level)}
        watched = self.sampler.fidelity.watches
        return self.denoiser(z_BCHW, t_B, conditions, level=level, preview=watched, **chosen, **step)

    def sample(self, lq_latent_BCHW: Tensor, *, centre_BCHW: Tensor, cond: Cond, null: Cond, hint: Hint) -> Tensor:
        """The clean latent after the last step."""
        seeds, conditions = list(range(len(lq_latent_BCHW))), Conditions(cond=cond, null=null, hint=hint)

        def predict(z_BCHW, t_B, level, steer):
            return self.denoise(z_BCHW, t_B, conditions, level=level, steer=steer, seeds=seeds)

        return self.sampler(
            predict, lq_latent_BCHW, centre_BCHW=centre_BCHW, seeds=seeds, schedule=self.backbone.schedule
        )


class Recorded:
    """A fidelity guidance that changes nothing more than `inner` does and keeps the latent after every step."""

    edits_step = True

    def __init__(self, inner: Any) -> None:
        self.inner, self.latents = inner, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def after_step(self, z_BCHW: Tensor, *, centre_BCHW: Tensor, level: Any) -> Tensor:
        if self.inner.edits_step:
            z_BCHW = self.inner.after_step(z_BCHW, centre_BCHW=centre_BCHW, level=level)
        self.latents.append((z_BCHW, level))
        return z_BCHW


def noises(recorded: dict[str, list[Tensor]]) -> Callable[..., Tensor]:
    """A `noise_like` that gives the recorded noises of a purpose ("init", "churn") one after another."""
    left = {name: iter(values) for name, values in recorded.items()}

    def noise_like(like_BCHW: Tensor, seeds: Any, purpose: str) -> Tensor:
        return next(left[purpose.split()[0]]).to(like_BCHW)

    return noise_like


def text(value: float, *, rows: int = 1) -> Cond:
    """A condition whose tokens, one number an image, are `value`."""
    return Cond(tokens_BLD=torch.full((rows, 1, 1), value))


def switch() -> Any:
    """What stands for LoRA: remembers whether it is on."""
    from contextlib import contextmanager

    state = SimpleNamespace(on=False)

    @contextmanager
    def switch(on: bool):
        before, state.on = state.on, on
        try:
            yield
        finally:
            state.on = before

    state.switch = switch
    return state
