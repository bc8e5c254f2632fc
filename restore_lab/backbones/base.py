"""What every frozen latent prior is: codec, text encoders, noise schedule and a denoiser that shows its features.

The families differ in their denoiser's loop alone: unet.py (SD, SDXL) and mmdit.py (SD3). Shapes: z (B, C, H, W)
normalised latents, t (B,) timesteps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from restore_lab.backbones.codec.codec import Codec
from restore_lab.backbones.schedule import Schedule
from restore_lab.backbones.text.clip import TextEncoder
from restore_lab.types import Cond, Edit, Tap, identity


class Backbone(nn.Module, ABC):
    """A frozen latent diffusion prior; always in eval mode, no parameter requires a gradient.

    Attributes:
        family: "unet" or "mmdit".
        taps: every place an edit is shown, in the order visited.
        schedule: prediction type, alpha(t), sigma(t).
        codec: images in [0, 1] to latents and back.
        multiple: image sides must be multiples of this, so that no level of the denoiser meets an odd size.
    """

    family: str
    taps: tuple[Tap, ...]
    multiple: int

    def __init__(self, *, codec: Codec, text: TextEncoder, schedule: Schedule) -> None:
        super().__init__()
        self.codec, self.text, self.schedule = codec, text, schedule

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The diffusers module."""

    @property
    @abstractmethod
    def token_width(self) -> int:
        """The width of a text token as the denoiser reads it."""

    @property
    @abstractmethod
    def temb_width(self) -> int:
        """The width of the embedding of timestep, pooled text and size that an edit is shown."""

    def freeze(self) -> None:
        """No gradients, eval mode: a prior is not trained here."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: a prior is not trained, whatever the module around it does."""
        return super().train(False)

    @abstractmethod
    def embed(
        self, texts: Sequence[str], size: tuple[int, int], *, originals: Sequence[tuple[int, int]] | None = None
    ) -> Cond:
        """The condition for one text per image.

        Args:
            texts: one string an image; empty strings are the null condition.
            size: (height, width) of the images in pixels, which SDXL is told (original size, crop 0, target size).
            originals: (height, width) that each image had before it was brought to `size`; `size` if none are given.
        """

    @abstractmethod
    def forward(self, z_BCHW: Tensor, t_B: Tensor, cond: Cond, at: Edit = identity, carry: Any = None) -> Tensor:
        """What the prior predicts (`schedule.prediction_type`) at z, in z's dtype.

        Args:
            z_BCHW: noisy normalised latents.
            t_B: timesteps, one an image.
            cond: one guidance branch, from `embed`.
            at: called at every tap; pure, its state travels in `carry`.
            carry: the edit's state before the first tap.
        """


def extra_stream(visual_BLD: Tensor | None, temb_BD: Tensor) -> dict[str, Any] | None:
    """What the attention processors are told besides: a visual stream's tokens and the time; None for none.

    Of all keywords diffusers hands this one to processors that know it and says nothing where they do not.
    """
    return None if visual_BLD is None else {"ip_hidden_states": (visual_BLD, temb_BD)}
