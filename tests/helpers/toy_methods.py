"""A whole method at toy size in memory: SPIRE around a random prior, with its parts as arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from restore_lab.adaptors.control import ControlAdaptor
from restore_lab.adaptors.fusion.modulation import Modulation
from restore_lab.adaptors.trunk.build import trunk
from restore_lab.backbones.schedule import Schedule
from restore_lab.methods.module import RestorationModule
from restore_lab.objectives.denoising import Denoising
from restore_lab.prompts.dropout import Dropout
from restore_lab.prompts.instruction import FromRecipe
from restore_lab.prompts.semantic import Caption
from restore_lab.prompts.slots import PromptSources
from restore_lab.samplers.colour import keep
from restore_lab.samplers.fidelity.base import FidelityGuidance, Prediction
from restore_lab.samplers.guidance import ClassifierFree
from restore_lab.samplers.init import Noise
from restore_lab.samplers.loop import SchedulerSampler
from restore_lab.samplers.schedulers import ddim
from restore_lab.samplers.strength import Linear
from restore_lab.types import Batch, Cond, Hint, Recipe, Step, Tap
from tests.helpers.toy_priors import TEXT_LENGTH, toy_backbone


def toy_sampler(
    *,
    steps: int = 2,
    scale: float = 1.0,
    init: Any = None,
    spacing: str = "trailing",
    scheduler: Any = None,
    fidelity: Any = None,
) -> SchedulerSampler:
    """DDIM of few steps without a bar."""
    return SchedulerSampler(
        scheduler=scheduler or partial(ddim, timestep_spacing=spacing),
        steps=steps,
        **sampler_parts(scale=scale, init=init, fidelity=fidelity),
    )


def said(model: Any) -> Any:
    """What a sampler asks, of a model at (z, t, level) that takes no steering and has no previews."""
    return lambda z_BCHW, t_B, level, steer: Prediction(out_BCHW=model(z_BCHW, t_B, level))


def sampler_parts(*, scale: float = 1.0, init: Any = None, fidelity: Any = None) -> dict[str, Any]:
    """What every sampler takes."""
    return {
        "init": init or Noise(),
        "guidance": ClassifierFree(scale=scale),
        "fidelity": fidelity or FidelityGuidance(),
        "strength": Linear(start=1.0, end=1.0),
        "colour": keep,
        "progress": False,
    }


def toy_adaptor(*, fusion: Any = None, text: str = "instruction", middle: str = "frozen") -> partial[ControlAdaptor]:
    """What builds a small adaptor from a backbone."""
    return partial(
        ControlAdaptor,
        trunk=partial(trunk, middle=middle),
        fusion=fusion or partial(Modulation, decoder=False),
        text=text,
        hint_widths=[4, 4, 8],
        hint_channels=4,
    )


def toy_spire(
    kind: str = "sd",
    *,
    adaptor: Any = None,
    scale: float = 1.0,
    lr: float = 1e-3,
    seed: int = 0,
    lq_encoder: Any = None,
    decoder: Any = None,
    eyes: Any = None,
    reference: Any = None,
) -> RestorationModule:
    """SPIRE on a random prior; the adaptor is the same for the same seed."""
    torch.manual_seed(seed)
    return RestorationModule(
        backbone=toy_backbone(kind),
        adaptor=adaptor or toy_adaptor(),
        prompts=PromptSources(
            semantic=Caption(),
            instruction=FromRecipe(values=1.0),
            dropout=Dropout(semantic=0.0, instruction=0.0),
            positive="",
            negative="",
            visual=eyes,
        ),
        objective=Denoising(t_min=0.0, t_max=1.0),
        sampler=toy_sampler(scale=scale),
        lq_encoder=lq_encoder,
        decoder=decoder,
        reference=reference,
    )


def shake(module: nn.Module, *, seed: int = 1, size: float = 0.2) -> None:
    """Add noise to every trainable parameter, so that zero convolutions let something through."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn(p.shape, generator=draw))


def recipe_of(*kinds: str) -> Recipe:
    """A recipe that says a type and a number for each kind."""
    return Recipe(
        pipeline="toy",
        seed=0,
        steps=tuple(Step(kind=kind, says=f"De{kind} with sigma 2.4", says_type=f"De{kind}") for kind in kinds),
    )


def toy_batch(count: int = 2, *, size: tuple[int, int] = (16, 16), seed: int = 0) -> Batch:
    """Random pairs with captions and recipes."""
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        hq_BCHW=torch.rand(count, 3, *size, generator=draw),
        lq_BCHW=torch.rand(count, 3, *size, generator=draw),
        caption=tuple(f"picture {i}" for i in range(count)),
        key=tuple(f"key_{i}" for i in range(count)),
        seed=tuple(range(100, 100 + count)),
        recipe=(recipe_of("noise"),) * count,
    )


def schedule(prediction: str, *, zero_snr: bool) -> Schedule:
    """SD's schedule of noise."""
    return Schedule.from_config(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        | {"prediction_type": prediction, "rescale_betas_zero_snr": zero_snr}
    )


def latents(count: int = 3, *, seed: int = 0) -> Tensor:
    """Noise of the shape of latents of 8 x 8."""
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def toy_hint(backbone: Any, *, seed: int = 3) -> Hint:
    """Every kind of hint at once, for two images of 32 x 32."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, TEXT_LENGTH, backbone.token_width, generator=draw)
    lq_BCHW = torch.rand(2, 3, 32, 32, generator=draw)
    side = 32 // backbone.codec.compression
    latent_BCHW = torch.randn(2, backbone.codec.channels, side, side, generator=draw)
    code_BD = torch.randn(2, 256, generator=draw)
    return Hint(
        lq_BCHW=lq_BCHW,
        lq_latent_BCHW=latent_BCHW,
        instruction_BLD=tokens,
        degradation_BD=code_BD,
        reference_BCHW=latent_BCHW.flip(0),
    )


def with_control(backbone: Any, adaptor: Any, z: Tensor, t: Tensor, cond: Cond, hint: Hint) -> Tensor:
    """The prediction of a backbone that an adaptor controls."""
    return backbone(z, t, cond, at=adaptor.fuse, carry=adaptor.control(z, t, hint, cond))


def taps_by_name(backbone: Any) -> dict[str, Tap]:
    return {tap.name: tap for tap in backbone.taps}
