"""The initial latents of sampling. `sampler/init=noise|lq_noised`. Each image's noise is drawn from its own seed.

Shapes: latents z_t = alpha x0 + sigma noise, (B, C, h, w), at the first timestep t of the prior's schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from restore_lab.random import noise_like

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


class Noise:
    """Pure noise."""

    def __call__(self, lq_latent_BCHW: Tensor, *, seeds: Sequence[int], t: float, schedule: Schedule) -> Tensor:
        return noise_like(lq_latent_BCHW, seeds, "init")


class LqNoised:
    """The LQ latent with noise added, for priors without zero terminal SNR, whose last timestep is not pure noise."""

    def __call__(self, lq_latent_BCHW: Tensor, *, seeds: Sequence[int], t: float, schedule: Schedule) -> Tensor:
        return schedule.add_noise(lq_latent_BCHW, noise_like(lq_latent_BCHW, seeds, "init"), t)
