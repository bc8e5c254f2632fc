"""Flow matching: times, targets, conversions, and losses in another prediction than the prior's."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from restore_lab.backbones.schedule import PREDICTION_TYPES, FlowMatching, Schedule, VariancePreserving
from restore_lab.config.build import build
from restore_lab.objectives.denoising import Denoising
from restore_lab.random import noise_like
from tests.helpers.toy_methods import latents, schedule


def test_the_config_chooses_the_family() -> None:
    flow = Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert isinstance(flow, FlowMatching) and flow.shift == 3.0 and flow.prediction_type == "flow"
    assert isinstance(Schedule.from_config({"_class_name": "DDIMScheduler"}), VariancePreserving)
    with pytest.raises(ValueError, match="use_dynamic_shifting"):
        Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True})


def test_the_path_and_its_target_equal_sd3s() -> None:
    """z = (1 - s) x0 + s noise as diffusers' scale_noise makes it, target noise - x0."""
    s, theirs = FlowMatching(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    x0, noise = latents(), latents(seed=1)
    t = theirs.timesteps[[10, 500, 900]]
    torch.testing.assert_close(s.add_noise(x0, noise, t), theirs.scale_noise(x0, t, noise), atol=1e-6, rtol=1e-6)
    assert torch.equal(s.target(x0, noise, t), noise - x0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_training_times_are_shifted(shift) -> None:
    """Eq. 23 of Esser et al.: s = shift u / (1 + (shift - 1) u), as diffusers' own table of timesteps has it."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    u = torch.linspace(1, 1000, 1000).flip(0) / 1000
    torch.testing.assert_close(FlowMatching(shift=shift).time(u), theirs.timesteps, atol=1e-2, rtol=1e-4)


def test_training_times_are_logit_normal() -> None:
    """u = sigmoid(N(mean, std)): quartiles of the draw, and none at the ends."""
    seeds = list(range(4000))
    for mean, std in ((0.0, 1.0), (0.5, 0.6)):
        loss = Denoising(t_min=0.0, t_max=1.0, density="logit_normal", mean=mean, std=std)
        u = loss.times(seeds, FlowMatching()) / 1000
        expected = torch.sigmoid(mean + std * torch.special.ndtri(torch.tensor([0.25, 0.5, 0.75])))
        torch.testing.assert_close(u.quantile(torch.tensor([0.25, 0.5, 0.75])), expected, atol=0.02, rtol=0.02)
        assert u.min() > 0 and u.max() < 1
    vp = schedule("v_prediction", zero_snr=True)
    uniform = Denoising(t_min=0.0, t_max=1.0)
    assert uniform.times(seeds, vp).float().mean() == pytest.approx(500, abs=20)
    # "auto" is logit-normal on a flow alone
    assert torch.equal(
        uniform.times(seeds, FlowMatching()),
        Denoising(t_min=0, t_max=1, density="logit_normal").times(seeds, FlowMatching()),
    )


def schedules() -> dict[str, Schedule]:
    kinds = [k for k in PREDICTION_TYPES if k != "flow"]
    return {kind: schedule(kind, zero_snr=False) for kind in kinds} | {"flow": FlowMatching(shift=2.0)}


@pytest.mark.parametrize("target", PREDICTION_TYPES)
@pytest.mark.parametrize("prior", PREDICTION_TYPES)
def test_any_priors_output_becomes_any_prediction(prior, target) -> None:
    s, x0, noise = schedules()[prior], latents(), latents(seed=1)
    t = s.time(torch.tensor([0.1, 0.5, 0.9]))
    z = s.add_noise(x0, noise, t)
    said = s.target(x0, noise, t)
    torch.testing.assert_close(
        s.convert(said, z, t, prediction_type=target),
        s.target(x0, noise, t, prediction_type=target),
        atol=2e-4,
        rtol=1e-3,
    )


@pytest.mark.parametrize("target", PREDICTION_TYPES)
@pytest.mark.parametrize("prior", PREDICTION_TYPES)
def test_a_loss_in_another_prediction_equals_its_formula(prior, target) -> None:
    """A perfect model has none; one that is off by a known x0 has that error, weighted as the conversion says."""
    s, x0 = schedules()[prior], latents()
    loss = Denoising(t_min=0.2, t_max=0.8, target=target)
    seeds = [1, 2, 3]
    noise = noise_like(x0, seeds, "diffusion noise")

    def model(off: float):
        return lambda z, t: s.from_x0(x0 + off, z, t)

    def run(off: float) -> float:
        return float(loss(x0, seeds=seeds, schedule=s, predict=model(off)))

    assert run(0.0) == pytest.approx(0.0, abs=1e-6)
    t = loss.times(seeds, s)
    a, sd = s.alpha(t), s.sigma(t)
    weight = {
        "sample": torch.ones(3),
        "epsilon": a / sd,  # noise = (z - a x0) / sd
        "v_prediction": a * a / sd + sd,  # a noise - sd x0
        "flow": a / sd + 1,  # noise - x0
    }[target]
    assert run(0.1) == pytest.approx(float((0.1 * weight).square().mean()), rel=1e-2)
    assert noise.shape == x0.shape


def test_regression_trains_on_x0_at_the_last_timestep() -> None:
    """objective=regression: times only at the schedule's end, the error in x0."""
    from restore_lab.config.build import build
    from tests.helpers.configs import composed

    loss = build(composed("train", "method=regression").objective)
    for s, least in ((schedule("v_prediction", zero_snr=True), 999), (FlowMatching(shift=2.0), 999.0)):
        assert float(loss.times(list(range(50)), s).min()) >= least
    assert loss.target == "sample"


def test_bad_settings_are_named() -> None:
    for words, message in (
        ({"target": "score"}, "target=score: there are: epsilon, v_prediction, sample, flow, or null"),
        ({"density": "beta"}, "density=beta: there are: auto, uniform, logit_normal"),
        ({"std": 0.0}, "std=0.0: expected a number above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build({"_target_": "restore_lab.objectives.denoising.Denoising", "t_min": 0.0, "t_max": 1.0, **words})
