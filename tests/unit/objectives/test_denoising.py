"""The denoising loss: zero for a perfect model, uniform timesteps, noise per sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from restore_lab.backbones.schedule import Schedule
from restore_lab.objectives.denoising import Denoising
from tests.helpers.rounding import close


def schedule(prediction: str, *, zero_snr: bool = False) -> Schedule:
    return Schedule.from_config(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        | {"prediction_type": prediction, "rescale_betas_zero_snr": zero_snr}
    )


class Seen:
    """A model that says zero and keeps what it was shown."""

    def __init__(self) -> None:
        self.z: list[Tensor] = []
        self.t: list[Tensor] = []

    def __call__(self, z_BCHW: Tensor, t_B: Tensor) -> Tensor:
        self.z.append(z_BCHW)
        self.t.append(t_B)
        return torch.zeros_like(z_BCHW)


def latents(count: int, *, shape: tuple[int, ...] = (4, 8, 8)) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("prediction", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", True)]
)
def test_a_perfect_prediction_has_zero_loss(prediction, zero_snr) -> None:
    """The model's output is computed from z_t, x0 and t by the formulas."""
    s, z0 = schedule(prediction, zero_snr=zero_snr), latents(32)
    bars = s.alphas_cumprod.double()

    def oracle(z_BCHW: Tensor, t_B: Tensor) -> Tensor:
        a, b = (x[t_B].sqrt()[:, None, None, None] for x in (bars, 1 - bars))
        noise = (z_BCHW - a * z0) / b
        return {"epsilon": noise, "v_prediction": a * noise - b * z0, "sample": z0}[prediction]

    loss = Denoising(t_min=0.0, t_max=1.0)(z0, seeds=range(32), schedule=s, predict=oracle)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize(("prediction", "value"), [("epsilon", 1.0), ("sample", 4.0)])
def test_a_zero_prediction_loses_the_targets_power(prediction, value) -> None:
    loss = Denoising(t_min=0.0, t_max=1.0)(
        2 * latents(64), seeds=range(64), schedule=schedule(prediction), predict=Seen()
    )
    assert float(loss) == pytest.approx(value, rel=0.05)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.25, 0.5), (0.9, 1.0)])
def test_timesteps_are_uniform_in_their_range(low, high) -> None:
    seen, n = Seen(), 4000
    Denoising(t_min=low, t_max=high)(
        torch.zeros(n, 1, 1, 1), seeds=range(n), schedule=schedule("epsilon"), predict=seen
    )
    t = seen.t[0]
    first, last = round(1000 * low), round(1000 * high) - 1
    assert t.dtype == torch.long
    assert first <= int(t.min()) and int(t.max()) <= last
    places = ((t - first).double() + 0.5) / (last - first + 1)
    gap = (places.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert float(gap) < 0.03  # Kolmogorov-Smirnov: 1.95 / sqrt(4000) is passed once in a thousand runs


def test_the_last_timestep_is_never_passed() -> None:
    """t_min near 1 rounds up to 1 in float32 for some seeds; the schedule has no such step."""
    seen, n = Seen(), 3000
    Denoising(t_min=0.9999999, t_max=1.0)(
        torch.zeros(n, 1, 1, 1), seeds=range(n), schedule=schedule("epsilon"), predict=seen
    )
    assert int(seen.t[0].max()) == 999


def test_timestep_and_noise_belong_to_the_sample_not_to_the_batch() -> None:
    z0, seeds, s = latents(5), [11, 12, 13, 14, 15], schedule("v_prediction")
    loss_of, together = Denoising(t_min=0.0, t_max=1.0), Seen()
    whole = loss_of(z0, seeds=seeds, schedule=s, predict=together)
    losses = []
    for i, seed in enumerate(seeds):
        alone = Seen()
        losses.append(loss_of(z0[i : i + 1], seeds=[seed], schedule=s, predict=alone))
        assert close(alone.z[0][0], together.z[0][i])
        assert torch.equal(alone.t[0][0], together.t[0][i])
    torch.testing.assert_close(torch.stack(losses).mean(), whole)
    assert len({float(z.sum()) for z in together.z[0]}) == 5


def test_the_same_seeds_give_the_same_loss_and_others_another() -> None:
    z0, s = latents(3), schedule("epsilon")
    losses = [
        float(Denoising(t_min=0.0, t_max=1.0)(z0, seeds=seeds, schedule=s, predict=Seen()))
        for seeds in ([1, 2, 3], [1, 2, 3], [4, 5, 6])
    ]
    assert losses[0] == losses[1] != losses[2]


def test_half_precision_predictions_are_compared_in_float32() -> None:
    z0, s = latents(4), schedule("epsilon")
    loss = Denoising(t_min=0.0, t_max=1.0)(
        z0, seeds=range(4), schedule=s, predict=lambda z, t: torch.zeros_like(z, dtype=torch.bfloat16)
    )
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.7, 0.2)])
def test_bad_timestep_ranges_are_refused(low, high) -> None:
    with pytest.raises(ValueError, match=f"t_min={low}, t_max={high}|t_min=-0.1: expected|t_max=1.1: expected"):
        Denoising(t_min=low, t_max=high)
