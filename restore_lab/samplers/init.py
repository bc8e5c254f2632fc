"""Where sampling starts. `sampler/init=noise|lq_noised`. The noise of an image comes from its own seed.

Starts are latents z_t = alpha x0 + sigma noise at the first timestep t, as the prior counts it.
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
    """The LQ's latent, noised to the first timestep; a better start where the prior's last level is not pure noise."""

    def __call__(self, lq_latent_BCHW: Tensor, *, seeds: Sequence[int], t: float, schedule: Schedule) -> Tensor:
        return schedule.add_noise(lq_latent_BCHW, noise_like(lq_latent_BCHW, seeds, "init"), t)
