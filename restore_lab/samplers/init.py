"""Where sampling starts. `sampler/init=noise|lq_noised`. The noise of an image comes from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from restore_lab.random import noise_like

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


class Noise:
    """Pure noise at the scheduler's first level."""

    def __call__(self, lq_latent_BCHW: Tensor, *, seeds: Sequence[int], scheduler: Any, schedule: Schedule) -> Tensor:
        return noise_like(lq_latent_BCHW, seeds, "init") * scheduler.init_noise_sigma


class LqNoised:
    """The LQ's latent, noised to the first timestep; a better start where the prior's last level is not pure noise."""

    def __call__(self, lq_latent_BCHW: Tensor, *, seeds: Sequence[int], scheduler: Any, schedule: Schedule) -> Tensor:
        noise_BCHW = noise_like(lq_latent_BCHW, seeds, "init")
        return schedule.add_noise(lq_latent_BCHW, noise_BCHW, int(scheduler.timesteps[0]))
