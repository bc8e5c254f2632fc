"""Parse a restoration instruction into a degradation recipe, and measure how consistent a result is with its LQ.

"Deblur with sigma 2.4; Upsample to 4.0x; Denoise with sigma 0.06; Dejpeg with quality 60" has all parameters of the
degradation (SPIRE, Table 2). Applied to the restored image, it reproduces the LQ as far as detail was recovered rather
than hallucinated. Parts without a number, and any other text, become steps that keep their text and change no pixels.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from restore_lab.degradation.apply import apply_recipes
from restore_lab.degradation.parameterized import blur_stage, downsample_stage, finish, jpeg_stage, noise_stage
from restore_lab.types import Recipe, Step

NUMBER = r"(\d+(?:\.\d+)?)"
KERNEL = 21
POOL_SIDE = 8


def parse_instruction(instruction: str, *, height: int, width: int) -> Recipe:
    """The recipe of an instruction, for an image of height x width pixels; its own instruction is the same text.

    Raises:
        ValueError: for a number outside its degradation's range.
    """
    parts = [part.strip() for part in instruction.split(";") if part.strip()]
    steps = [_step(part, height=height, width=width) for part in parts]
    known = [step for step in steps if step.kind != "told"]
    return Recipe(
        pipeline="told",
        seed=0,
        steps=(*steps, *finish(known, height=height, width=width, back="bicubic")[len(known) :]),
    )


def _step(words: str, *, height: int, width: int) -> Step:
    """The step of one part of an instruction."""
    forms = {
        rf"deblur with sigma {NUMBER}": lambda v: blur_stage(v, size=KERNEL),
        rf"upsample to {NUMBER}x": lambda v: downsample_stage(v, height=height, width=width, mode="area"),
        rf"denoise with sigma {NUMBER}": lambda v: noise_stage(v, seed=0),
        rf"dejpeg with quality {NUMBER}": lambda v: jpeg_stage(round(v)),
    }
    for form, stage in forms.items():
        match = re.fullmatch(form, words, re.IGNORECASE)
        if match is None:
            continue
        value = float(match[1])
        _in_range(words, value)
        made = stage(value)
        return Step(kind=made.kind, params=made.params, says=words, says_type=made.says_type)
    return Step(kind="told", says=words, says_type=words)


def _in_range(words: str, value: float) -> None:
    ranges = {"deblur": (0, 100), "upsample": (1, 64), "denoise": (0, 1), "dejpeg": (1, 100)}
    low, high = ranges[words.split()[0].lower()]
    if not low <= value <= high:
        raise ValueError(f"instruction {words!r}: the number is expected from {low} to {high}")


def consistency(restored_CHW: Tensor, lq_CHW: Tensor, recipe: Recipe | None) -> tuple[float, str]:
    """PSNR in dB of the degraded restored image against the LQ, and a description of what was compared.

    Blur, downsampling and JPEG with parameters are applied to the restored image (noise is not: its field is unknown).
    Without any of these the degradation is unknown, and the means of 8 x 8 pixels are compared, which blur, noise and
    JPEG hardly change.

    Args:
        restored_CHW: in [0, 1].
        lq_CHW: of the same size, floats in [0, 1] or integer levels.
        recipe: the result of `parse_instruction`; None if there is no instruction.
    """
    steps = () if recipe is None else recipe.steps
    again = [step for step in steps if step.kind not in ("told", "noise")]
    if any(step.kind in ("blur", "downsample", "jpeg") for step in again):
        done = Recipe(pipeline="again", seed=0, steps=tuple(again))
        degraded_CHW = apply_recipes((done,), restored_CHW[None].float().cpu())[0]
        return _psnr(degraded_CHW, _floats(lq_CHW)), done.instruction()
    pooled = [torch.stack([_means(channel_HW) for channel_HW in image]) for image in (restored_CHW, lq_CHW)]
    return _psnr(*pooled), f"means of {POOL_SIDE}x{POOL_SIDE} pixels"


def _means(channel_HW: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(_floats(channel_HW)[None], POOL_SIDE, ceil_mode=True)[0]


def _floats(x: Tensor) -> Tensor:
    """As float32 in [0, 1], on the CPU."""
    return x.float().cpu() if x.is_floating_point() else x.cpu().float() / torch.iinfo(x.dtype).max


def _psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB for a range of 1, at most 100."""
    return float(-10 * (a - b).square().mean().clamp_min(1e-10).log10())
