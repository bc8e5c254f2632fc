"""The result of restoring a photograph: one image per seed, and measures of recovered against invented detail.

Detail that the LQ determines is the same for all seeds, and gives the LQ when it is degraded again; detail that the
prior invents differs between seeds. `uncertainty` is the spread over seeds, `consistency` the agreement with the LQ.
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

WHITE = 0.1  # standard deviation over seeds that is white in an uncertainty map, for images in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """A restored photograph.

    Attributes:
        lq: the LQ at the size at which it was restored.
        images_NCHW: the restored images, one per seed, float32 in [0, 1], on the CPU.
        seeds: the seeds.
        recipe: the degradation according to the instruction; None without an instruction.
        seconds: duration of the restoration.
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
        """The image of the first seed, CHW float32 in [0, 1]."""
        return self.images_NCHW[0]

    @property
    def array(self) -> np.ndarray:
        """The image of the first seed, HWC, with the file's dtype (uint8 or uint16)."""
        return self.photograph().rgb_HWC

    @property
    def image(self) -> Image.Image:
        """The image of the first seed in 8 bits."""
        from PIL import Image

        from restore_lab.data.image_io import to_image

        return Image.fromarray(to_image(self.tensor))

    def photograph(self, index: int = 0) -> Photograph:
        """The image of one seed, with the file's alpha channel, profile and metadata."""
        return self.lq.with_rgb(self.images_NCHW[index].permute(1, 2, 0).numpy())

    def save(self, path: str | Path, *, index: int = 0, quality: int = 95) -> Path:
        """Write the image of one seed atomically, in the format of the suffix: .png, .jpg, .webp, .tif.

        Raises:
            ValueError: for another suffix.
        """
        write_photograph(path, self.photograph(index), quality=quality)
        return Path(path)

    def consistency(self, index: int = 0) -> tuple[float, str]:
        """PSNR in dB of the image, degraded again, to the LQ, and by which degradation (degradation/instruction.py)."""
        import torch

        lq_CHW = torch.from_numpy(self.lq.rgb_HWC).permute(2, 0, 1)
        return consistency(self.images_NCHW[index], lq_CHW, self.recipe)

    def uncertainty(self) -> np.ndarray:
        """The standard deviation over seeds, averaged over channels, of images in [0, 1], (H, W).

        Raises:
            ValueError: for a single seed.
        """
        if len(self) < 2:
            raise ValueError("one seed has no spread; restore with seeds=4")
        return self.images_NCHW.std(dim=0).mean(dim=0).numpy()

    def uncertainty_map(self) -> Photograph:
        """`uncertainty` as a grey image: black where all seeds agree, white for a deviation of at least 0.1."""
        levels_HW = np.rint((self.uncertainty() / WHITE).clip(0, 1) * 255).astype(np.uint8)
        return Photograph(rgb_HWC=np.repeat(levels_HW[..., None], 3, axis=2), grey=True)

    def comparison(self) -> Photograph:
        """The LQ, the image of each seed and, for several seeds, the uncertainty map, side by side in 8 bits."""
        panels = [self.lq.floats(), *(image.permute(1, 2, 0).numpy() for image in self.images_NCHW)]
        if len(self) > 1:
            panels.append(self.uncertainty_map().floats())
        line = np.ones((panels[0].shape[0], max(2, panels[0].shape[1] // 100), 3), np.float32)
        parts = [part for panel in panels for part in (line, panel)][1:]
        levels = np.rint(np.concatenate(parts, axis=1).clip(0, 1) * 255).astype(np.uint8)
        return Photograph(rgb_HWC=levels, profile=self.lq.profile if not self.lq.grey else b"")
