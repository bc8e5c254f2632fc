"""Captions of the images to restore, by a vision-language model. `prompt/semantic=vlm`.

It captions the LQ, the codec's reconstruction of the LQ (with lq_encoder=robust that is the LQ without its degradation,
as in SUPIR), or the HQ. A separate pass captions all images before any is restored (inference/captioning.py), so that
captioner and prior need not be in memory together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from restore_lab.config.kinds import Pixels
from restore_lab.config.validate import check_arguments

if TYPE_CHECKING:
    from restore_lab.prompts.captioner import Captioner
    from restore_lab.types import Batch

CaptionInput = Literal["lq", "reconstruction", "hq"]
TRAINING_HINT = (
    "for training caption the clean images first (restore-lab caption input=FOLDER) and train with "
    "prompt/semantic=caption"
)


@check_arguments
class Vlm:
    """The captions of the captioning pass, by the images' keys.

    Args:
        captioner: the model.
        looks_at: the image to caption: lq, reconstruction or hq.
        side: short side in pixels to which larger images are downsampled before they are captioned; SUPIR: 512.

    Attributes:
        for_restoring: True, since it has no captions in training.
        captions: by key, set by the captioning pass.

    """

    for_restoring = True

    def __init__(self, *, captioner: Captioner, looks_at: CaptionInput, side: Pixels) -> None:
        self.captioner, self.looks_at, self.side = captioner, looks_at, side
        self.captions: dict[str, str] = {}

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        """One caption per image.

        Raises:
            ValueError: for an image that the captioning pass did not see, as in training.
        """
        for key in batch.key:
            if key not in self.captions:
                raise ValueError(f"{key}: not captioned yet; {TRAINING_HINT}")
        return tuple(self.captions[key] for key in batch.key)
