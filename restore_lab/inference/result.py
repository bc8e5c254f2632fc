"""What restoring one photograph gave: one image a seed, and what tells recovered detail from invented detail.

Detail that the LQ determines is the same whatever the noise that sampling starts from, and degrades into the LQ again;
detail that the prior makes up differs from seed to seed. `uncertainty` maps the first, `consistency` measures the
second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from restore_lab.data.photograph import Photograph
from restore_lab.data.photograph_file import write_photograph
from restore_lab.degradation.instruction import consistency

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from restore_lab.types import Recipe

WHITE = 0.1  # the standard deviation over seeds, in [0, 1], that a map shows as white


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """A restored photograph.

    Attributes:
        lq: what was restored, enlarged if that was asked for.
        images_NCHW: the restored images, one a seed, float32 in [0, 1], on the CPU.
        seeds: the seeds.
        recipe: what the instruction says was done; None if none was given.
        seconds: how long it took.
    """

    lq: Photograph
    images_NCHW: Tensor
    seeds: tuple[int, ...]
    recipe: Recipe | None
    seconds: float

    def __len__(self) -> int:
        return len(self.images_NCHW)

    @property
    def tensor(self) -> Tensor:
        """The first seed's image, CHW float32 in [0, 1]."""
        return self.images_NCHW[0]

    @property
    def array(self) -> np.ndarray:
        """The first seed's image, HWC, in the levels of the file (uint8 or uint16)."""
        return self.photograph().rgb_HWC

    @property
    def image(self) -> Image.Image:
        """The first seed's image in 8 bits."""
        from PIL import Image

        from restore_lab.data.image_io import to_image

        return Image.fromarray(to_image(self.tensor))

    def photograph(self, variant: int = 0) -> Photograph:
        """The image of one seed with everything else that the file held."""
        return self.lq.with_rgb(self.images_NCHW[variant].permute(1, 2, 0).numpy())

    def save(self, path: str | Path, *, variant: int = 0, quality: int = 95) -> Path:
        """Write the image of one seed, whole or not at all, as the suffix says: .png, .jpg, .webp, .tif.

        Raises:
            ValueError: for another suffix.
        """
        write_photograph(path, self.photograph(variant), quality=quality)
        return Path(path)

    def consistency(self, variant: int = 0) -> tuple[float, str]:
        """PSNR, in dB, of the image degraded again against the LQ, and how (degradation/instruction.py)."""
        import torch

        lq_CHW = torch.from_numpy(self.lq.rgb_HWC).permute(2, 0, 1)
        return consistency(self.images_NCHW[variant], lq_CHW, self.recipe)

    def uncertainty(self) -> np.ndarray:
        """HW: the standard deviation over the seeds, mean over the channels, in the images' range of [0, 1].

        Raises:
            ValueError: for a single seed.
        """
        if len(self) < 2:
            raise ValueError("one seed has no spread; restore with seeds=4")
        return self.images_NCHW.std(dim=0).mean(dim=0).numpy()

    def uncertainty_map(self) -> Photograph:
        """`uncertainty` as a grey picture: black where all seeds agree, white from a deviation of 0.1 on."""
        levels_HW = np.rint((self.uncertainty() / WHITE).clip(0, 1) * 255).astype(np.uint8)
        return Photograph(rgb_HWC=np.repeat(levels_HW[..., None], 3, axis=2), grey=True)

    def comparison(self) -> Photograph:
        """The LQ, the image of each seed and, of several, their uncertainty, side by side in 8 bits."""
        panels = [self.lq.floats(), *(image.permute(1, 2, 0).numpy() for image in self.images_NCHW)]
        if len(self) > 1:
            panels.append(self.uncertainty_map().floats())
        line = np.ones((panels[0].shape[0], max(2, panels[0].shape[1] // 100), 3), np.float32)
        parts = [part for panel in panels for part in (line, panel)][1:]
        levels = np.rint(np.concatenate(parts, axis=1).clip(0, 1) * 255).astype(np.uint8)
        return Photograph(rgb_HWC=levels, profile=self.lq.profile if not self.lq.grey else b"")
