"""Ours against diffusers' at one size: do both compute the same, and what does each take.

Latents, loss and gradient must agree before anything is timed. Memory is what a side's weights take (in training with
AdamW's two moments), and the most that one restoration or one training step makes besides.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.alternating import alternate, speedup
from benchmarks.counting import flops, held, peak
from benchmarks.sides import (
    CACHE_BYTES,
    Diffusers,
    Restoring,
    batches,
    config,
    method,
    our_restoring,
    settle,
    their_restoring,
)
from benchmarks.training import OurTraining, TheirTraining, our_loss
from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.methods.base import RestorationModule
from restore_lab.random import noise_like
from restore_lab.types import Batch

GUIDANCE = 5.0
# Of latents, loss and gradient, relative; beyond it the two sides do not compute the same thing.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
EFFECT = 10.0  # so many times as far as the sides are apart must the control move the latents


class Disagreement(Exception):
    """The two sides do not compute the same thing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, how often.

    Attributes:
        device: "cpu" or "cuda".
        toy: the shipped priors, in float32; else random weights of full size, in bfloat16.
        pixels: side of the images.
        restored, trained: images of a restoration and of a training step.
        steps: of sampling.
        turns, warmup: of the alternation.
        compiled: both sides through torch.compile.
        words: overrides for our side.
    """

    device: torch.device
    toy: bool
    pixels: int
    restored: int
    trained: int
    steps: int
    turns: int
    warmup: int
    compiled: bool = False
    words: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Of the priors."""
        return torch.float32 if self.toy else torch.bfloat16

    def config(self, size: str, *more: str) -> Any:
        """The config of our side; `more` is said last."""
        types = () if self.toy else ("backbone.dtype=bfloat16", "backbone.codec_dtype=bfloat16", "precision=bf16-mixed")
        said = (*types, f"sampler.steps={self.steps}", "prompt/dropout=none")
        return config(size, *said, *(("compile=true",) if self.compiled else ()), *self.words, *more, toy=self.toy)

    def data(self, *, batch: int, count: int = 2) -> list[Batch]:
        """Batches of that many images."""
        return batches(count=count, batch=batch, pixels=self.pixels, device=self.device)


def compared(size: str, plan: Plan) -> dict[str, Any]:
    """How well the sides agree, and rows by name: seconds, ratio, bytes, FLOPs.

    Raises:
        Disagreement: if they do not.
    """
    cfg = plan.config(size)
    module = method(cfg, device=plan.device)
    sides = Diffusers(module, dtype=plan.dtype), Diffusers(module)  # copies, before anything is settled or trained
    counted = {"guided ": step_flops(module, plan, scale=GUIDANCE), "": step_flops(module, plan, scale=1.0)}
    settle(module, cfg)
    found: dict[str, Any] = {"agreement": {}, "rows": {}}
    for prefix, scale in (("", 1.0), ("guided ", GUIDANCE)):
        restoring(module, sides[0], plan, found, prefix=prefix, scale=scale, flops_=counted[prefix])
    training(module, sides[1], cfg, plan, found)
    return found


def restoring(
    module: RestorationModule,
    side: Diffusers,
    plan: Plan,
    found: dict[str, Any],
    *,
    prefix: str,
    scale: float,
    flops_: int,
) -> None:
    """Sampling steps and whole restorations."""
    batch = plan.data(batch=plan.restored, count=1)[0]
    how: dict[str, Any] = {"scale": scale, "steps": plan.steps, "device": plan.device}
    module.sampler.guidance.scale = scale
    ours, theirs = our_restoring(module, batch, device=plan.device), their_restoring(side, batch, **how)
    free = their_restoring(side, batch, control=0.0, **how)
    found["agreement"][f"{prefix}latents"] = same_latents(ours, theirs, free, plan)
    parts = {"ours": our_parts(module), "diffusers": (side.denoiser, side.vae, side.controlnet)}
    makes = {name: run_peak(run, plan, compiled=plan.compiled) for name, run in (("ours", ours), ("diffusers", theirs))}
    if plan.compiled:
        side.compile()
        theirs = their_restoring(side, batch, **how)
    taken = alternate({"ours": ours, "diffusers": theirs}, turns=plan.turns, warmup=plan.warmup)
    found["rows"][f"{prefix}sampling step"] = row(taken["sampling step"], flops_=flops_)
    bytes_ = {name: None if makes[name] is None else held(parts[name]) + makes[name] for name in makes}
    found["rows"][f"{prefix}restoration"] = row(taken["restoration"], bytes_=bytes_)


def training(module: RestorationModule, side: Diffusers, cfg: Any, plan: Plan, found: dict[str, Any]) -> None:
    """Training steps, with latents encoded in each and with latents made before."""
    data, clip = plan.data(batch=plan.trained), cfg.stages.adaptor.trainer.gradient_clip_val
    how: dict[str, Any] = {"optimisation": module.optimisation, "clip": clip, "precision": cfg.precision}
    theirs = TheirTraining(side, data, **how)
    module.train()
    found["agreement"] |= same_gradient(module, theirs, data[0], plan, precision=cfg.precision)
    runs = {
        "ours": lambda: our_loss(module, data[0], precision=cfg.precision).backward(),
        "diffusers": lambda: theirs.loss(data[0]).backward(),
    }
    parts = {"ours": our_parts(module), "diffusers": (side.denoiser, side.vae, side.controlnet)}
    moments = 2 * sum(p.numel() * p.element_size() for p in module.trainable().values())
    bytes_ = {}
    for name, run in runs.items():
        made = run_peak(run, plan, compiled=plan.compiled)
        bytes_[name] = None if made is None else held(parts[name]) + moments + made
        module.zero_grad(set_to_none=True)
        side.controlnet.zero_grad(set_to_none=True)
    counted = None if plan.compiled else flops(runs["ours"])
    module.zero_grad(set_to_none=True)
    if plan.compiled:
        side.compile()
    ours = OurTraining(module, cfg, data, precision=cfg.precision)
    with tempfile.TemporaryDirectory() as folder:
        for cached in (False, True):
            module.backbone.codec.disk = DiskCache(folder, base="", max_bytes=CACHE_BYTES) if cached else None
            theirs.remember(data if cached else ())
            taken = alternate({"ours": ours, "diffusers": theirs}, turns=plan.turns, warmup=plan.warmup)
            name = "training step, latents cached" if cached else "training step"
            found["rows"][name] = row(
                taken["training step"], bytes_=None if cached else bytes_, flops_=None if cached else counted
            )
    ours.close()


def row(
    seconds: Mapping[str, Sequence[float]], *, bytes_: Mapping[str, int | None] | None = None, flops_: int | None = None
) -> dict[str, Any]:
    """One line of the table: median seconds of both sides, how many times as fast ours is, bytes and FLOPs."""
    ratio = speedup(seconds["ours"], seconds["diffusers"])
    return {
        "seconds": {side: statistics.median(taken) for side, taken in seconds.items()},
        "ratio": asdict(ratio),
        "verdict": ratio.verdict,
        "bytes": dict(bytes_) if bytes_ else None,
        "flops": flops_,
        "turns": {side: list(taken) for side, taken in seconds.items()},
    }


def our_parts(module: RestorationModule) -> tuple[Any, ...]:
    """What of ours is at work in a step, text encoders left out as on the other side."""
    return module.backbone.denoiser, module.backbone.codec, module.adaptor


def run_peak(run: Any, plan: Plan, *, compiled: bool) -> int | None:
    """Bytes; None where nothing counts them: compiled code on a CPU."""
    return None if compiled and plan.device.type == "cpu" else peak(run, plan.device)


def step_flops(module: RestorationModule, plan: Plan, *, scale: float) -> int:
    """FLOPs of a sampling step: what a restoration of three steps does more than one of two."""
    batch, counted = plan.data(batch=plan.restored, count=1)[0], []
    module.sampler.guidance.scale = scale
    module.sampler.steps = 1
    module.restore(batch)  # its texts are encoded once
    for steps in (2, 3):
        module.sampler.steps = steps
        counted.append(flops(lambda: module.restore(batch)))
    module.sampler.steps = plan.steps
    return counted[1] - counted[0]


def same_latents(ours: Restoring, theirs: Restoring, free: Restoring, plan: Plan) -> float:
    """How far the two sides' latents are apart, relative.

    Args:
        ours, theirs: the sides.
        free: theirs without control.
        plan: whose type says what is allowed.

    Raises:
        Disagreement: if too far, or if the control does so little that a broken one would not show.
    """
    for run in (ours, theirs, free):
        run()
    error = agree("latents", ours.latent_BCHW, theirs.latent_BCHW, allowed=TOLERANCE[plan.dtype])
    effect = distance(free.latent_BCHW, theirs.latent_BCHW)
    if effect < EFFECT * error:
        raise Disagreement(f"the control moves the latents by {effect:.1e}, and the sides are {error:.1e} apart")
    return error


def same_gradient(
    module: RestorationModule, theirs: TheirTraining, batch: Batch, plan: Plan, *, precision: str
) -> dict[str, float]:
    """How far losses and norms of the gradient are apart, relative, at our noise and our times.

    Raises:
        Disagreement: if too far.
    """
    our = our_loss(module, batch, precision=precision)
    our.backward()
    t_B = module.objective.times(batch.seed, module.backbone.schedule).to(plan.device)
    noise_BCHW = noise_like(theirs.latent(batch.hq_BCHW), batch.seed, "diffusion noise")
    their = theirs.loss(batch, noise_BCHW=noise_BCHW, t_B=t_B)
    their.backward()
    norms = [gradient(module.trainable().values()), gradient(theirs.parameters)]
    module.zero_grad(set_to_none=True)
    theirs.optimiser.zero_grad(set_to_none=True)
    allowed = TOLERANCE[plan.dtype]
    return {
        "loss": agree("loss", our.detach(), their.detach(), allowed=allowed),
        "norm of the gradient": agree("norm of the gradient", *norms, allowed=allowed),
    }


def gradient(parameters: Any) -> Tensor:
    """Its norm."""
    return torch.stack([p.grad.float().norm() for p in parameters if p.grad is not None]).norm()


def agree(what: str, ours: Tensor, theirs: Tensor, *, allowed: float) -> float:
    """How far ours is from theirs, relative.

    Raises:
        Disagreement: if that is more than allowed.
    """
    error = distance(ours, theirs)
    if not error <= allowed:
        raise Disagreement(f"{what}: ours and diffusers' differ by {error:.1e} of diffusers', {allowed:.0e} is allowed")
    return error


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over theirs."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())
