"""diffusers schedulers with a prior's noise schedule. `sampler=ddim|ddpm|unipc|dpmpp|euler_flow|lcm`.

Betas, prediction type, zero terminal SNR and shift always come from the prior. For a flow prior each name selects the
flow version of the solver: DDIM becomes Euler (both move along the line through x0 and the noise), and Euler becomes
DDIM for a variance-preserving prior. Each factory takes a schedule and returns a scheduler. The spacing of the steps
(spacing.py) is set by `timestep_spacing` and `steps_offset` for a variance-preserving prior, and by `flow_spacing` for
a flow prior, where "own" is the scheduler's default in diffusers.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

from restore_lab.backbones.schedule import FlowMatching, VariancePreserving
from restore_lab.samplers.spacing import FlowSpacing, Spacing, check, timesteps

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


def ddim(
    schedule: Schedule, *, timestep_spacing: Spacing, steps_offset: int = 0, flow_spacing: FlowSpacing = "own"
) -> Any:
    """DDIM, deterministic (eta 0), without clipping; Euler for a flow prior.

    Args:
        schedule: the prior's noise schedule.
        timestep_spacing: "trailing" starts at the last timestep, as zero terminal SNR requires; "leading" with
            `steps_offset` 1 is Stable Diffusion's default.
        steps_offset: added to the timesteps of "leading".
        flow_spacing: spacing of the steps for a flow prior.
    """
    if isinstance(schedule, FlowMatching):
        return euler_flow(schedule, flow_spacing=flow_spacing)
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        **_spaced_betas(schedule, timestep_spacing, steps_offset), clip_sample=False, set_alpha_to_one=True
    )
    return _checked(scheduler, schedule)


def ddpm(
    schedule: Schedule, *, timestep_spacing: Spacing, steps_offset: int = 0, flow_spacing: FlowSpacing = "own"
) -> Any:
    """DDPM's ancestral sampling, as in InstantIR's release; for a flow prior `lcm`, with fresh noise in every step."""
    if isinstance(schedule, FlowMatching):
        return lcm(schedule, original_steps=schedule.num_train_timesteps, flow_spacing=flow_spacing)
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(**_spaced_betas(schedule, timestep_spacing, steps_offset), clip_sample=False)
    return _checked(scheduler, schedule)


def unipc(
    schedule: Schedule, *, timestep_spacing: Spacing, steps_offset: int = 0, flow_spacing: FlowSpacing = "own"
) -> Any:
    """UniPC of order 2 with "bh2" (Zhao et al. 2023), as in Diff-Restorer.

    It works in log SNR, which is minus infinity at zero terminal SNR; diffusers' lower bound of alpha is used there.
    """
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(**_multistep(schedule, timestep_spacing, steps_offset))
    return _placed(scheduler, schedule, flow_spacing)


def dpmpp(
    schedule: Schedule, *, timestep_spacing: Spacing, steps_offset: int = 0, flow_spacing: FlowSpacing = "own"
) -> Any:
    """DPM-Solver++ 2M (Lu et al. 2022)."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

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
    """Euler along the flow, with the prior's shift; DDIM for a variance-preserving prior."""
    if not isinstance(schedule, FlowMatching):
        return ddim(schedule, timestep_spacing=timestep_spacing, steps_offset=steps_offset)
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

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
    """Latent consistency sampling (Luo et al. 2023): each step predicts a clean latent and adds fresh noise.

    Args:
        schedule: the prior's noise schedule.
        original_steps: number of steps of the solver in the distillation.
        timestep_spacing: "solver" selects from that solver's timesteps; the others may take timesteps between them.
        steps_offset: added to the timesteps of "leading".
        flow_spacing: spacing of the steps for a flow prior.
    """
    if isinstance(schedule, FlowMatching):
        from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMScheduler

        scheduler = FlowMatchLCMScheduler(num_train_timesteps=schedule.num_train_timesteps, shift=schedule.shift)
        return _placed(scheduler, schedule, flow_spacing)
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

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
    """The betas of the schedule's cumulative alphas."""
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
    return {**_betas(schedule), "timestep_spacing": timestep_spacing, "steps_offset": steps_offset}


def _multistep(schedule: Schedule, timestep_spacing: Spacing, steps_offset: int) -> dict[str, Any]:
    """The prior's settings for the multistep solvers."""
    if isinstance(schedule, FlowMatching):
        return {
            "num_train_timesteps": schedule.num_train_timesteps,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": schedule.shift,
        }
    assert isinstance(schedule, VariancePreserving)
    zero_snr = float(schedule.alphas_cumprod[-1]) == 0.0  # changes no other beta, but sets the lower bound of alpha
    return {**_spaced_betas(schedule, timestep_spacing, steps_offset), "rescale_betas_zero_snr": zero_snr}


def _checked(scheduler: Any, schedule: Schedule) -> Any:
    """The scheduler, whose `set_timesteps` raises for an unused offset and for timesteps outside the schedule."""
    own, config = scheduler.set_timesteps, scheduler.config

    @functools.wraps(own)  # diffusers' pipelines inspect the signature
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        own(*args, **kwargs)
        check(scheduler.timesteps, schedule, spacing=config.timestep_spacing, offset=config.steps_offset)

    scheduler.set_timesteps = set_timesteps
    return scheduler


def _placed(scheduler: Any, schedule: Schedule, flow_spacing: FlowSpacing) -> Any:
    """The scheduler; for a flow prior with the timesteps of `flow_spacing`, shifted as the prior's schedule."""
    if not isinstance(schedule, FlowMatching):
        return _checked(scheduler, schedule)
    if flow_spacing == "own":
        return scheduler
    own = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
        import torch

        own(num_inference_steps, device=device)
        times = timesteps(schedule, flow_spacing, steps=num_inference_steps, offset=0)
        highest = float(scheduler.sigmas[0])  # below 1 for a multistep solver, which needs a finite log SNR
        sigmas = (schedule.time(times / schedule.num_train_timesteps) / schedule.num_train_timesteps).clamp(max=highest)
        scheduler.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).to(scheduler.sigmas)
        scheduler.timesteps = (sigmas * schedule.num_train_timesteps).to(scheduler.timesteps)

    scheduler.set_timesteps = set_timesteps
    return scheduler
