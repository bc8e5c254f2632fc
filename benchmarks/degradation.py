"""Images a second of our second-order degradation and of BasicSR's, alternating in one run; prints one line of JSON.

    .venv/bin/python -m benchmarks.degradation [--basicsr-python PATH] [--rounds 60] [--size 512] [--batch 8]

Settings: Real-ESRGAN's (degradation=real_esrgan), two threads, USM off on both sides unless --usm.
BasicSR decides once a batch, so its rounds differ by factors and a run needs many of them; ours decides for each image.
BasicSR 1.4.2 is no dependency: its side is benchmarks/basicsr_reference.py, a process in an environment of its own that
works only when asked, so that the two take turns on the same cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from benchmarks.configs import composed
from restore_lab.degradation.second_order import Pass, SecondOrder

HERE = Path(__file__).resolve().parent
INSTALL = """BasicSR is not installed at {path}; to compare with it:
  uv venv .basicsr_venv --python .venv/bin/python
  realpath .venv/lib/python3*/site-packages > $(echo .basicsr_venv/lib/python3*/site-packages)/main.pth
  uv pip install --python .basicsr_venv/bin/python --no-deps setuptools opencv-python-headless
  uv pip install --python .basicsr_venv/bin/python --no-deps --no-build-isolation basicsr==1.4.2"""


def images(*, batch: int, size: int) -> torch.Tensor:
    """Smooth random colour images with 8-bit levels and some texture, the same on every run."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.rand(batch, 3, size // 16, size // 16, generator=generator)
    smooth = F.interpolate(shapes, size=(size, size), mode="bicubic")
    texture = 0.04 * torch.randn(batch, 3, size, size, generator=generator)
    return ((smooth + texture).clamp(0, 1) * 255).round() / 255


def settings(*, usm: bool) -> dict[str, Any]:
    """The strong settings, as `degradation=real_esrgan` has them, without the targets."""
    cfg = composed("train", "degradation=real_esrgan")
    config = cast(dict[str, Any], OmegaConf.to_container(cfg.degradation, resolve=True))
    for part in (config, config["first"], config["second"]):
        del part["_target_"]
    return config | {"usm": usm}


class Reference:
    """BasicSR's side: a child process that degrades one batch a request and answers with the seconds it took."""

    def __init__(self, python: Path, arguments: argparse.Namespace, config: dict[str, Any]) -> None:
        command = [str(python), str(HERE / "basicsr_reference.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.requests, self.answers = cast(TextIO, self.process.stdin), cast(TextIO, self.process.stdout)
        self.ask({"batch": arguments.batch, "size": arguments.size, "threads": arguments.threads, "config": config})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One line out, one line back."""
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()
        line = self.answers.readline()
        if not line:
            raise SystemExit(f"the BasicSR process ended with {self.process.wait()}; see its message above")
        return json.loads(line)

    def close(self) -> None:
        """Let the child end."""
        self.requests.close()
        self.process.wait()


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--basicsr-python", type=Path, default=Path(".basicsr_venv/bin/python"))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--usm", action="store_true")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Warm both sides, take turns, print the JSON."""
    arguments = parse(words)
    torch.set_num_threads(arguments.threads)
    config = settings(usm=arguments.usm)
    stages: dict[str, Any] = {order: Pass(**config[order]) for order in ("first", "second")}
    ours, hq_BCHW = SecondOrder(**(config | stages)), images(batch=arguments.batch, size=arguments.size)
    reference = None
    if arguments.basicsr_python.exists():
        reference = Reference(arguments.basicsr_python, arguments, config)
    seconds: dict[str, list[float]] = {"ours": [], "basicsr": []}
    for turn in range(-1, arguments.rounds):  # turn -1 warms up and is not counted
        start = time.perf_counter()
        ours(hq_BCHW, [1000 * (turn + 1) + index for index in range(arguments.batch)])
        taken = {"ours": time.perf_counter() - start}
        if reference is not None:
            taken["basicsr"] = reference.ask({"seed": turn + 1})["seconds"]
        if turn >= 0:
            for side, value in taken.items():
                seconds[side].append(value)
    print(json.dumps(report(seconds, arguments)))
    if reference is None:
        print(INSTALL.format(path=arguments.basicsr_python))
    else:
        reference.close()


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Images a second from the total time of each side, and our speed over BasicSR's (null without BasicSR)."""
    speed = {side: arguments.batch * len(taken) / sum(taken) for side, taken in seconds.items() if taken}
    spread = {side: statistics.stdev(taken) for side, taken in seconds.items() if len(taken) > 1}
    return {
        "benchmark": "degradation",
        "size": arguments.size,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "usm": arguments.usm,
        "images_per_second": {side: round(value, 2) for side, value in speed.items()},
        "stdev_of_batch_seconds": {side: round(value, 3) for side, value in spread.items()},
        "ratio": round(speed["ours"] / speed["basicsr"], 2) if "basicsr" in speed else None,
    }


if __name__ == "__main__":
    main()
