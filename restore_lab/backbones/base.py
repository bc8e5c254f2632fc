"""The interface of frozen latent priors: codec, text encoders, noise schedule, and a denoiser with taps for edits.

The families differ only in the denoiser's forward loop: unet.py (SD, SDXL) and mmdit.py (SD3). Shapes: z (B, C, H, W)
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
from restore_lab.types import Cond, Edit, Tap, identity_edit


class Backbone(nn.Module, ABC):
    """A frozen latent diffusion prior, always in eval mode and without gradients for its parameters.

    Attributes:
        family: "unet" or "mmdit".
        taps: all points of the denoiser where an edit is called, in forward order.
        schedule: prediction type, alpha(t), sigma(t).
        codec: images in [0, 1] to latents and back.
        multiple: image sides must be multiples of this, such that all levels of the denoiser can be downsampled.
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
        """The width of the denoiser's text tokens."""

    @property
    @abstractmethod
    def temb_width(self) -> int:
        """The width of the time embedding (of timestep, pooled text and size) that edits receive."""

    def freeze(self) -> None:
        """Turn off gradients and set eval mode."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever mode the parent module sets."""
        return super().train(False)

    @abstractmethod
    def embed(
        self, texts: Sequence[str], size: tuple[int, int], *, originals: Sequence[tuple[int, int]] | None = None
    ) -> Cond:
        """The condition for one text per image.

        Args:
            texts: one string per image; empty strings are the null condition.
            size: (height, width) of the images in pixels, for SDXL's size conditioning (original, crop 0, target).
            originals: (height, width) of each image before it was resized to `size`; None for `size`.
        """

    @abstractmethod
    def forward(self, z_BCHW: Tensor, t_B: Tensor, cond: Cond, at: Edit = identity_edit, carry: Any = None) -> Tensor:
        """The prior's prediction (`schedule.prediction_type`) at z, (B, C, H, W), in z's dtype.

        Args:
            z_BCHW: noisy normalised latents.
            t_B: timesteps, one per image.
            cond: one guidance branch, from `embed`.
            at: called at every tap; pure, its state travels in `carry`.
            carry: the edit's state before the first tap.
        """


def extra_stream(visual_BLD: Tensor | None, temb_BD: Tensor) -> dict[str, Any] | None:
    """Keywords for the attention processors: a visual stream's tokens and the time embedding; None without tokens.

    The keyword is `ip_hidden_states`, because diffusers passes it on without a warning for processors that ignore it.
    """
    return None if visual_BLD is None else {"ip_hidden_states": (visual_BLD, temb_BD)}
