"""Real-ESRGAN's second-order degradation (Wang et al. 2021, Sec. 3; options/train_realesrnet_x4plus.yml).

[USM] -> blur -> resize -> noise -> JPEG -> blur -> resize -> noise -> {resize, sinc, JPEG | JPEG, resize, sinc} ->
8 bit -> bicubic back to the HQ size. Choices are made per image; Real-ESRGAN's code makes them per batch.
Blur sigmas in pixels, noise sigmas in 8-bit levels (1..30), cutoffs in radians per pixel. The recipe is `blind`.
JPEG qualities are drawn as integers, which is all that the codec accepts.
Selected by degradation=real_esrgan (strong: Real-ESRGAN, SUPIR, InstantIR, DiffBIR) or degradation=real_esrgan_light
(StableSR).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from restore_lab.config.kinds import Count
from restore_lab.degradation.apply import Pipeline
from restore_lab.random import mix, rng
from restore_lab.types import Recipe, Step

Interval = Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The settings of one of the two degradation passes; fields are in the order of the operations."""

    blur_prob: float
    kernels: Mapping[str, float]  # family_iso or family_aniso -> probability
    kernel_sizes: Sequence[int]
    sinc_prob: float
    sigma: Interval
    beta_generalized: Interval
    beta_plateau: Interval
    resize_probs: Mapping[str, float]  # up, down, keep
    resize_range: Interval
    gaussian_prob: float
    noise_levels: Interval
    poisson_scale: Interval
    grey_prob: float
    jpeg_quality: Sequence[int]


class SecondOrder(Pipeline):
    """Real-ESRGAN's second-order degradation.

    Args:
        name: the pipeline's name in recipes.
        first, second: settings of the two passes.
        scale: HQ size / LQ size, before the resize back.
        modes: resize modes, drawn uniformly.
        final_sinc_prob: probability of the final sinc filter.
        usm: sharpen the HQ first (usm.py), with `usm_threshold` in 8-bit levels.
        clean_prob: probability that the LQ is the HQ itself (StableSR's no_degradation_prob).
        round_8bit: round the LQ to 8 bit before the resize back.
    """

    def __init__(
        self,
        *,
        name: str,
        first: Pass,
        second: Pass,
        scale: Count = 4,
        modes: Sequence[str] = ("area", "bilinear", "bicubic"),
        final_sinc_prob: float = 0.8,
        final_kernel_sizes: Sequence[int] = (7, 9, 11, 13, 15, 17, 19, 21),
        usm: bool = False,
        usm_weight: float = 0.5,
        usm_threshold: float = 10.0,
        usm_size: int = 51,
        usm_sigma: float = 8.0,
        clean_prob: float = 0.0,
        round_8bit: bool = True,
        back: str = "bicubic",
    ) -> None:
        self.name, self.scale, self.modes, self.back = name, scale, tuple(modes), back
        self.first, self.second = first, second
        self.final_sinc_prob, self.final_kernel_sizes = final_sinc_prob, tuple(final_kernel_sizes)
        self.usm_params = {"weight": usm_weight, "threshold": usm_threshold, "size": usm_size, "sigma": usm_sigma}
        self.usm, self.clean_prob, self.round_8bit = usm, clean_prob, round_8bit

    def draw(self, seed: int, height: int, width: int) -> Recipe:
        """The recipe for one image; before the resize back the LQ has height // scale x width // scale pixels."""
        r = rng(seed, "second_order")
        if r.random() < self.clean_prob:
            return Recipe(pipeline=self.name, seed=seed, blind=True)
        steps = [Step(kind="usm", params=dict(self.usm_params))] if self.usm else []
        small = (max(1, height // self.scale), max(1, width // self.scale))
        steps += [*_blur(r, self.first), *self._resize(r, self.first, (height, width), (height, width))]
        steps += [_noise(r, self.first, mix(seed, "first")), _jpeg(r, self.first)]
        # Real-ESRGAN, Sec. 3.2: the second order. Its resize is relative to the LQ's size, not to the first's result.
        now = _size_after(steps, (height, width))
        steps += [*_blur(r, self.second), *self._resize(r, self.second, small, now)]
        steps += [_noise(r, self.second, mix(seed, "second"))]
        steps += self._finish(r, small, _size_after(steps, (height, width)))
        if self.round_8bit:
            steps.append(Step(kind="round"))
        if small != (height, width):
            steps.append(_resize_step((height, width), self.back))
        return Recipe(pipeline=self.name, seed=seed, steps=tuple(steps), blind=True)

    def _resize(self, r: np.random.Generator, stage: Pass, base: tuple[int, int], now: tuple[int, int]) -> list[Step]:
        way = _choose(r, stage.resize_probs)
        low, high = stage.resize_range
        factor = {"up": r.uniform(1, max(high, 1)), "down": r.uniform(low, 1), "keep": 1.0}[way]
        mode = self.modes[int(r.integers(len(self.modes)))]
        size = (max(1, int(base[0] * factor)), max(1, int(base[1] * factor)))
        return [] if size == now else [_resize_step(size, mode)]

    def _finish(self, r: np.random.Generator, small: tuple[int, int], now: tuple[int, int]) -> list[Step]:
        mode = self.modes[int(r.integers(len(self.modes)))]
        shrink = [] if small == now else [_resize_step(small, mode)]
        if r.random() < self.final_sinc_prob:
            size = int(self.final_kernel_sizes[int(r.integers(len(self.final_kernel_sizes)))])
            cutoff = float(r.uniform(math.pi / 3, math.pi))
            shrink.append(Step(kind="blur", params={"family": "sinc", "size": size, "cutoff": cutoff}))
        jpeg = [_jpeg(r, self.second)]
        return shrink + jpeg if r.random() < 0.5 else jpeg + shrink


def _choose(r: np.random.Generator, weights: Mapping[str, float]) -> str:
    """One key, with probability proportional to its weight."""
    names = list(weights)
    bounds = np.cumsum([weights[name] for name in names])
    return names[int(np.searchsorted(bounds, r.random() * bounds[-1], side="right"))]


def _uniform(r: np.random.Generator, bounds: Interval) -> float:
    low, high = bounds
    return float(r.uniform(low, high))


def _blur(r: np.random.Generator, stage: Pass) -> list[Step]:
    if r.random() >= stage.blur_prob:
        return []
    size = int(stage.kernel_sizes[int(r.integers(len(stage.kernel_sizes)))])
    if r.random() < stage.sinc_prob:
        cutoff = float(r.uniform(math.pi / (3 if size < 13 else 5), math.pi))
        return [Step(kind="blur", params={"family": "sinc", "size": size, "cutoff": cutoff})]
    family, shape = _choose(r, stage.kernels).rsplit("_", 1)
    sigma_x = sigma_y = _uniform(r, stage.sigma)
    rotation = 0.0
    if shape == "aniso":
        sigma_y, rotation = _uniform(r, stage.sigma), float(r.uniform(-math.pi, math.pi))
    params = {"family": family, "size": size, "sigma_x": sigma_x, "sigma_y": sigma_y, "rotation": rotation}
    if family != "gaussian":
        low, high = stage.beta_generalized if family == "generalized" else stage.beta_plateau
        params["beta"] = float(r.uniform(low, 1) if r.random() < 0.5 else r.uniform(1, high))
    return [Step(kind="blur", params=params)]


def _noise(r: np.random.Generator, stage: Pass, seed: int) -> Step:
    gaussian, grey = bool(r.random() < stage.gaussian_prob), bool(r.random() < stage.grey_prob)
    if gaussian:
        sigma = _uniform(r, stage.noise_levels) / 255
        return Step(kind="noise", params={"law": "gaussian", "sigma": sigma, "grey": grey, "seed": seed})
    scale = _uniform(r, stage.poisson_scale)
    return Step(kind="noise", params={"law": "poisson", "scale": scale, "grey": grey, "seed": seed})


def _jpeg(r: np.random.Generator, stage: Pass) -> Step:
    low, high = stage.jpeg_quality
    return Step(kind="jpeg", params={"quality": int(r.integers(low, high + 1))})


def _resize_step(size: tuple[int, int], mode: str) -> Step:
    return Step(kind="resize", params={"height": size[0], "width": size[1], "mode": mode})


def _size_after(steps: Sequence[Step], size: tuple[int, int]) -> tuple[int, int]:
    for step in steps:
        if step.kind == "resize":
            size = (step.params["height"], step.params["width"])
    return size
