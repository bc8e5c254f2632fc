"""Diff-Restorer's eight degradations, one or several per image (section IV-A; orders and ranges are ours).

Noise of sigma 50 (8-bit levels) and JPEG of quality 10 as in the paper; the others are synthesised (weather.py), where
the paper uses LOL, RESIDE, Rain1400, Qian's raindrops, Snow100K and GoPro; data=paired reads such real pairs.
Several are applied in the order of image formation: low light, haze, rain, snow, raindrop, blur, noise, JPEG.
Selected by degradation=diff_restorer, haze, rain, raindrop, snow, low_light, motion_blur.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from restore_lab.config.kinds import Count, NonNegative, Quality
from restore_lab.config.validate import check_arguments
from restore_lab.degradation.apply import Pipeline
from restore_lab.degradation.parameterized import jpeg_stage, noise_stage
from restore_lab.degradation.vocabulary import LABELS
from restore_lab.random import mix, rng
from restore_lab.types import Recipe, Step

ORDER = ("low_light", "haze", "rain", "snow", "raindrop", "blur", "noise", "jpeg")  # in which they are applied
STEP_KINDS = {kind: "motion_blur" if kind == "blur" else kind for kind in LABELS}  # kinds of the recipe's steps
VERBS = {"low_light": "Brighten", "haze": "Dehaze", "rain": "Derain", "raindrop": "Remove raindrops", "snow": "Desnow"}


def draw_step(kind: str, *, seed: int, noise: float, quality: int) -> Step:
    """One degradation with parameters drawn from the seed.

    Raises:
        ValueError: for a kind that is not one of `LABELS`.
    """
    r, field = rng(seed, "eight", kind), mix(seed, kind)
    match kind:
        case "noise":
            return noise_stage(noise, seed=field)
        case "jpeg":
            return jpeg_stage(quality)
        case "blur":
            params = {"length": r.uniform(0.05, 0.2), "angle": r.uniform(0, math.pi), "bend": r.uniform(-1.5, 1.5)}
            return Step(kind=STEP_KINDS[kind], params=params, says="Deblur", says_type="Deblur")
        case "haze":
            params = {"beta": r.uniform(1.0, 2.4), "airlight": r.uniform(0.7, 1.0), "seed": field}
        case "rain":
            params = {"density": r.uniform(0.004, 0.02), "length": r.uniform(0.1, 0.3), "seed": field}
            params |= {"angle": r.uniform(-0.6, 0.6), "opacity": r.uniform(0.5, 0.9), "veil": r.uniform(0.0, 0.2)}
        case "snow":
            params = {
                "density": r.uniform(0.004, 0.012),
                "size": r.uniform(0.012, 0.025),
                "opacity": r.uniform(0.7, 1.0),
            }
            params |= {"seed": field}
        case "raindrop":
            params = {"count": int(r.integers(6, 20)), "radius": r.uniform(0.05, 0.12), "blur": r.uniform(0.01, 0.02)}
            params |= {"seed": field}
        case "low_light":
            params = {"alpha": r.uniform(0.9, 1.0), "beta": r.uniform(0.5, 1.0), "gamma": r.uniform(2.0, 3.5)}
            params |= {"sigma": r.uniform(0.01, 0.04), "seed": field}
        case _:
            raise ValueError(f"degradation {kind!r} is not one of {', '.join(LABELS)}")
    return Step(kind=kind, params=params, says=VERBS[kind], says_type=VERBS[kind])


@check_arguments
class RandomKinds(Pipeline):
    """A random subset of the eight degradations per image.

    Args:
        name: the pipeline's name in recipes.
        kinds: kinds to draw from.
        counts: numbers of kinds per image, equally likely; [1] is the paper's training.
        noise: sigma of the noise, in the [0, 1] range.
        quality: JPEG quality, 1..100.
    """

    def __init__(
        self,
        *,
        name: str,
        kinds: Sequence[str] = LABELS,
        counts: Sequence[Count] = (1,),
        noise: NonNegative = 50 / 255,
        quality: Quality = 10,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in LABELS]
        if unknown:
            raise ValueError(f"{name}: degradation {unknown[0]!r} is not one of {', '.join(LABELS)}")
        if not counts or max(counts) > len(kinds):
            raise ValueError(f"{name}: counts={list(counts)}: give numbers up to {len(kinds)}, the number of kinds")
        self.name, self.kinds, self.counts = name, tuple(kinds), tuple(counts)
        self.noise, self.quality = noise, quality

    def draw(self, seed: int, height: int, width: int) -> Recipe:
        """The recipe for one image."""
        r = rng(seed, "eight")
        count = self.counts[int(r.integers(len(self.counts)))]
        chosen = {self.kinds[int(i)] for i in r.permutation(np.arange(len(self.kinds)))[:count]}
        steps = [draw_step(kind, seed=seed, noise=self.noise, quality=self.quality) for kind in ORDER if kind in chosen]
        return Recipe(pipeline=self.name, seed=seed, steps=(*steps, Step(kind="round")))
