"""diffusers' schedulers on a prior's own noise schedule. `sampler=ddim|ddpm|unipc|dpmpp|euler_flow|lcm`.

Betas, prediction type, zero terminal SNR and shift always come from the prior. On a flow each name stands for the same
solver's form for flows: DDIM's step is Euler's there (both follow the line through x0 and the noise), and Euler's on a
variance-preserving prior is DDIM's. Each factory takes a schedule and gives a scheduler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from restore_lab.backbones.schedule import FlowMatching, VariancePreserving

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


def ddim(schedule: Schedule, *, timestep_spacing: str) -> Any:
    """DDIM, deterministic (eta 0), without clipping; Euler on a flow.

    Args:
        schedule: the prior's.
        timestep_spacing: "trailing" starts at the last timestep, which zero terminal SNR needs; "leading" is SD 1.5's.
    """
    if isinstance(schedule, FlowMatching):
        return euler_flow(schedule)
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        **_betas(schedule), timestep_spacing=timestep_spacing, clip_sample=False, set_alpha_to_one=True
    )


def ddpm(schedule: Schedule, *, timestep_spacing: str) -> Any:
    """DDPM's ancestral steps, which InstantIR's release takes; on a flow, fresh noise in every step (as `lcm`)."""
    if isinstance(schedule, FlowMatching):
        return lcm(schedule, original_steps=schedule.num_train_timesteps)
    from diffusers import DDPMScheduler

    return DDPMScheduler(**_betas(schedule), timestep_spacing=timestep_spacing, clip_sample=False)


def unipc(schedule: Schedule, *, timestep_spacing: str) -> Any:
    """UniPC: order 2, "bh2" (Zhao et al. 2023; Diff-Restorer's).

    It works in log SNR, which has no value at zero terminal SNR; there diffusers' floor of alpha stands in.
    """
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(**_multistep(schedule, timestep_spacing))


def dpmpp(schedule: Schedule, *, timestep_spacing: str) -> Any:
    """DPM-Solver++ 2M (Lu et al. 2022)."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(**_multistep(schedule, timestep_spacing), algorithm_type="dpmsolver++")


def euler_flow(schedule: Schedule) -> Any:
    """Euler along the flow with the prior's shift; DDIM on a variance-preserving prior."""
    if not isinstance(schedule, FlowMatching):
        return ddim(schedule, timestep_spacing="trailing")
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=schedule.num_train_timesteps, shift=schedule.shift)


def lcm(schedule: Schedule, *, original_steps: int) -> Any:
    """Latent consistency sampling (Luo et al. 2023): a clean latent each step, and fresh noise for the next.

    Args:
        schedule: the prior's.
        original_steps: of the solver that the model was distilled from.
    """
    if isinstance(schedule, FlowMatching):
        from diffusers import FlowMatchLCMScheduler

        return FlowMatchLCMScheduler(num_train_timesteps=schedule.num_train_timesteps, shift=schedule.shift)
    from diffusers import LCMScheduler

    return LCMScheduler(
        **_betas(schedule), original_inference_steps=original_steps, clip_sample=False, set_alpha_to_one=True
    )


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


def _multistep(schedule: Schedule, timestep_spacing: str) -> dict[str, Any]:
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
    return {**_betas(schedule), "timestep_spacing": timestep_spacing, "rescale_betas_zero_snr": zero_snr}
