"""Apply degradation recipes: a pipeline draws a `Recipe`, the functions here run its steps, and rerunning replays it.

Each image is processed by its own steps, in float64 and on its own thread: on a CPU the result is bit-identical for any
batch and any number of threads; on a GPU only sums differ, in the last bits of float64. Random fields are drawn on the
CPU from the seeds in the steps. CHW or BCHW, float32 in [0, 1]; the LQ has the HQ's size if the recipe ends with a
resize back, as all of conf/degradation/ do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from restore_lab.degradation.blur import filter_image, kernel_from
from restore_lab.degradation.jpeg import jpeg, round_8bit
from restore_lab.degradation.noise import gaussian_noise, poisson_noise
from restore_lab.degradation.resize import resize
from restore_lab.degradation.usm import usm_sharpen
from restore_lab.degradation.weather import WEATHER
from restore_lab.types import Recipe, Step


class Pipeline(ABC):
    """A degradation pipeline: `draw` samples a recipe without reading pixels; calling the pipeline degrades a batch."""

    @abstractmethod
    def draw(self, seed: int, height: int, width: int) -> Recipe:
        """The recipe for one image of height x width pixels; a pure function of the arguments."""

    def __call__(self, hq_BCHW: Tensor, seeds: Sequence[int]) -> tuple[Tensor, tuple[Recipe, ...]]:
        """Degrade each image with its own seed; the LQ has the size, device and range of the HQ.

        Raises:
            ValueError: if there is not one seed per image.
        """
        if len(seeds) != len(hq_BCHW):
            raise ValueError(f"{len(seeds)} seeds for {len(hq_BCHW)} images; give one per image")
        height, width = hq_BCHW.shape[-2:]
        recipes = tuple(self.draw(int(seed), height, width) for seed in seeds)
        return apply_recipes(recipes, hq_BCHW), recipes


def apply_step(step: Step, x_CHW: Tensor) -> Tensor:
    """Apply one recorded operation to a float64 image, CHW in [0, 1].

    Raises:
        ValueError: if the step's kind is unknown.
    """
    p = step.params
    match step.kind:
        case "usm":
            return usm_sharpen(x_CHW, weight=p["weight"], threshold=p["threshold"], size=p["size"], sigma=p["sigma"])
        case "blur":
            return filter_image(x_CHW, kernel_from(p))
        case "resize" | "downsample":
            return resize(x_CHW, height=p["height"], width=p["width"], mode=p["mode"])
        case "noise" if p["law"] == "gaussian":
            return gaussian_noise(x_CHW, sigma=p["sigma"], grey=p["grey"], seed=p["seed"])
        case "noise" if p["law"] == "poisson":
            return poisson_noise(x_CHW, scale=p["scale"], grey=p["grey"], seed=p["seed"])
        case "jpeg":
            return jpeg(x_CHW, quality=p["quality"])
        case "round":
            return round_8bit(x_CHW)
        case kind if kind in WEATHER:
            return WEATHER[kind](x_CHW, **p)
    raise ValueError(f"cannot apply step {step.kind!r} with {dict(p)}; was the recipe written by a newer version?")


@torch.no_grad()
def apply_recipe(recipe: Recipe, hq_CHW: Tensor) -> Tensor:
    """Degrade one image by its recipe; float32 in [0, 1]."""
    return apply_recipes((recipe,), hq_CHW[None])[0]


@torch.no_grad()
def apply_recipes(recipes: Sequence[Recipe], hq_BCHW: Tensor) -> Tensor:
    """Degrade each image of a batch by its own recipe; float32 in [0, 1].

    Raises:
        ValueError: if there is not one recipe per image, or the results differ in size.
    """
    if len(recipes) != len(hq_BCHW):
        raise ValueError(f"{len(recipes)} recipes for {len(hq_BCHW)} images; give one per image")
    results = _each(lambda index: _run(recipes[index].steps, hq_BCHW[index]), len(recipes), hq_BCHW.device)
    sizes = {tuple(result.shape) for result in results}
    if len(sizes) > 1:
        raise ValueError(f"the recipes give images of different sizes {sorted(sizes)}; end each with a resize back")
    return torch.stack(results) if results else hq_BCHW.float()


@torch.no_grad()
def sharpened_targets(recipes: Sequence[Recipe], hq_BCHW: Tensor) -> Tensor:
    """The HQ after each recipe's unsharp masking only (Real-ESRGAN's L1 target), unchanged for a recipe without it."""
    steps = [tuple(step for step in recipe.steps if step.kind == "usm") for recipe in recipes]
    return torch.stack(_each(lambda index: _run(steps[index], hq_BCHW[index]), len(steps), hq_BCHW.device))


def _run(steps: Sequence[Step], hq_CHW: Tensor) -> Tensor:
    x_CHW = hq_CHW.double()
    for step in steps:
        x_CHW = apply_step(step, x_CHW)
    return x_CHW.float().clamp_(0, 1)


def _each(work: Callable[[int], Tensor], count: int, device: torch.device) -> list[Tensor]:
    """`work(0..count-1)` in a pool of as many threads as torch may use; each thread computes on one core.

    One core per image keeps results independent of the thread count, and runs the codec and the random generators,
    which are single-threaded, in parallel. On a GPU the threads share the caller's stream.
    """
    threads = torch.get_num_threads()
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def task(index: int) -> Tensor:
        with torch.no_grad(), torch.cuda.stream(stream):
            return work(index)

    workers = max(1, min(threads, count))
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(task, range(count)))
    finally:
        # Each worker sets its own thread count, but torch also applies the last setting to threads that start later.
        torch.set_num_threads(threads)
