"""Names of degradation steps in text prompts and as class labels: DRA's words, and Diff-Restorer's eight labels.

One table for every kind of step that a pipeline draws. SPIRE's instructions are in the steps themselves, with their
parameters (`Step.says`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restore_lab.types import Recipe, Step

# Diff-Restorer's labels, in its paper's order (section IV-A, the degradations).
LABELS = ("noise", "low_light", "haze", "rain", "raindrop", "snow", "blur", "jpeg")
UNNAMED = ("usm", "round")  # sharpening of the HQ and rounding to 8 bit are no visible degradations
# Kind of step -> word in a text prompt, label. No label is for low resolution; it counts as blur, which loses the same
# detail.
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


def degradation_word(step: Step) -> str:
    """The word for a step in a text prompt; empty for one without visible effect, or of an unknown kind."""
    if step.kind == "blur" and step.params.get("family") == "sinc":
        return "ringing"
    return NAMES.get(step.kind, ("", ""))[0]


def labels(recipe: Recipe) -> tuple[bool, ...]:
    """Multi-hot labels: which of the eight degradations a recipe has, in the order of `LABELS`."""
    found = {NAMES[kind][1] for kind in recipe.kinds if kind in NAMES}
    return tuple(label in found for label in LABELS)
