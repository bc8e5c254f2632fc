"""Ours against diffusers' at one size: do both compute the same, and what does each take.

Latents, loss and gradient must agree before anything is timed. Memory is what a side's weights take (in training with
AdamW's two moments), and the most that one restoration or one training step makes besides.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.alternating import alternate, speedup
from benchmarks.counting import flops, held, peak
from benchmarks.restoring import Restoring, our_restoring, their_restoring
from benchmarks.sides import CACHE_BYTES, batches, config, method, settle
from benchmarks.theirs import Diffusers
from benchmarks.training import OurTraining, TheirTraining, our_loss
from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.config.build import build
from restore_lab.methods.module import RestorationModule
from restore_lab.random import noise_like
from restore_lab.system.memory import empty_cache
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
        word, precision = ("float32", "32-true") if self.toy else ("bfloat16", "bf16-mixed")
        types = (f"backbone.dtype={word}", f"++backbone.codec_dtype={word}", f"precision={precision}")
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
    found: dict[str, Any] = {"agreement": {}, "rows": {}}
    restorings(size, plan, found)
    empty_cache()
    trainings(size, plan, found)
    return found


def restorings(size: str, plan: Plan, found: dict[str, Any]) -> None:
    """Sampling steps and whole restorations, plain and guided."""
    cfg = plan.config(size)
    module = method(cfg, device=plan.device)
    side, batch = Diffusers(module, dtype=plan.dtype), plan.data(batch=plan.restored, count=1)[0]
    scales = {"": 1.0, "guided ": GUIDANCE}
    counted = {prefix: step_flops(module, batch, scale=scale) for prefix, scale in scales.items()}
    module.sampler.steps = plan.steps
    settle(module, cfg)
    for prefix, scale in scales.items():
        how: dict[str, Any] = {"scale": scale, "steps": plan.steps, "device": plan.device}
        module.sampler.guidance.scale = scale
        runs = {
            "ours": our_restoring(module, batch, device=plan.device),
            "diffusers": their_restoring(side, batch, **how),
        }
        free = their_restoring(side, batch, control=0.0, **how)
        found["agreement"][f"{prefix}latents"] = same_latents(runs["ours"], runs["diffusers"], free, plan)
        bytes_ = in_all(runs, module, side, plan)
        if plan.compiled:
            side.compile(backend=cfg.speed.backend)
        taken = alternate(runs, turns=plan.turns, warmup=plan.warmup)
        found["rows"][f"{prefix}sampling step"] = row(taken["sampling step"], flops_=counted[prefix])
        found["rows"][f"{prefix}restoration"] = row(taken["restoration"], bytes_=bytes_)


def trainings(size: str, plan: Plan, found: dict[str, Any]) -> None:
    """Training steps, with latents encoded in each and with latents made before."""
    cfg = plan.config(size)
    module, data = method(cfg, device=plan.device).train(), plan.data(batch=plan.trained)
    side, clip = Diffusers(module), cfg.stages.adaptor.trainer.gradient_clip_val
    how: dict[str, Any] = {"optimisation": build(cfg.optimisation), "clip": clip, "precision": cfg.precision}
    theirs = TheirTraining(side, data, **how)
    counted = flops(lambda: our_loss(module, data[0], precision=cfg.precision).backward())
    settle(module, cfg)
    found["agreement"] |= same_gradient(module, theirs, data[0], plan, precision=cfg.precision)
    runs = {
        "ours": lambda: our_loss(module, data[0], precision=cfg.precision).backward(),
        "diffusers": lambda: theirs.loss(data[0]).backward(),
    }
    moments = 2 * sum(p.numel() * p.element_size() for p in module.trainable().values())
    bytes_ = in_all(runs, module, side, plan, more=moments)
    if plan.compiled:
        side.compile(backend=cfg.speed.backend)
    ours = OurTraining(module, cfg, data, precision=cfg.precision)
    with tempfile.TemporaryDirectory() as folder:
        for cached, name in ((False, "training step"), (True, "training step, latents cached")):
            module.backbone.codec.disk = DiskCache(folder, base="", max_bytes=CACHE_BYTES) if cached else None
            theirs.remember(data if cached else ())
            taken = alternate({"ours": ours, "diffusers": theirs}, turns=plan.turns, warmup=plan.warmup)
            plain: dict[str, Any] = {} if cached else {"bytes_": bytes_, "flops_": counted}
            found["rows"][name] = row(taken["training step"], **plain)
        ours.close()


def in_all(
    runs: Mapping[str, Callable[[], Any]], module: RestorationModule, side: Diffusers, plan: Plan, *, more: int = 0
) -> dict[str, int | None]:
    """Bytes of each side's weights, of what one run makes at most, and `more`; gradients do not stay."""
    parts = {"ours": our_parts(module), "diffusers": (side.denoiser, side.vae, side.controlnet)}
    found: dict[str, int | None] = {}
    for name, run in runs.items():
        for part in parts[name]:
            part.zero_grad(set_to_none=True)
        made = run_peak(run, plan, compiled=plan.compiled)
        found[name] = None if made is None else held(parts[name]) + made + more
        for part in parts[name]:
            part.zero_grad(set_to_none=True)
    return found


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


def step_flops(module: RestorationModule, batch: Batch, *, scale: float) -> int:
    """FLOPs of a sampling step: what a restoration of three steps does more than one of two."""
    module.sampler.guidance.scale, counted = scale, []
    for steps in (1, 2, 3):  # in the first, words are encoded too
        module.sampler.steps = steps
        counted.append(flops(lambda: module.restore(batch)))
    return counted[2] - counted[1]


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
    if effect <= EFFECT * error:
        raise Disagreement(f"the control moves the latents by {effect:.1e}, and the sides are {error:.1e} apart")
    return error


def same_gradient(
    module: RestorationModule, theirs: TheirTraining, batch: Batch, plan: Plan, *, precision: str
) -> dict[str, float]:
    """How far losses and norms of the gradient are apart, relative, at our noise and our times.

    Raises:
        Disagreement: if too far.
    """
    module.zero_grad(set_to_none=True)
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
