"""diffusers' schedulers on a prior's own noise schedule. `sampler=ddim|ddpm|unipc|dpmpp|euler_flow|lcm`.

Betas, prediction type, zero terminal SNR and shift always come from the prior. On a flow each name stands for the same
solver's form for flows: DDIM's step is Euler's there (both follow the line through x0 and the noise), and Euler's on a
variance-preserving prior is DDIM's. Each factory takes a schedule and gives a scheduler. Where its steps stand is an
option of each (spacing.py): `timestep_spacing` and `steps_offset` on a variance-preserving prior, `flow_spacing` on a
flow, where "own" is diffusers' spacing of that scheduler.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

from restore_lab.backbones.schedule import FlowMatching, VariancePreserving
from restore_lab.samplers.spacing import SPACINGS, FlowSpacing, Spacing, check, timesteps

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


def ddim(
    schedule: Schedule, *, timestep_spacing: Spacing, steps_offset: int = 0, flow_spacing: FlowSpacing = "own"
) -> Any:
    """DDIM, deterministic (eta 0), without clipping; Euler on a flow.

    Args:
        schedule: the prior's.
        timestep_spacing: "trailing" starts at the last timestep, which zero terminal SNR needs; "leading" with
            `steps_offset` 1 is Stable Diffusion's.
        steps_offset: added to leading timesteps.
        flow_spacing: where the steps stand on a flow.
    """
    if isinstance(schedule, FlowMatching):
        return euler_flow(schedule, flow_spacing=flow_spacing)
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **_spaced_betas(schedule, timestep_spacing, steps_offset), clip_sample=False, set_alpha_to_one=True
    )
    return _checked(scheduler, schedule)


def ddpm(
    schedule: Schedule, *, timestep_spacing: Spacing, steps_offset: int = 0, flow_spacing: FlowSpacing = "own"
) -> Any:
    """DDPM's ancestral steps, which InstantIR's release takes; on a flow, fresh noise in every step (as `lcm`)."""
    if isinstance(schedule, FlowMatching):
        return lcm(schedule, original_steps=schedule.num_train_timesteps, flow_spacing=flow_spacing)
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**_spaced_betas(schedule, timestep_spacing, steps_offset), clip_sample=False)
    return _checked(scheduler, schedule)


def unipc(
    schedule: Schedule, *, timestep_spacing: Spacing, steps_offset: int = 0, flow_spacing: FlowSpacing = "own"
) -> Any:
    """UniPC: order 2, "bh2" (Zhao et al. 2023; Diff-Restorer's).

    It works in log SNR, which has no value at zero terminal SNR; there diffusers' floor of alpha stands in.
    """
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(**_multistep(schedule, timestep_spacing, steps_offset))
    return _placed(scheduler, schedule, flow_spacing)


def dpmpp(
    schedule: Schedule, *, timestep_spacing: Spacing, steps_offset: int = 0, flow_spacing: FlowSpacing = "own"
) -> Any:
    """DPM-Solver++ 2M (Lu et al. 2022)."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        **_multistep(schedule, timestep_spacing, steps_offset), algorithm_type="dpmsolver++"
    )
    return _placed(scheduler, schedule, flow_spacing)


def euler_flow(
    schedule: Schedule,
    *,
    timestep_spacing: Spacing = "trailing",
    steps_offset: int = 0,
    flow_spacing: FlowSpacing = "own",
) -> Any:
    """Euler along the flow with the prior's shift; DDIM on a variance-preserving prior."""
    if not isinstance(schedule, FlowMatching):
        return ddim(schedule, timestep_spacing=timestep_spacing, steps_offset=steps_offset)
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=schedule.num_train_timesteps, shift=schedule.shift)
    return _placed(scheduler, schedule, flow_spacing)


def lcm(
    schedule: Schedule,
    *,
    original_steps: int,
    timestep_spacing: Literal["solver", "leading", "linspace", "trailing"] = "solver",
    steps_offset: int = 0,
    flow_spacing: FlowSpacing = "own",
) -> Any:
    """Latent consistency sampling (Luo et al. 2023): a clean latent each step, and fresh noise for the next.

    Args:
        schedule: the prior's.
        original_steps: of the solver that the model was distilled from.
        timestep_spacing: "solver" takes some of that solver's timesteps; another may stand between them.
        steps_offset: added to leading timesteps.
        flow_spacing: where the steps stand on a flow.
    """
    if isinstance(schedule, FlowMatching):
        from diffusers import FlowMatchLCMScheduler

        scheduler = FlowMatchLCMScheduler(num_train_timesteps=schedule.num_train_timesteps, shift=schedule.shift)
        return _placed(scheduler, schedule, flow_spacing)
    from diffusers import LCMScheduler

    scheduler: Any = LCMScheduler(
        **_betas(schedule), original_inference_steps=original_steps, clip_sample=False, set_alpha_to_one=True
    )
    if timestep_spacing == "solver":
        if steps_offset:
            raise ValueError(f"steps_offset={steps_offset} moves leading timesteps only; set timestep_spacing=leading")
        return scheduler
    own = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
        times = timesteps(schedule, timestep_spacing, steps=num_inference_steps, offset=steps_offset)
        own(timesteps=[int(t) for t in times], device=device)

    scheduler.set_timesteps = set_timesteps
    return scheduler


def betas(schedule: VariancePreserving) -> list[float]:
    """The betas that give this schedule's cumulative alphas."""
    import torch

    bar = schedule.alphas_cumprod.double()
    return (1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])).tolist()


def _betas(schedule: Schedule) -> dict[str, Any]:
    assert isinstance(schedule, VariancePreserving)
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        "trained_betas": betas(schedule),
        "prediction_type": schedule.prediction_type,
    }


def _spaced_betas(schedule: Schedule, timestep_spacing: Spacing, steps_offset: int) -> dict[str, Any]:
    if timestep_spacing not in SPACINGS:
        raise ValueError(f"timestep_spacing={timestep_spacing!r} is not known; one of {', '.join(SPACINGS)}")
    return {**_betas(schedule), "timestep_spacing": timestep_spacing, "steps_offset": steps_offset}


def _multistep(schedule: Schedule, timestep_spacing: Spacing, steps_offset: int) -> dict[str, Any]:
    """What the multistep solvers need of a prior."""
    if isinstance(schedule, FlowMatching):
        return {
            "num_train_timesteps": schedule.num_train_timesteps,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": schedule.shift,
        }
    assert isinstance(schedule, VariancePreserving)
    zero_snr = float(schedule.alphas_cumprod[-1]) == 0.0  # the flag changes no other beta, and sets the floor
    return {**_spaced_betas(schedule, timestep_spacing, steps_offset), "rescale_betas_zero_snr": zero_snr}


def _checked(scheduler: Any, schedule: Schedule) -> Any:
    """A scheduler that refuses an offset without effect and times that the prior does not have."""
    own, config = scheduler.set_timesteps, scheduler.config

    @functools.wraps(own)  # diffusers' pipelines read from the signature what they may ask for
    def set_timesteps(*words: Any, **settings: Any) -> None:
        own(*words, **settings)
        check(scheduler.timesteps, schedule, spacing=config.timestep_spacing, offset=config.steps_offset)

    scheduler.set_timesteps = set_timesteps
    return scheduler


def _placed(scheduler: Any, schedule: Schedule, flow_spacing: FlowSpacing) -> Any:
    """A scheduler whose steps stand on a flow as `flow_spacing` says, shifted as the prior's are."""
    if not isinstance(schedule, FlowMatching):
        return _checked(scheduler, schedule)
    if flow_spacing == "own":
        return scheduler
    own = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
        import torch

        own(num_inference_steps, device=device)
        times = timesteps(schedule, flow_spacing, steps=num_inference_steps, offset=0)
        highest = float(scheduler.sigmas[0])  # a multistep solver's lies below 1, where log SNR has a value
        sigmas = (schedule.time(times / schedule.num_train_timesteps) / schedule.num_train_timesteps).clamp(max=highest)
        scheduler.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).to(scheduler.sigmas)
        scheduler.timesteps = (sigmas * schedule.num_train_timesteps).to(scheduler.timesteps)

    scheduler.set_timesteps = set_timesteps
    return scheduler
