"""The schedule against diffusers' DDIM and DDPM schedulers, and its conversions against each other."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from restore_lab.backbones.schedule import PREDICTION_TYPES, Schedule
from tests.helpers.rounding import close

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIGS = [
    SD,
    {**SD, "rescale_betas_zero_snr": True},
    {"beta_schedule": "linear", "num_train_timesteps": 100},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
]


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x0, noise = torch.randn(2, 4, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    return x0, noise


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, DDPMScheduler])
def test_schedules_equal_diffusers(config, scheduler_class) -> None:
    ours, theirs = Schedule.from_config(config), scheduler_class(**config)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    x0, noise = tensors()
    t = torch.tensor([0, 1, ours.num_train_timesteps // 2, ours.num_train_timesteps - 1])
    assert close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t))
    assert close(ours.velocity(x0, noise, t), theirs.get_velocity(x0, noise, t))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_prediction_conversions_invert_each_other(prediction_type) -> None:
    schedule = Schedule.from_config({**SD, "prediction_type": prediction_type})
    x0, noise = tensors()
    t = torch.tensor([0, 300, 700, 999])
    z = schedule.add_noise(x0, noise, t)
    target = schedule.target(x0, noise, t)
    torch.testing.assert_close(schedule.to_x0(target, z, t), x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.to_noise(target, z, t), noise, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.from_x0(x0, z, t), target, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.to_x0(target[:1], z[:1], 0), x0[:1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", [kind for kind in PREDICTION_TYPES if kind != "flow"])
def test_to_x0_is_what_ddim_predicts(prediction_type) -> None:
    config = {**SD, "prediction_type": prediction_type}
    scheduler = DDIMScheduler(**config, clip_sample=False)
    scheduler.set_timesteps(1000)
    out, z = tensors(1)
    theirs = scheduler.step(out, 500, z).pred_original_sample
    ours = Schedule.from_config(config).to_x0(out, z, 500)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_zero_terminal_snr_is_pure_noise_and_stays_finite() -> None:
    x0, noise = tensors()
    last = torch.full((4,), 999)
    velocity = Schedule.from_config({**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    assert float(velocity.alpha(999)) == 0.0
    assert float(velocity.sigma(999)) == 1.0
    assert torch.equal(velocity.add_noise(x0, noise, last), noise)
    torch.testing.assert_close(velocity.to_x0(-x0, noise, last), x0)
    epsilon = Schedule.from_config({**SD, "rescale_betas_zero_snr": True})
    wrong = epsilon.to_x0(noise + 0.5, noise, last)
    assert wrong.isfinite().all()
    torch.testing.assert_close(epsilon.from_x0(wrong, noise, last), noise + 0.5)


def test_variance_is_preserved_and_falls_monotonically() -> None:
    schedule = Schedule.from_config(SD)
    t = torch.arange(1000)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones(1000))
    assert (schedule.alpha(t).diff() < 0).all()


@pytest.mark.parametrize(
    ("config", "word"), [({"prediction_type": "score"}, "score"), ({"beta_schedule": "sigmoid"}, "sigmoid")]
)
def test_unknown_settings_are_named(config, word) -> None:
    with pytest.raises(ValueError, match=word):
        Schedule.from_config(config)
