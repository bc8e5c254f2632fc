"""Seconds and bytes of a sampling step and of a training step, ours and diffusers', taking turns in one run.

    .venv/bin/python -m benchmarks.speed                                  # toys on the CPU: `make bench`
    .venv/bin/python -m benchmarks.speed --device cuda --scale full       # SD 1.5, SDXL, SD3 in bf16: `make bench-gpu`

The same ControlNet on both sides (sides.py, training.py), with torch.compile on both if --compile is given; before
anything is timed both have to give the same latents, loss and gradient, or the run ends (comparison.py). Then comes
what each option gives over the plain step (waterfall.py). Writes speed.md and speed.json into --output.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import Plan, compared
from benchmarks.counting import matrix_peak
from benchmarks.page import page
from benchmarks.sides import PIXELS, TOYS
from benchmarks.waterfall import RESTORING, TRAINING, fall, restoring, training
from restore_lab.storage.artefact import code_version
from restore_lab.storage.atomic import write_bytes_atomic, write_json_atomic
from restore_lab.system.quiet import silence_libraries

TOY_PIXELS = 64
# Images of a restoration and of a training step, steps of sampling, turns, turns before.
COUNTS = ("restored", "trained", "steps", "turns", "warmup")
TOY, MEDIUM, LARGE = (1, 4, 10, 30, 2), (1, 4, 20, 15, 3), (1, 1, 20, 15, 3)  # the shipped ones; SD 1.5; SDXL and SD3


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of our side's config, such as speed.batched=false")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scale", choices=("tiny", "full"), default="tiny", help="shipped priors, or random full ones")
    parser.add_argument("--sizes", nargs="+", choices=tuple(TOYS), default=list(TOYS))
    parser.add_argument("--parts", nargs="+", choices=("comparison", "waterfall"), default=["comparison", "waterfall"])
    parser.add_argument("--compile", action="store_true", help="both sides, in the comparison")
    parser.add_argument("--pixels", type=int, help=f"{TOY_PIXELS}, or what each prior was trained at")
    parser.add_argument("--threads", type=int, default=1)
    for name, *usual in zip(COUNTS, TOY, MEDIUM, LARGE, strict=True):
        said = "toys {}, SD 1.5 {}, SDXL and SD3 {}".format(*usual)
        parser.add_argument(f"--{name}", type=int, help=said)
    parser.add_argument("--output", type=Path, default=Path("runs/speed"))
    return parser.parse_args(words)


def planned(given: argparse.Namespace, size: str) -> Plan:
    """What the command line says of one size."""
    toy = given.scale == "tiny"
    usual = dict(zip(COUNTS, TOY if toy else MEDIUM if size == "sd15" else LARGE, strict=True))
    counts = {name: count if getattr(given, name) is None else getattr(given, name) for name, count in usual.items()}
    pixels = given.pixels or (TOY_PIXELS if toy else PIXELS[size])
    words, device = tuple(given.overrides), torch.device(given.device)
    return Plan(device=device, toy=toy, pixels=pixels, compiled=given.compile, words=words, **counts)


def measured(given: argparse.Namespace, size: str) -> dict[str, Any]:
    """All that was asked for at one size."""
    plan, found = planned(given, size), {}
    prior = f"{TOYS[size]}, float32" if plan.toy else "random weights, bfloat16"
    images = f"{plan.restored} restored and {plan.trained} trained at a time, {plan.steps} steps"
    found["prior"] = f"{prior}, {plan.pixels}x{plan.pixels} pixels, {images}, {plan.turns} turns"
    if "comparison" in given.parts:
        found["comparison"] = compared(size, plan)
    if "waterfall" in given.parts:
        found["waterfall"] = {
            "a guided sampling step": fall(RESTORING, restoring, size, plan),
            "a training step": fall(TRAINING, training, size, plan),
        }
    return found


def machine(device: torch.device) -> dict[str, str]:
    """What was measured on, with what."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
        name = f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"
    versions = ", ".join(f"{one} {metadata.version(one)}" for one in ("torch", "diffusers", "lightning"))
    one = device.type == "cpu" and torch.get_num_threads() == 1
    clock = "what the one thread worked (process time)" if one else "as passed on the wall"
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return {"device": f"{name}, {threads}", "seconds": clock, "versions": f"{versions}, restore_lab {code_version()}"}


def hush() -> None:
    """Lightning's notes on hardware, tips and eval mode."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    given, found = parse(words), {}
    if given.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.speed: --device cuda, and torch finds no CUDA device here; use --device cpu", file=sys.stderr)
        raise SystemExit(2)
    torch.set_num_threads(given.threads)
    hush()
    device = torch.device(given.device)
    peak = matrix_peak(device, torch.float32 if given.scale == "tiny" else torch.bfloat16)
    said = shlex.join(sys.argv[1:] if words is None else words)
    found = {"command": f"python -m benchmarks.speed {said}".rstrip(), "machine": machine(device), "matrix peak": peak}
    found["machine"]["matrix peak"] = f"{peak / 1e12:.3g} TFLOP/s, measured"
    found["sizes"] = {}
    for size in given.sizes:
        with silence_libraries():
            found["sizes"][size] = measured(given, size)
        write_json_atomic(given.output / "speed.json", found)  # after each size, so that a long run leaves what it has
        write_bytes_atomic(given.output / "speed.md", page(found).encode())
    print(page(found))


if __name__ == "__main__":
    main()
