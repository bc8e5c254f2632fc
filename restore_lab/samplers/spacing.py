"""Where the steps of a sampler stand on a schedule. `sampler.scheduler.timestep_spacing=leading|linspace|trailing`.

Of T timesteps and n steps (Lin et al. 2023, Table 2): leading takes i (T // n) + offset, which Stable Diffusion and
SDXL have with offset 1 (for 30 steps 958, 925, ..., 34, 1); linspace spreads n steps from the last timestep to the
first; trailing takes T - i T / n - 1, which starts at the last timestep. sgm, SUPIR's release's, takes the whole part
of (T - 1) (1 - i / n). On a flow times are real numbers from T down: trailing and sgm take T (1 - i / n), linspace
ends at 1; leading would end at 0, where there is no noise to remove.
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
    """The times of n steps, float64, descending; whole numbers on a variance-preserving schedule.

    Args:
        schedule: the prior's.
        spacing: leading, linspace, trailing or sgm.
        steps: n.
        offset: added to leading ones.

    Raises:
        ValueError: for an unknown spacing, or times that the schedule does not have.
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
    """Refuse an offset without effect, and times that the schedule does not have.

    Raises:
        ValueError: for these.
    """
    if offset and spacing != "leading":
        raise ValueError(f"steps_offset={offset} moves leading timesteps only; set timestep_spacing=leading with it")
    low, high = float(times[-1]), float(times[0])
    if low < 0 or high > schedule.top:
        raise ValueError(
            f"timestep_spacing={spacing} with steps_offset={offset} takes {len(times)} steps to timesteps "
            f"{high:g} to {low:g}, and the prior has 0 to {schedule.top:g}"
        )
