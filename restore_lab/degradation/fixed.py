"""Fixed degradations: the same stages and parameters for every image; only the noise field is random.

SUPIR, Table 1: x4; x8; blur 2 + x4; x4 + noise 40; blur 2 + x4 + noise 20 + JPEG 50 (noise in 8-bit levels).
Stages run in the order of the config, each on the output of the one before: noise after a downsample is noise on the
small image. Units as in parameterized.py: blur sigma in pixels, noise sigma in the [0, 1] range.
Selected by degradation=sr4, sr8, blur2_sr4, sr4_noise40, mixture, blur, noise, jpeg, none; override a parameter by
degradation.stages.noise=0.1.
"""

from __future__ import annotations

from collections.abc import Mapping

from restore_lab.degradation.apply import Pipeline
from restore_lab.degradation.parameterized import blur_stage, downsample_stage, finish, jpeg_stage, noise_stage
from restore_lab.random import mix
from restore_lab.types import Recipe, Step


class FixedDegradation(Pipeline):
    """Stages with fixed parameters.

    Args:
        name: the pipeline's name in recipes.
        stages: kind ("blur", "downsample", "noise", "jpeg") -> its parameter, in order of application.
        kernel_size: size of the blur kernel, odd.
        down: resize mode of the downsampling.
        back: resize mode back to the HQ size.

    Raises:
        ValueError: for an unknown stage or a parameter out of range.
    """

    def __init__(
        self,
        *,
        name: str,
        stages: Mapping[str, float],
        kernel_size: int = 21,
        down: str = "bicubic_antialias",
        back: str = "bicubic",
    ) -> None:
        lowest = {"blur": 0, "downsample": 1, "noise": 0, "jpeg": 1}
        for kind, number in stages.items():
            if kind not in lowest:
                raise ValueError(f"{name}: unknown stage {kind!r}; there are {', '.join(lowest)}")
            if number < lowest[kind] or (kind == "jpeg" and number > 100):
                raise ValueError(f"{name}: {kind}={number} is out of range; it starts at {lowest[kind]}")
        self.name, self.stages, self.kernel_size = name, dict(stages), kernel_size
        self.down, self.back = down, back

    def draw(self, seed: int, height: int, width: int) -> Recipe:
        """The recipe; only the noise field depends on the seed."""
        steps = [self._stage(kind, number, seed, height, width) for kind, number in self.stages.items()]
        finished = finish(steps, height=height, width=width, back=self.back)
        return Recipe(pipeline=self.name, seed=seed, steps=finished)

    def _stage(self, kind: str, number: float, seed: int, height: int, width: int) -> Step:
        if kind == "blur":
            return blur_stage(float(number), size=self.kernel_size)
        if kind == "downsample":
            return downsample_stage(float(number), height=height, width=width, mode=self.down)
        if kind == "noise":
            return noise_stage(float(number), seed=mix(seed, "noise"))
        return jpeg_stage(int(number))
