"""What each option of speed gives: added in turn to the plain step, each timed against the plain one, A B A B.

The plain restoration is in float32 and asks for the guidance's branches one after another; the plain training step is
in float32 and encodes every text and every HQ. An option stays on once it was added, so a line tells what it gave over
all lines above it. Lines that only mean something on one kind of device are left out on the other.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.alternating import Seconds, alternate, speedup
from benchmarks.comparison import GUIDANCE, Plan, our_parts, run_peak
from benchmarks.counting import held
from benchmarks.restoring import our_restoring
from benchmarks.sides import method, settle
from benchmarks.training import OurTraining, our_loss
from restore_lab.system.memory import empty_cache


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One line: what is added, in words for a person and for the config, and where it counts.

    Attributes:
        name: for a person.
        words: overrides; FOLDER in one stands for an empty folder.
        devices: kinds of device.
        toy: with which priors: True the shipped ones alone, False those of full size alone, None both.
    """

    name: str
    words: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu", "cuda")
    toy: bool | None = None


FLOAT32 = ("backbone.dtype=float32", "++backbone.codec_dtype=float32", "precision=32-true")
BFLOAT16 = ("backbone.dtype=bfloat16", "++backbone.codec_dtype=bfloat16", "precision=bf16-mixed")
PLAIN = ("speed.channels_last=false", "compile=false")
RESTORING = (
    Rung(name="plain: float32, branches one after another", words=(*FLOAT32, *PLAIN, "speed.batched=false")),
    Rung(name="bfloat16", words=BFLOAT16, devices=("cuda",)),
    Rung(name="both branches in one call", words=("speed.batched=true",)),
    Rung(name="channels-last weights", words=("speed.channels_last=true",)),
    Rung(name="compiled blocks", words=("compile=true",)),
)
TRAINING = (
    Rung(
        name="plain: float32, texts and latents encoded in every step",
        words=(*FLOAT32, *PLAIN, "optimisation.fused=false", "speed.gradient_checkpointing=false"),
    ),
    Rung(name="texts remembered", words=("backbone.cache_text=true",), toy=True),
    Rung(name="latents of the HQ remembered", words=("backbone.cache_latents=true", "backbone.cache_dir=FOLDER")),
    Rung(name="bfloat16, mixed", words=BFLOAT16, devices=("cuda",)),
    Rung(name="fused AdamW", words=("optimisation.fused=true",)),
    Rung(name="channels-last weights", words=("speed.channels_last=true",)),
    Rung(name="compiled blocks", words=("compile=true",)),
    Rung(name="gradient checkpointing (for memory)", words=("speed.gradient_checkpointing=true",)),
)
PLAIN_TOY = ("backbone.cache_text=false",)  # random priors have no text encoders to spare


@dataclass(kw_only=True)
class Running:
    """One line at work: a step a call, the bytes that it takes (None where nothing counts them), and its end."""

    step: Callable[[], Seconds]
    measure: str
    bytes_: int | None
    close: Callable[[], None] = lambda: None


def fall(rungs: Sequence[Rung], start: Callable[..., Running], size: str, plan: Plan) -> list[dict[str, Any]]:
    """The lines that count here, each against the first.

    Args:
        rungs: in the order in which they are added.
        start: `restoring` or `training`.
        size: "sd15", "sdxl" or "sd3".
        plan: what is measured; the lines' words are said behind its own.
    """
    plan = replace(plan, compiled=False)
    chosen = [rung for rung in rungs if plan.device.type in rung.devices and rung.toy in (None, plan.toy)]
    rows: list[dict[str, Any]] = []
    words: tuple[str, ...] = PLAIN_TOY if plan.toy and start is training else ()
    with tempfile.TemporaryDirectory() as folder:
        words += tuple(word.replace("FOLDER", folder) for word in chosen[0].words)
        plain = start(size, plan, words)
        for rung in chosen:
            words += tuple(word.replace("FOLDER", folder) for word in rung.words)
            this = plain if rung is chosen[0] else start(size, plan, words)
            before = rows[-1]["speedup"]["value"] if len(rows) > 1 else 1.0
            rows.append(line(rung, plain, this, plan, before=before))
            if this is not plain:
                this.close()
            del this
            empty_cache()
        plain.close()
    return rows


def line(rung: Rung, plain: Running, this: Running, plan: Plan, *, before: float) -> dict[str, Any]:
    """Seconds, how many times as fast as the plain step and as the line above, and bytes.

    Args:
        rung: what was added.
        plain, this: the plain step, and the step with it; on the first line both are the plain one,
            which tells the noise.
        plan: how many turns.
        before: the line above's speed over the plain step's.
    """
    taken = alternate({"plain": plain.step, "this": this.step}, turns=plan.turns, warmup=plan.warmup)[this.measure]
    found = speedup(taken["this"], taken["plain"])
    return {
        "name": rung.name,
        "words": list(rung.words),
        "seconds": statistics.median(taken["this"]),
        "speedup": asdict(found),
        "over the line above": found.value / before,
        "bytes": this.bytes_,
    }


def restoring(size: str, plan: Plan, words: Sequence[str]) -> Running:
    """A guided restoration; its sampling step is what counts."""
    cfg = plan.config(size, *words)
    module = method(cfg, device=plan.device)
    settle(module, cfg)
    module.sampler.guidance.scale = GUIDANCE
    run = our_restoring(module, plan.data(batch=plan.restored, count=1)[0], device=plan.device)
    made = run_peak(run, plan, compiled=cfg.compile)
    return Running(step=run, measure="sampling step", bytes_=None if made is None else held(our_parts(module)) + made)


def training(size: str, plan: Plan, words: Sequence[str]) -> Running:
    """A training step inside Lightning's loop."""
    cfg = plan.config(size, *words)
    module, data = method(cfg, device=plan.device), plan.data(batch=plan.trained)
    settle(module.train(), cfg)
    made = run_peak(lambda: our_loss(module, data[0], precision=cfg.precision).backward(), plan, compiled=cfg.compile)
    module.zero_grad(set_to_none=True)
    moments = 2 * sum(p.numel() * p.element_size() for p in module.trainable().values())
    ours = OurTraining(module, cfg, data, precision=cfg.precision)
    bytes_ = None if made is None else held(our_parts(module)) + moments + made
    return Running(step=ours, measure="training step", bytes_=bytes_, close=ours.close)
