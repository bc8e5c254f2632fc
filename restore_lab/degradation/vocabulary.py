"""What the steps of a recipe are called outside it: DRA's words for a bad image, and Diff-Restorer's eight labels.

One table over every kind of step that a pipeline draws. SPIRE's instructions stand in the steps themselves, with their
numbers (`Step.says`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restore_lab.types import Recipe, Step

# Diff-Restorer's labels, in its paper's order (section III-B).
LABELS = ("noise", "low_light", "haze", "rain", "raindrop", "snow", "blur", "jpeg")
SILENT = ("usm", "round")  # sharpening of the HQ, and rounding to 8 bit: nothing is wrong with an image for these
# Kind of step: what is wrong with the image, and the label. The eight have none for a low resolution, which loses fine
# detail as blur does.
NAMES = {
    "blur": ("blurry", "blur"),
    "motion_blur": ("motion blur", "blur"),
    "downsample": ("low resolution", "blur"),
    "resize": ("low resolution", "blur"),
    "noise": ("noisy", "noise"),
    "jpeg": ("compressed", "jpeg"),
    "low_light": ("low light", "low_light"),
    "haze": ("hazy", "haze"),
    "rain": ("rainy", "rain"),
    "raindrop": ("raindrops on the lens", "raindrop"),
    "snow": ("snowy", "snow"),
}


def fault(step: Step) -> str:
    """What the step made wrong with an image; empty for one that leaves nothing to see, or that is not known here."""
    if step.kind == "blur" and step.params.get("family") == "sinc":
        return "ringing"
    return NAMES.get(step.kind, ("", ""))[0]


def labels(recipe: Recipe) -> tuple[bool, ...]:
    """Which of the eight degradations a recipe holds, in the order of `LABELS`."""
    found = {NAMES[kind][1] for kind in recipe.kinds if kind in NAMES}
    return tuple(label in found for label in LABELS)
