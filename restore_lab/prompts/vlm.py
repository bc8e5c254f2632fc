"""Captions of the images at hand by a vision-language model. `prompt/semantic=vlm`.

It looks at the LQ, at what the codec makes of the LQ's latent (with lq_encoder=robust the LQ without its degradation,
as SUPIR does), or at the HQ. The captions are made in a pass of their own before anything is restored
(inference/captioning.py), so that captioner and prior need not be in memory together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from restore_lab.prompts.captioner import Captioner
    from restore_lab.types import Batch

Look = Literal["lq", "reconstruction", "hq"]
INSTEAD = (
    "for training caption the clean images first (restore-lab caption input=FOLDER) and train with "
    "prompt/semantic=caption"
)


class Vlm:
    """The captions that the pass has made, by the images' keys.

    Args:
        captioner: the model.
        looks_at: lq, reconstruction or hq.
        side: short side in pixels that larger images are shrunk to before they are looked at; SUPIR: 512.

    Attributes:
        for_restoring: it says nothing of images that are trained on.

    Raises:
        ValueError: for something else to look at.
    """

    for_restoring = True

    def __init__(self, *, captioner: Captioner, looks_at: Look, side: int) -> None:
        if looks_at not in get_args(Look):
            raise ValueError(f"prompt.semantic.looks_at={looks_at!r} is not known; one of {', '.join(get_args(Look))}")
        self.captioner, self.looks_at, self.side = captioner, looks_at, side
        self.said: dict[str, str] = {}

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        """The captions.

        Raises:
            ValueError: for an image that the pass has not seen, as in training.
        """
        for key in batch.key:
            if key not in self.said:
                raise ValueError(f"{key}: not captioned yet; {INSTEAD}")
        return tuple(self.said[key] for key in batch.key)
