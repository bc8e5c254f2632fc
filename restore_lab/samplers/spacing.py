"""Timestep spacing: a sampler's steps on a schedule. `sampler.scheduler.timestep_spacing=leading|linspace|trailing`.

For T timesteps and n steps (Lin et al. 2023, Table 2): "leading" is i (T // n) + offset, the default of Stable
Diffusion and SDXL with offset 1 (30 steps: 958, 925, ..., 34, 1); "linspace" is n evenly spaced timesteps from the last
to the first; "trailing" is T - i T / n - 1, from the last timestep. "sgm", of SUPIR's release, is (T - 1) (1 - i / n),
rounded down. For a flow, timesteps are real numbers from T down: "trailing" and "sgm" are T (1 - i / n), "linspace"
ends at 1; "leading" would end at 0, where there is no noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from restore_lab.backbones.schedule import FlowMatching

if TYPE_CHECKING:
    from torch import Tensor

    from restore_lab.backbones.schedule import Schedule

Spacing = Literal["leading", "linspace", "trailing"]
FlowSpacing = Literal["own", "linspace", "trailing"]
SPACINGS = get_args(Spacing)


def timesteps(schedule: Schedule, spacing: str, *, steps: int, offset: int = 0) -> Tensor:
    """The timesteps of n steps, (n,), float64, descending; integers for a variance-preserving schedule.

    Args:
        schedule: the prior's noise schedule.
        spacing: "leading", "linspace", "trailing" or "sgm".
        steps: n.
        offset: added to the timesteps of "leading".

    Raises:
        ValueError: for an unknown spacing, or timesteps outside the schedule.
    """
    total, flow = schedule.num_train_timesteps, isinstance(schedule, FlowMatching)
    i = torch.arange(steps, dtype=torch.float64)
    if spacing == "linspace":
        times = torch.linspace(total if flow else total - 1, 1 if flow else 0, steps, dtype=torch.float64)
        times = times if flow else times.round()
    elif spacing == "leading":
        if flow:
            raise ValueError("timestep_spacing=leading ends where a flow has no noise; there are: linspace, trailing")
        times = (steps - 1 - i) * (total // steps) + offset
    elif spacing == "trailing":
        times = total * (1 - i / steps)
        times = times if flow else times.round() - 1
    elif spacing == "sgm":
        times = total * (1 - i / steps) if flow else ((total - 1) * (1 - i / steps)).floor()
    else:
        raise ValueError(f"timestep_spacing={spacing!r} is not known; one of {', '.join(SPACINGS)}, sgm")
    check(times, schedule, spacing=spacing, offset=offset)
    return times


def check(times: Tensor, schedule: Schedule, *, spacing: str, offset: int) -> None:
    """Check that the timesteps are in the schedule and that the offset is used.

    Raises:
        ValueError: for timesteps outside the schedule, or an offset with another spacing than "leading".
    """
    if offset and spacing != "leading":
        raise ValueError(f"steps_offset={offset} moves leading timesteps only; set timestep_spacing=leading with it")
    low, high = float(times[-1]), float(times[0])
    if low < 0 or high > schedule.top:
        raise ValueError(
            f"timestep_spacing={spacing} with steps_offset={offset} takes {len(times)} steps to timesteps "
            f"{high:g} to {low:g}, and the prior has 0 to {schedule.top:g}"
        )
