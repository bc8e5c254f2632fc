"""BasicSR's side of benchmarks/degradation.py: its public functions in the order of Real-ESRGAN's `feed_data`.

Runs in an environment that has basicsr 1.4.2, and imports nothing of restore_lab. Reads one JSON line of settings,
builds its images, then degrades one batch for each line {"seed": n} and answers {"seconds": s}. As in the original,
kernels are drawn for each image (before the clock starts: there the data loader draws them) and every other decision
once a batch. At the end the LQ is resized back bicubically, as ours is.
"""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
import time
import types

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms import functional

FAMILIES = {
    "gaussian_iso": "iso",
    "gaussian_aniso": "aniso",
    "generalized_iso": "generalized_iso",
    "generalized_aniso": "generalized_aniso",
    "plateau_iso": "plateau_iso",
    "plateau_aniso": "plateau_aniso",
}


class Chain:
    """Real-ESRGAN's second-order degradation on BasicSR's functions."""

    def __init__(self, config: dict) -> None:
        # BasicSR 1.4.2 imports a module that torchvision has removed, for this one function.
        alias = types.ModuleType("torchvision.transforms.functional_tensor")
        alias.rgb_to_grayscale = functional.rgb_to_grayscale
        sys.modules[alias.__name__] = alias
        self.lib = importlib.import_module("basicsr.data.degradations")
        self.filter2d = importlib.import_module("basicsr.utils.img_process_util").filter2D
        self.jpeg = importlib.import_module("basicsr.utils.diffjpeg").DiffJPEG(differentiable=False)
        self.sharpen = importlib.import_module("basicsr.utils.img_process_util").USMSharp()
        self.config = config

    def kernel(self, stage: dict) -> np.ndarray:
        """One kernel of a stage, padded to 21 x 21."""
        size = random.choice(stage["kernel_sizes"])
        if np.random.uniform() < stage["sinc_prob"]:
            cutoff = np.random.uniform(np.pi / (3 if size < 13 else 5), np.pi)
            return self.lib.circular_lowpass_kernel(cutoff, size, pad_to=21)
        kernel = self.lib.random_mixed_kernels(
            [FAMILIES[name] for name in stage["kernels"]],
            list(stage["kernels"].values()),
            size,
            stage["sigma"],
            stage["sigma"],
            [-math.pi, math.pi],
            stage["beta_generalized"],
            stage["beta_plateau"],
            noise_range=None,
        )
        pad = (21 - size) // 2
        return np.pad(kernel, ((pad, pad), (pad, pad)))

    def last_kernel(self) -> np.ndarray:
        """The final sinc, or an impulse."""
        if np.random.uniform() < self.config["final_sinc_prob"]:
            size = random.choice(self.config["final_kernel_sizes"])
            return self.lib.circular_lowpass_kernel(np.random.uniform(np.pi / 3, np.pi), size, pad_to=21)
        pulse = np.zeros((21, 21))
        pulse[10, 10] = 1
        return pulse

    def kernels(self, count: int) -> list[torch.Tensor]:
        """The three kernels of each image, three stacks of count x 21 x 21."""
        rows = [[self.kernel(self.config[o]) for o in ("first", "second")] + [self.last_kernel()] for _ in range(count)]
        return [torch.tensor(np.stack(stack), dtype=torch.float32) for stack in zip(*rows, strict=True)]

    def factor(self, stage: dict) -> float:
        """The resize factor, once a batch."""
        names = list(stage["resize_probs"])
        way = random.choices(names, list(stage["resize_probs"].values()))[0]
        low, high = stage["resize_range"]
        return {"up": np.random.uniform(1, high), "down": np.random.uniform(low, 1), "keep": 1.0}[way]

    def resize(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Resize in a random mode, once a batch."""
        return F.interpolate(x, size=size, mode=random.choice(self.config["modes"]))

    def noise(self, x: torch.Tensor, stage: dict) -> torch.Tensor:
        """One law for the batch, one strength an image."""
        if np.random.uniform() < stage["gaussian_prob"]:
            add, strength = self.lib.random_add_gaussian_noise_pt, {"sigma_range": stage["noise_levels"]}
        else:
            add, strength = self.lib.random_add_poisson_noise_pt, {"scale_range": stage["poisson_scale"]}
        return add(x, clip=True, rounds=False, gray_prob=stage["grey_prob"], **strength)

    def compress(self, x: torch.Tensor, stage: dict) -> torch.Tensor:
        """JPEG by DiffJPEG, one quality an image."""
        return self.jpeg(x.clamp(0, 1), quality=x.new_zeros(x.size(0)).uniform_(*stage["jpeg_quality"]))

    @torch.no_grad()
    def __call__(self, hq: torch.Tensor, kernels: list[torch.Tensor]) -> torch.Tensor:
        """Degrade a batch."""
        first, second = self.config["first"], self.config["second"]
        height, width = hq.shape[-2:]
        small = (height // self.config["scale"], width // self.config["scale"])
        x = self.sharpen(hq) if self.config["usm"] else hq
        x = self.filter2d(x, kernels[0])
        factor = self.factor(first)
        x = self.resize(x, (int(height * factor), int(width * factor)))
        x = self.compress(self.noise(x, first), first)
        if np.random.uniform() < second["blur_prob"]:
            x = self.filter2d(x.contiguous(), kernels[1])
        factor = self.factor(second)
        x = self.noise(self.resize(x, (int(small[0] * factor), int(small[1] * factor))), second)
        if np.random.uniform() < 0.5:
            x = self.compress(self.filter2d(self.resize(x, small).contiguous(), kernels[2]), second)
        else:
            x = self.filter2d(self.resize(self.compress(x, second), small).contiguous(), kernels[2])
        x = (x.clamp(0, 1) * 255).round() / 255
        return F.interpolate(x, size=(height, width), mode="bicubic").clamp(0, 1)


def images(*, batch: int, size: int) -> torch.Tensor:
    """The images of benchmarks/degradation.py."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.rand(batch, 3, size // 16, size // 16, generator=generator)
    smooth = F.interpolate(shapes, size=(size, size), mode="bicubic")
    texture = 0.04 * torch.randn(batch, 3, size, size, generator=generator)
    return ((smooth + texture).clamp(0, 1) * 255).round() / 255


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    request = json.loads(sys.stdin.readline())
    torch.set_num_threads(request["threads"])
    chain, hq = Chain(request["config"]), images(batch=request["batch"], size=request["size"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        seed = json.loads(line)["seed"]
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        kernels = chain.kernels(len(hq))
        start = time.perf_counter()
        chain(hq, kernels)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
