"""The sampling loop: exact with an oracle, guided by the formula, independent of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from restore_lab.prompts.semantic import NoText
from restore_lab.random import noise_like
from restore_lab.samplers.guidance import ClassifierFree
from restore_lab.samplers.init import LqNoised, Noise
from restore_lab.samplers.level import Level
from restore_lab.samplers.schedulers import betas, ddim
from restore_lab.types import Cond, Hint
from tests.helpers.rounding import close
from tests.helpers.toy_methods import latents, said, schedule, shake, toy_adaptor, toy_batch, toy_sampler, toy_spire
from tests.helpers.toy_priors import TEXT_LENGTH, TEXT_WIDTH

TOP = Level(sigma=14.6, next_sigma=10.0, share=1.0)


CASES = [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True)]


@pytest.mark.parametrize("init", [Noise(), LqNoised()])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize(("prediction", "zero_snr"), CASES)
def test_an_oracle_reaches_x0(prediction, zero_snr, spacing, init) -> None:
    """A model that knows x0, whatever it predicts, ends at x0 in a few steps from any start."""
    s, x0 = schedule(prediction, zero_snr=zero_snr), latents(seed=1)
    steps: list[int] = []

    def oracle(z_BCHW: Tensor, t_B: Tensor, level: Level) -> Tensor:
        steps.append(int(t_B[0]))
        assert t_B.shape == (3,)
        return s.from_x0(x0, z_BCHW, t_B)

    sampler = toy_sampler(steps=5, spacing=spacing, init=init)
    found = sampler(said(oracle), latents(), centre_BCHW=latents(), seeds=[1, 2, 3], schedule=s)
    torch.testing.assert_close(found, x0, atol=2e-4, rtol=1e-3)
    assert steps == ([999, 799, 599, 399, 199] if spacing == "trailing" else [800, 600, 400, 200, 0])


@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddim_has_the_priors_alphas(zero_snr) -> None:
    s = schedule("v_prediction", zero_snr=zero_snr)
    scheduler = ddim(s, timestep_spacing="trailing")
    torch.testing.assert_close(scheduler.alphas_cumprod, s.alphas_cumprod, atol=1e-7, rtol=1e-4)
    assert (float(scheduler.alphas_cumprod[-1]) == 0.0) == zero_snr
    assert scheduler.config.prediction_type == "v_prediction"
    assert len(betas(s)) == scheduler.config.num_train_timesteps == 1000
    assert float(scheduler.final_alpha_cumprod) == 1.0


def test_a_step_of_ddim_equals_its_formula() -> None:
    """z' = a' x0 + s' noise with x0 and noise of the model's velocity (Song et al. 2021, Eq. 12, eta 0)."""
    s = schedule("v_prediction", zero_snr=False)
    scheduler = ddim(s, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    z, v = latents(), latents(seed=2)
    t, later = int(scheduler.timesteps[3]), int(scheduler.timesteps[4])
    x0, noise = s.alpha(t) * z - s.sigma(t) * v, s.alpha(t) * v + s.sigma(t) * z
    expected = s.alpha(later) * x0 + s.sigma(later) * noise
    torch.testing.assert_close(scheduler.step(v, t, z).prev_sample, expected, atol=1e-4, rtol=1e-3)


def test_sampling_starts_from_noise_or_the_noised_lq() -> None:
    s = schedule("epsilon", zero_snr=False)
    lq, noise = latents(), noise_like(latents(), [5, 6, 7], "init")
    start = {"seeds": [5, 6, 7], "t": 999, "schedule": s}
    assert torch.equal(Noise()(lq, **start), noise)
    bar = s.alphas_cumprod[999]
    torch.testing.assert_close(LqNoised()(lq, **start), bar.sqrt() * lq + (1 - bar).sqrt() * noise)


@pytest.mark.parametrize("init", [Noise(), LqNoised()])
def test_results_do_not_depend_on_the_batch(init) -> None:
    s, lq, seeds = schedule("v_prediction", zero_snr=True), latents(4), [3, 1, 4, 1]
    sampler = toy_sampler(steps=3, init=init)

    def model(z_BCHW: Tensor, t_B: Tensor, level: Level) -> Tensor:
        return torch.tanh(z_BCHW) * (1 + t_B[:, None, None, None] / 1000)

    together = sampler(said(model), lq, centre_BCHW=lq, seeds=seeds, schedule=s)
    for i, seed in enumerate(seeds):
        alone = sampler(said(model), lq[i : i + 1], centre_BCHW=lq[i : i + 1], seeds=[seed], schedule=s)
        assert close(alone[0], together[i])
    backwards = sampler(said(model), lq.flip(0), centre_BCHW=lq.flip(0), seeds=seeds[::-1], schedule=s)
    assert close(backwards.flip(0), together)
    assert not torch.equal(together[0], together[2])


def test_guidance_has_its_branches_and_weights() -> None:
    cond, null = (Cond(tokens_BLD=torch.full((1, 2, 3), value)) for value in (1.0, 0.0))
    hint = Hint(lq_BCHW=torch.zeros(1, 3, 8, 8))
    (one,) = ClassifierFree(scale=1).branches(cond=cond, null=null, hint=hint, level=TOP)
    assert one.cond is cond and one.weight == 1.0
    for scale in (0.0, 3.0, 7.5):
        branches = ClassifierFree(scale=scale).branches(cond=cond, null=null, hint=hint, level=TOP)
        assert [b.weight for b in branches] == [scale, 1 - scale]
        assert branches[0].cond is cond and branches[1].cond is null
        assert all(b.hint is hint for b in branches)


def test_without_words_guidance_has_one_branch() -> None:
    module, batch = toy_spire(scale=3.0), toy_batch(2)
    shake(module.adaptor, size=0.05)
    rows = []
    module.backbone.unet.conv_out.register_forward_hook(lambda *args: rows.append(len(args[2])))
    described = module.restore(batch)
    assert rows == [2 * len(batch)] * module.sampler.steps
    module.conditioner.prompts.semantic = NoText()
    rows.clear()
    wordless = module.restore(batch)
    assert rows == [len(batch)] * module.sampler.steps
    assert not torch.equal(described, wordless)


@pytest.mark.parametrize("text", ["instruction", "semantic"])
def test_guidance_equals_null_plus_scale_times_the_difference(text) -> None:
    """A trunk that reads the instruction runs for one half, one that reads the caption for both at once."""
    module = toy_spire(adaptor=toy_adaptor(text=text))
    shake(module.adaptor, size=0.05)
    z, t = latents(2), torch.tensor([500, 20])
    draw = torch.Generator().manual_seed(0)
    tokens = 3 * torch.randn(3, 2, TEXT_LENGTH, TEXT_WIDTH, generator=draw)
    hint = Hint(lq_BCHW=toy_batch(size=(32, 32)).lq_BCHW, instruction_BLD=tokens[0])
    cond, null = Cond(tokens_BLD=tokens[1]), Cond(tokens_BLD=tokens[2])
    rows = []
    module.adaptor.trunk.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with torch.no_grad():
        branches = ClassifierFree(scale=4.0).branches(cond=cond, null=null, hint=hint, level=TOP)
        guided = module.denoiser.weigh(z, t, branches)
        assert rows == [2 if text == "instruction" else 4]
        with_cond, without = (
            module.backbone(z, t, c, at=module.adaptor.fuse, carry=module.adaptor.control(z, t, hint, c))
            for c in (cond, null)
        )
    torch.testing.assert_close(guided, without + 4.0 * (with_cond - without), atol=1e-5, rtol=1e-4)
    assert (with_cond - without).abs().max() > 1e-2
    with pytest.raises(ValueError, match="no branches"):
        module.denoiser.weigh(z, t, ())


def test_a_restored_image_does_not_depend_on_its_batch() -> None:
    module = toy_spire(scale=2.0)
    shake(module.adaptor, size=0.05)
    four = toy_batch(4, size=(20, 24))
    together = module.restore(four)
    assert together.shape == (4, 3, 20, 24)
    for i in (0, 3):
        torch.testing.assert_close(module.restore(four.select([i]))[0], together[i], atol=1e-4, rtol=0)
    assert float(together.min()) >= 0 and float(together.max()) <= 1


def test_no_more_steps_than_the_prior_has_timesteps() -> None:
    module = toy_spire()
    module.sampler.steps = module.backbone.schedule.num_train_timesteps + 1
    with pytest.raises(ValueError, match=r"sampler\.steps=\d+: the prior has \d+ timesteps; give at most \d+, or"):
        module.restore(toy_batch(1))
