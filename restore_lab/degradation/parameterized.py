"""SPIRE's parameterized degradation: Table 2 (left half) and Algorithm 1, four stages with their restoration prompts.

blur -> downsample -> noise -> JPEG, each applied with probability `keep`, then 8-bit rounding and bicubic back to the
HQ size. Parameters are drawn, rounded to the decimals of the instruction, then applied, so that the instruction is
exact: "Deblur with sigma 2.4; Upsample to 6.0x; Denoise with sigma 0.06; Dejpeg with quality 60".
Blur sigma in pixels, noise sigma in the [0, 1] range, downsampling as the factor of the upsampling that undoes it.
The paper gives neither kernel nor resize mode; ours are an isotropic 21 x 21 Gaussian, and area or antialiased bicubic.
Selected by degradation=parameterized, parameterized_strong, and half of degradation=spire.
"""

from __future__ import annotations

from collections.abc import Sequence

from restore_lab.config.kinds import Share
from restore_lab.config.validate import check_arguments
from restore_lab.degradation.apply import Pipeline
from restore_lab.random import mix, rng
from restore_lab.types import Recipe, Step

DECIMALS = {"blur": 1, "downsample": 1, "noise": 2, "jpeg": 0}


def blur_stage(sigma: float, *, size: int) -> Step:
    """Isotropic Gaussian blur, sigma in pixels; sigma 0 is the identity."""
    params = {"family": "gaussian", "size": size, "sigma_x": max(sigma, 1e-3), "sigma_y": max(sigma, 1e-3)}
    return Step(
        kind="blur", params=params | {"rotation": 0.0}, says=f"Deblur with sigma {sigma:.1f}", says_type="Deblur"
    )


def downsample_stage(factor: float, *, height: int, width: int, mode: str) -> Step:
    """Downsampling of a height x width image by `factor` (1 or more)."""
    params = {"height": max(1, round(height / factor)), "width": max(1, round(width / factor)), "mode": mode}
    return Step(
        kind="downsample", params=params | {"factor": factor}, says=f"Upsample to {factor:.1f}x", says_type="Upsample"
    )


def noise_stage(sigma: float, *, seed: int) -> Step:
    """Gaussian colour noise, sigma in the [0, 1] range."""
    params = {"law": "gaussian", "sigma": sigma, "grey": False, "seed": seed}
    return Step(kind="noise", params=params, says=f"Denoise with sigma {sigma:.2f}", says_type="Denoise")


def jpeg_stage(quality: int) -> Step:
    """JPEG compression, quality 1..100."""
    return Step(kind="jpeg", params={"quality": quality}, says=f"Dejpeg with quality {quality}", says_type="Dejpeg")


def finish(steps: Sequence[Step], *, height: int, width: int, back: str) -> tuple[Step, ...]:
    """The stages, 8-bit rounding and, after a downsample, the resize back; empty if there are no stages."""
    if not steps:
        return ()
    last = [Step(kind="round")]
    if any(step.kind == "downsample" for step in steps):
        last.append(Step(kind="resize", params={"height": height, "width": width, "mode": back}))
    return (*steps, *last)


@check_arguments
class Parameterized(Pipeline):
    """SPIRE's parameterized degradation.

    Args:
        name: the pipeline's name in recipes.
        keep: probability of each stage, independently.
        blur: range of the blur's sigma, in pixels.
        upsample: range of the downsampling factor.
        noise: range of the noise's sigma, in units of the [0, 1] range.
        quality: range of the JPEG quality.
        kernel_size: size of the blur kernel, odd.
        down: resize modes for the downsampling, drawn uniformly.
        back: resize mode back to the HQ size.
        at_least_one: redraw the stages until at least one is applied.
    """

    def __init__(
        self,
        *,
        name: str,
        keep: Share = 0.5,
        blur: Sequence[float] = (0.2, 3.0),
        upsample: Sequence[float] = (1.0, 7.0),
        noise: Sequence[float] = (0.0, 0.12),
        quality: Sequence[float] = (30, 92),
        kernel_size: int = 21,
        down: Sequence[str] = ("area", "bicubic_antialias"),
        back: str = "bicubic",
        at_least_one: bool = False,
    ) -> None:
        if at_least_one and keep == 0:
            raise ValueError(f"keep={keep}: at_least_one needs a probability above 0")
        self.name, self.keep, self.kernel_size, self.at_least_one = name, keep, kernel_size, at_least_one
        self.ranges = {"blur": blur, "downsample": upsample, "noise": noise, "jpeg": quality}
        self.down, self.back = tuple(down), back

    def draw(self, seed: int, height: int, width: int) -> Recipe:
        """The recipe for one image; its instruction names the applied stages in order."""
        r = rng(seed, "parameterized")
        kept = r.random(4) < self.keep  # SPIRE, Table 2: each stage with probability 0.5
        while self.at_least_one and not kept.any():
            kept = r.random(4) < self.keep
        # All parameters are drawn even for omitted stages, so that omitting one does not change the others.
        unit = dict(zip(DECIMALS, r.random(4).tolist(), strict=True))
        drawn = {
            kind: round(low + (high - low) * unit[kind], DECIMALS[kind]) for kind, (low, high) in self.ranges.items()
        }
        mode = self.down[int(r.integers(len(self.down)))]
        stages = (  # SPIRE, Algorithm 1 and Table 2
            blur_stage(drawn["blur"], size=self.kernel_size),
            downsample_stage(drawn["downsample"], height=height, width=width, mode=mode),
            noise_stage(drawn["noise"], seed=mix(seed, "noise")),
            jpeg_stage(int(drawn["jpeg"])),
        )
        steps = [stage for stage, keep in zip(stages, kept, strict=True) if keep]
        finished = finish(steps, height=height, width=width, back=self.back)
        return Recipe(pipeline=self.name, seed=seed, steps=finished)
