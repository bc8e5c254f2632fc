"""The EDM sampler against a short reference; fidelity guidance, forms of guidance, strength and colour."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from torch import Tensor

from restore_lab.backbones.schedule import Schedule
from restore_lab.config.build import build
from restore_lab.methods.denoiser import scale_edit
from restore_lab.random import noise_like
from restore_lab.samplers.colour import adain, keep, low_band, wavelet
from restore_lab.samplers.edm import EdmSampler
from restore_lab.samplers.fidelity.base import FidelityGuidance
from restore_lab.samplers.fidelity.restoration_guided import RestorationGuided
from restore_lab.samplers.guidance import ClassifierFree
from restore_lab.samplers.init import LqNoised
from restore_lab.samplers.level import Level, levels
from restore_lab.samplers.schedulers import ddim, unipc
from restore_lab.samplers.spacing import timesteps
from restore_lab.samplers.strength import Linear
from restore_lab.types import Cond, Hint
from tests.helpers.configs import composed
from tests.helpers.rounding import close
from tests.helpers.toy_methods import latents, said, sampler_parts, schedule, toy_sampler

SEEDS = [1, 2, 3]
SCHEDULERS = [partial(ddim, timestep_spacing="trailing"), partial(unipc, timestep_spacing="linspace")]


def edm(*, steps: int = 6, s_churn: float = 0.0, s_tmax: float | None = None, **parts) -> EdmSampler:
    return EdmSampler(steps=steps, s_churn=s_churn, s_noise=1.003, s_tmin=0.0, s_tmax=s_tmax, **sampler_parts(**parts))


def normal_prior(s: Schedule, asked: list[tuple[float, int]] | None = None):
    """The exact model of standard normal data: D(x, sigma) = x / (1 + sigma^2), as noise or velocity."""

    def predict(z_BCHW: Tensor, t_B: Tensor, level: Level) -> Tensor:
        if asked is not None:
            asked.append((level.sigma, int(t_B[0])))
        return s.from_x0(s.alpha(t_B)[:, None, None, None] * z_BCHW, z_BCHW, t_B)

    return said(predict)


def test_levels_equal_the_releases() -> None:
    s = schedule("epsilon", zero_snr=False)
    table = s.ratios
    assert float(table[-1]) == pytest.approx(14.6146, abs=1e-3) and float(table[0]) == pytest.approx(0.0292, abs=1e-4)
    assert timesteps(s, "sgm", steps=5).tolist() == [999, 799, 599, 399, 199]
    assert float(schedule("v_prediction", zero_snr=True).ratios[-1]) == pytest.approx(4096, rel=1e-3)
    found = levels(s, torch.tensor([999.0, 500.5, 0.0]))
    assert [level.next_sigma for level in found] == [found[1].sigma, found[2].sigma, 0.0]
    assert found[0].share == 1.0
    assert found[1].sigma == pytest.approx(float(table[500] + table[501]) / 2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_with_churn_the_model_gets_the_raised_noise(prediction) -> None:
    """Algorithm 2 of Karras et al. written out: every number of the trajectory, and the timesteps that were asked."""
    s, asked = schedule(prediction, zero_snr=False), []
    sampler = edm(steps=6, s_churn=1.2)
    found = sampler(normal_prior(s, asked), latents(), centre_BCHW=latents(), seeds=SEEDS, schedule=s)

    table = ((1 - s.alphas_cumprod.double()) / s.alphas_cumprod.double()).sqrt()
    sigmas = [float(table[math.floor(999 * (1 - i / 6))]) for i in range(6)] + [0.0]
    x = noise_like(latents(), SEEDS, "init").double() * math.sqrt(1 + sigmas[0] ** 2)
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        gamma = min(1.2 / 6, math.sqrt(2) - 1)
        raised = sigma * (1 + gamma)
        x = x + 1.003 * noise_like(latents(), SEEDS, f"churn {i}") * math.sqrt(raised**2 - sigma**2)
        nearest = int((table - raised).abs().argmin())
        assert asked[i] == (pytest.approx(sigma), nearest)
        denoised = x / (1 + float(table[nearest]) ** 2)
        x = x + (following - raised) * (x - denoised) / raised
    torch.testing.assert_close(found.double(), x, atol=1e-4, rtol=1e-3)


def test_churn_acts_only_within_its_bounds() -> None:
    sampler = edm(steps=4, s_churn=100.0, s_tmax=5.0)
    assert sampler.gamma(5.1) == 0.0
    assert sampler.gamma(4.9) == pytest.approx(math.sqrt(2) - 1)
    assert edm(steps=100, s_churn=5.0).gamma(1.0) == pytest.approx(0.05)
    node = composed("evaluate", "sampler=edm", "sampler.s_churn=-1", "data=procedural").sampler
    with pytest.raises(ValueError, match="s_churn=-1: expected a number of at least 0"):
        build(node)


@pytest.mark.parametrize("s_churn", [0.0, 3.0])
@pytest.mark.parametrize(("prediction", "zero_snr"), [("epsilon", False), ("v_prediction", True)])
def test_an_oracle_reaches_x0_with_any_churn(prediction, zero_snr, s_churn) -> None:
    s, x0 = schedule(prediction, zero_snr=zero_snr), latents(seed=1)
    sampler = edm(steps=6, s_churn=s_churn, init=LqNoised())
    found = sampler(
        said(lambda z, t, level: s.from_x0(x0, z, t)), latents(), centre_BCHW=latents(), seeds=SEEDS, schedule=s
    )
    torch.testing.assert_close(found, x0, atol=2e-3, rtol=1e-2)


def test_an_images_churn_does_not_depend_on_its_batch() -> None:
    s, lq = schedule("epsilon", zero_snr=False), latents()
    sampler = edm(s_churn=3.0)
    together = sampler(normal_prior(s), lq, centre_BCHW=lq, seeds=SEEDS, schedule=s)
    alone = sampler(normal_prior(s), lq[1:2], centre_BCHW=lq[1:2], seeds=[2], schedule=s)
    assert close(alone[0], together[1])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", [*SCHEDULERS, None])
def test_small_tau_gives_the_lq_and_large_tau_the_plain_sampler(scheduler, prediction) -> None:
    s, lq = schedule(prediction, zero_snr=False), latents(seed=7)

    def run(fidelity) -> Tensor:
        sampler = toy_sampler(steps=8, scheduler=scheduler, fidelity=fidelity) if scheduler else edm(fidelity=fidelity)
        return sampler(normal_prior(s), lq, centre_BCHW=lq, seeds=SEEDS, schedule=s)

    plain = run(FidelityGuidance())
    torch.testing.assert_close(run(RestorationGuided(tau_r=0.0, s_tmin=-1.0)), lq, atol=2e-3, rtol=1e-2)
    # The first level's share is 1 whatever tau_r: the pull of the first step stays.
    gaps = [(run(RestorationGuided(tau_r=tau, s_tmin=-1.0)) - lq).abs().mean() for tau in (0.25, 1.0, 4.0)]
    assert gaps[0] < gaps[1] < gaps[2] < (plain - lq).abs().mean()
    torch.testing.assert_close(run(RestorationGuided(tau_r=0.0, s_tmin=1e9)), plain, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_unipc_reaches_an_oracle_even_from_zero_snr(spacing) -> None:
    s, x0 = schedule("v_prediction", zero_snr=True), latents(seed=1)
    sampler = toy_sampler(steps=8, scheduler=partial(unipc, timestep_spacing=spacing))
    found = sampler(
        said(lambda z, t, level: s.from_x0(x0, z, t)), latents(), centre_BCHW=latents(), seeds=SEEDS, schedule=s
    )
    torch.testing.assert_close(found, x0, atol=5e-3, rtol=1e-2)


def test_restoration_guidance_equals_its_formula_above_s_tmin() -> None:
    x0, centre = torch.full((1, 1, 2, 2), 3.0), torch.ones(1, 1, 2, 2)
    level = Level(sigma=7.0, next_sigma=0.05, share=0.5)
    pulled = RestorationGuided(tau_r=2.0, s_tmin=0.0).on_x0(x0, centre_BCHW=centre, level=level)
    assert torch.allclose(pulled, 3.0 - 0.25 * 2.0 * torch.ones(1))
    assert torch.equal(RestorationGuided(tau_r=2.0, s_tmin=0.05).on_x0(x0, centre_BCHW=centre, level=level), x0)
    with pytest.raises(ValueError, match=r"tau_r=-1\.0: expected a number of at least 0, or null"):
        build(
            {
                "_target_": "restore_lab.samplers.fidelity.restoration_guided.RestorationGuided",
                "tau_r": -1.0,
                "s_tmin": 0.0,
            }
        )


def test_the_papers_guidance_is_the_standard_one_at_scale_plus_one() -> None:
    cond, null = (Cond(tokens_BLD=torch.full((1, 2, 3), value)) for value in (1.0, 0.0))
    rest = {"cond": cond, "null": null, "hint": Hint(lq_BCHW=torch.zeros(1, 3, 8, 8))}
    level = Level(sigma=3.5, next_sigma=0.0, share=0.25)
    for w in (0.0, 7.5):
        paper = ClassifierFree(scale=w, form="paper").branches(**rest, level=level)
        standard = ClassifierFree(scale=w + 1).branches(**rest, level=level)
        assert [b.weight for b in paper] == [b.weight for b in standard]
    linear = ClassifierFree(scale=Linear(start=4.0, end=8.0)).branches(**rest, level=level)
    assert [b.weight for b in linear] == [7.0, -6.0]  # a quarter of the way back from the end
    with pytest.raises(ValueError, match="form=release: there are: standard, paper"):
        build({"_target_": "restore_lab.samplers.guidance.ClassifierFree", "scale": 1.0, "form": "release"})


def test_scale_edit_scales_an_edit_and_passes_the_carry() -> None:
    def add_one(tap, h, temb, carry):
        return h + 1, (*carry, tap)

    h = torch.randn(1, 2, 3, 3)
    for strength in (0.0, 0.25, 1.0):
        out, carry = scale_edit(add_one, strength)("here", h, None, ())
        torch.testing.assert_close(out, h + strength)
        assert carry == ("here",)


def test_adain_takes_mean_and_deviation() -> None:
    draw = torch.Generator().manual_seed(0)
    image, reference = torch.rand(2, 2, 3, 20, 30, generator=draw)
    found = adain(image, 0.5 * reference + 0.1)
    flat, wanted = found.flatten(2).numpy(), (0.5 * reference + 0.1).flatten(2).numpy()
    np.testing.assert_allclose(flat.mean(2), wanted.mean(2), atol=1e-6)
    np.testing.assert_allclose(flat.std(2), wanted.std(2), rtol=1e-3)
    torch.testing.assert_close(adain(image, image), image, atol=1e-6, rtol=0)
    assert keep(image, reference) is image


def test_wavelet_adds_high_bands_to_the_references_low_band() -> None:
    draw = torch.Generator().manual_seed(0)
    image, reference = torch.rand(2, 1, 3, 40, 36, generator=draw, dtype=torch.float64)

    def smooth(channel: np.ndarray, level: int) -> np.ndarray:
        row = np.zeros(2 * 2**level + 1)
        row[[0, 2**level, -1]] = [0.25, 0.5, 0.25]
        return convolve(channel, np.outer(row, row), mode="nearest")

    high, low = np.zeros((3, 40, 36)), reference[0].numpy().copy()
    rest = image[0].numpy().copy()
    for level in range(5):
        for c in range(3):
            smoothed = smooth(rest[c], level)
            high[c] += rest[c] - smoothed
            rest[c], low[c] = smoothed, smooth(low[c], level)
    np.testing.assert_allclose(wavelet(image, reference, levels=5)[0].numpy(), high + low, atol=1e-12)
    torch.testing.assert_close(wavelet(image, image, levels=5), image, atol=1e-12, rtol=0)
    assert float(low_band(image, levels=5).std()) < 0.1 * float(image.std())


@pytest.mark.parametrize("recolour", [adain, partial(wavelet, levels=3)])
def test_large_images_are_recoloured_in_strips(recolour, monkeypatch) -> None:
    draw = torch.Generator().manual_seed(0)
    image, reference = (torch.rand(2, 3, 60, 20, generator=draw) for _ in range(2))
    whole = recolour(image, reference)
    monkeypatch.setattr("restore_lab.samplers.colour.STRIP", 20 * 9)
    torch.testing.assert_close(recolour(image, reference), whole, atol=1e-6, rtol=0)
