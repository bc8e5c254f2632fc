"""Fidelity guidance with every scheduler and prediction type: RSS, AdaRes; solvers of flows."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from restore_lab.backbones.schedule import FlowMatching, Schedule
from restore_lab.samplers.base import fold_edit
from restore_lab.samplers.edm import EdmSampler
from restore_lab.samplers.fidelity.adares import AdaRes, relative_distance
from restore_lab.samplers.fidelity.base import FidelityGuidance, Prediction, Steer
from restore_lab.samplers.fidelity.restoration_guided import RestorationGuided
from restore_lab.samplers.fidelity.rss import RestorationSampling
from restore_lab.samplers.init import LqNoised
from restore_lab.samplers.level import Level, levels
from restore_lab.samplers.loop import SchedulerSampler
from restore_lab.samplers.schedulers import ddim, ddpm, dpmpp, euler_flow, lcm, unipc
from restore_lab.samplers.strength import Until
from tests.helpers.rounding import close
from tests.helpers.toy_methods import latents, said, sampler_parts, schedule

SEEDS = [1, 2, 3]
PRIORS: dict[str, Schedule] = {
    "epsilon": schedule("epsilon", zero_snr=False),
    "velocity": schedule("v_prediction", zero_snr=False),
    "zero_snr": schedule("v_prediction", zero_snr=True),
    "flow": FlowMatching(shift=3.0),
}
SCHEDULERS = {
    "ddim": partial(ddim, timestep_spacing="trailing"),
    "ddpm": partial(ddpm, timestep_spacing="trailing"),
    "unipc": partial(unipc, timestep_spacing="linspace"),
    "dpmpp": partial(dpmpp, timestep_spacing="linspace"),
    "euler_flow": euler_flow,
    "lcm": partial(lcm, original_steps=50),
}


def sampler(name: str, *, steps: int = 10, fidelity=None, init=None):
    parts = sampler_parts(fidelity=fidelity, init=init)
    if name == "edm":
        return EdmSampler(steps=steps, s_churn=0.0, s_noise=1.0, s_tmin=0.0, s_tmax=None, **parts)
    return SchedulerSampler(steps=steps, scheduler=SCHEDULERS[name], **parts)


def oracle(s: Schedule, x0: Tensor):
    return said(lambda z, t, level: s.from_x0(x0[: len(z)], z, t))


def normal(s: Schedule):
    """The exact model of standard normal data: x0 = alpha z / (alpha^2 + sigma^2)."""

    def predict(z: Tensor, t: Tensor, level: Level) -> Tensor:
        a, sd = (f(t)[:, None, None, None].to(z) for f in (s.alpha, s.sigma))
        return s.from_x0(a * z / (a**2 + sd**2), z, t)

    return said(predict)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", [*SCHEDULERS, "edm"])
def test_every_solver_reaches_an_oracles_x0_on_every_prior(name, prior) -> None:
    s, x0 = PRIORS[prior], latents(seed=1)
    found = sampler(name, init=LqNoised())(oracle(s, x0), latents(), centre_BCHW=x0, seeds=SEEDS, schedule=s)
    torch.testing.assert_close(found, x0, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", [*SCHEDULERS, "edm"])
def test_noise_of_an_image_does_not_depend_on_its_batch(name, prior) -> None:
    s, lq = PRIORS[prior], latents()
    made = sampler(name, steps=3)
    together = made(normal(s), lq, centre_BCHW=lq, seeds=SEEDS, schedule=s)
    alone = made(normal(s), lq[1:2], centre_BCHW=lq[1:2], seeds=[2], schedule=s)
    torch.testing.assert_close(alone[0], together[1], atol=1e-6, rtol=1e-6)


def test_on_a_flow_ddim_is_euler_and_on_sd_euler_is_ddim() -> None:
    for prior in ("flow", "epsilon"):
        s = PRIORS[prior]
        a, b = (
            sampler(name)(normal(s), latents(), centre_BCHW=latents(), seeds=SEEDS, schedule=s)
            for name in ("ddim", "euler_flow")
        )
        assert close(a, b)


def test_euler_on_a_flow_equals_its_formula() -> None:
    """z' = z + (s' - s) v at shifted, evenly spaced s; the model is asked at 1000 s."""
    s, asked = FlowMatching(shift=3.0), []

    def velocity(z: Tensor, t: Tensor, level: Level) -> Tensor:
        asked.append(float(t[0]))
        return torch.sin(z)

    found = sampler("euler_flow", steps=4)(said(velocity), latents(), centre_BCHW=latents(), seeds=SEEDS, schedule=s)
    from restore_lab.random import noise_like

    z = noise_like(latents(), SEEDS, "init")
    raw = torch.linspace(1.0, asked[-1] / 1000 / (3 - 2 * asked[-1] / 1000), 4)
    sigmas = [*(3 * raw / (1 + 2 * raw)).tolist(), 0.0]
    torch.testing.assert_close(torch.tensor(asked), 1000 * torch.tensor(sigmas[:-1]), atol=1e-2, rtol=1e-4)
    for now, after in pairwise(sigmas):
        z = z + (after - now) * torch.sin(z)
    torch.testing.assert_close(found, z, atol=1e-4, rtol=1e-4)


def test_levels_of_a_flow_have_share_and_sigma() -> None:
    found = levels(FlowMatching(shift=1.0), torch.tensor([1000.0, 500.0, 250.0]))
    assert [level.share for level in found] == [1.0, 0.5, 0.25]
    assert [level.sigma for level in found] == pytest.approx([4096.0, 1.0, 1 / 3])
    assert [level.remaining for level in found] == pytest.approx([2 / 3, 1 / 3, 0.0])


def test_until_is_one_for_a_share_of_the_steps() -> None:
    steps = levels(PRIORS["epsilon"], torch.linspace(999, 0, 10))
    assert [Until(share=0.3)(level) for level in steps] == [1.0] * 3 + [0.0] * 7
    assert {Until(share=1.0)(level) for level in steps} == {1.0} and {Until(share=0.0)(level) for level in steps} == {
        0.0
    }


def test_rss_equals_its_equations() -> None:
    """Eqs. 1, 2 with T = 100, a = 0.8, w = 0.05, written out."""
    rss, z, c = RestorationSampling(weight=0.05, threshold=0.8), latents(), latents(seed=1)
    for t in (99, 90, 81, 80, 50, 0):
        level = Level(sigma=1.0, next_sigma=0.5, share=0.5, remaining=t / 100)
        g = (t / 100 - 0.8) / 0.2 if t / 100 > 0.8 else 0.0
        torch.testing.assert_close(
            rss.after_step(z, centre_BCHW=c, level=level), z + 0.05 * g * (c - z), atol=1e-6, rtol=1e-6
        )
    assert rss.after_step(z, centre_BCHW=c, level=Level(sigma=1, next_sigma=0, share=1, remaining=0.8)) is z


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", ["ddim", "unipc", "dpmpp", "edm"])
def test_rss_acts_only_above_its_threshold_and_is_not_undone(name, prior) -> None:
    """Of T = 10 steps with a = 0.5 the first four act; each leaves its mark on what the model is asked next."""
    s, lq, asked = PRIORS[prior], latents(), []
    centre = torch.full_like(lq, 30.0)  # far away: every pull shows

    def watching(z: Tensor, t: Tensor, level: Level) -> Tensor:
        asked.append(z.mean().item())
        return normal(s)(z, t, level, Steer()).out_BCHW

    means = {}
    for weight in (0.0, 0.5):
        asked.clear()
        rss = RestorationSampling(weight=weight, threshold=0.5)
        sampler(name, fidelity=rss)(said(watching), lq, centre_BCHW=centre, seeds=SEEDS, schedule=s)
        means[weight] = list(asked)
    moved = [abs(a - b) > 0.5 for a, b in zip(means[0.5], means[0.0], strict=True)]
    assert moved[:1] == [False] and all(moved[1:])  # the first model call comes before the first pull
    late = RestorationSampling(weight=0.5, threshold=0.95)
    assert [late.pull(level) > 0 for level in levels(s, torch.linspace(s.top, 1, 10))] == [False] * 10


def test_through_x0_a_first_order_step_is_the_edited_one() -> None:
    """DDIM after the edit of x0 gives what editing DDIM's result gives, for any share of the pull."""
    for s, now, later in ((PRIORS["velocity"], 700, 600), (PRIORS["flow"], 700.0, 600.0)):
        z, x0, c = latents(), latents(seed=1), latents(seed=2)
        edit = lambda after, c=c: after + 0.3 * (c - after)  # noqa: E731
        pair = [(s.alpha(t), s.sigma(t)) for t in (now, later)]
        moved = fold_edit(x0, z, now=pair[0], after=pair[1], edit=edit)

        def step(x0: Tensor, s=s, z=z, now=now, later=later) -> Tensor:
            noise = (z - s.alpha(now) * x0) / s.sigma(now)
            return s.alpha(later) * x0 + s.sigma(later) * noise

        torch.testing.assert_close(step(moved), edit(step(x0)), atol=1e-4, rtol=1e-4)


def test_rss_through_x0_and_after_the_step_agree_under_ddim() -> None:
    """The form that UniPC needs, put under a solver that needs it not, changes nothing."""
    s, lq = PRIORS["velocity"], latents()
    rss = RestorationSampling(weight=0.3, threshold=0.2)
    plain = sampler("ddim", fidelity=rss)(normal(s), lq, centre_BCHW=lq, seeds=SEEDS, schedule=s)

    def marked(schedule: Schedule):
        scheduler = SCHEDULERS["ddim"](schedule)
        scheduler.disable_corrector = []  # what the loop knows a corrector by
        return scheduler

    through = SchedulerSampler(steps=10, scheduler=marked, **sampler_parts(fidelity=rss))
    found = through(normal(s), lq, centre_BCHW=lq, seeds=SEEDS, schedule=s)
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=1e-3)


def test_a_post_step_edit_would_be_undone_by_unipcs_corrector() -> None:
    """Why the edit goes through x0: of an edit of UniPC's result one step later next to nothing is left."""
    s = PRIORS["velocity"]
    scheduler = SCHEDULERS["unipc"](s)
    results = []
    for edit in (0.0, 1.0):
        scheduler = SCHEDULERS["unipc"](s)
        scheduler.set_timesteps(10)
        z, out = latents(), None
        for i, t in enumerate(scheduler.timesteps[:3]):
            out = torch.zeros_like(z)  # the same output, so that the sample alone could carry the edit
            z = scheduler.step(out, t, z).prev_sample + (edit if i == 0 else 0.0)
        results.append(z)
    assert (results[1] - results[0]).abs().max() < 0.01


def test_adares_equals_its_equations() -> None:
    """Eq. 7 on three steps of three images whose distances are chosen."""
    shape = (3, 1, 1, 1)
    previews = [torch.tensor(v).reshape(shape) for v in ([1.0, 1.0, 2.0], [2.0, 1.5, 2.0], [2.0, 3.0, 2.5])]
    cleans = [torch.tensor(v).reshape(shape) for v in ([3.0, 1.0, 2.0], [2.5, 3.5, 2.0], [2.0, 0.0, 3.0])]
    expected = [
        [4 / 1, 0.0, 0.0],  # the previous preview is zero: |p - x|^2 / |p|^2
        [0.25 / 1, 4 / 0.25, 0.0],  # the third does not move: 0 / 0 counts as 0
        [0.0, 9 / 2.25, 0.25 / 0.25],
    ]
    for mode in ("reference", "residual"):
        fidelity, state = AdaRes(mode=mode), None
        level = Level(sigma=1, next_sigma=0.5, share=0.5, remaining=0.5)
        first = fidelity.before_model(level=level, state=None)
        assert (first.blend, first.strength) == ((1.0, 1.0) if mode == "reference" else (0.0, 1.0))
        for preview, clean, deltas in zip(previews, cleans, expected, strict=True):
            state = fidelity.watch(clean, preview, state=state)
            torch.testing.assert_close(state.delta_B, torch.tensor(deltas))
            steer = fidelity.before_model(level=level, state=state)
            cut = torch.tensor(deltas).clamp(0, 1)
            moved, kept = (steer.blend, steer.strength) if mode == "reference" else (steer.strength, steer.blend)
            torch.testing.assert_close(moved, cut)
            assert kept == (1.0 if mode == "reference" else 0.0)
    torch.testing.assert_close(
        relative_distance(previews[1], cleans[1], previews[0]), torch.tensor(expected[1]), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("name", [*SCHEDULERS, "edm"])
@pytest.mark.parametrize("prior", ["velocity", "flow"])
def test_adares_steers_every_sampler(name, prior) -> None:
    """Delta of a step is that of its own x0 and previews, whatever the solver; the steering comes a step later."""
    s, steered, seen = PRIORS[prior], [], []

    def model(z: Tensor, t: Tensor, level: Level, steer: Steer) -> Prediction:
        steered.append(torch.as_tensor(steer.blend).expand(len(z)).clone())
        preview = torch.tanh(z)
        out = torch.sin(3 * z)
        seen.append((s.to_x0(out, z, t), preview))
        return Prediction(out_BCHW=out, preview_BCHW=preview)

    sampler(name, steps=4, fidelity=AdaRes(mode="reference"))(
        model, latents(), centre_BCHW=latents(), seeds=SEEDS, schedule=s
    )
    before = torch.zeros_like(seen[0][1])
    torch.testing.assert_close(steered[0], torch.ones(3))
    for (x0, preview), blend in zip(seen, steered[1:], strict=False):
        expected = relative_distance(preview, x0, before).clamp(0, 1)
        torch.testing.assert_close(blend, expected.to(blend.dtype), atol=1e-5, rtol=1e-4)
        before = preview


def test_adares_without_previews_is_refused_with_a_remedy() -> None:
    s = PRIORS["velocity"]
    with pytest.raises(ValueError, match="use it with adaptor=instantir"):
        sampler("ddim", fidelity=AdaRes(mode="residual"))(
            normal(s), latents(), centre_BCHW=latents(), seeds=SEEDS, schedule=s
        )


def test_early_steps_may_take_the_lq_as_reference() -> None:
    """As long as i / T < share, i from 0: for a share of 0.31 of ten steps four, as InstantIR's release counts."""
    steps = levels(PRIORS["epsilon"], torch.linspace(999, 0, 10))
    for share, early in ((0.0, 0), (0.3, 3), (0.31, 4), (0.39, 4), (1.0, 10)):
        for mode in ("off", "reference", "residual"):
            fidelity = AdaRes(mode=mode, preview_from=share)
            found = [fidelity.before_model(level=level, state=None).lq_reference for level in steps]
            assert found == [True] * early + [False] * (10 - early)
    assert not AdaRes(mode="off").watches and not FidelityGuidance().watches


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", [*SCHEDULERS, "edm"])
def test_restoration_guidance_works_everywhere(name, prior) -> None:
    """tau 0 gives the LQ's latent at every step, so that it is what comes out."""
    s, lq = PRIORS[prior], latents(seed=7)
    guided = RestorationGuided(tau_r=0.0, s_tmin=-1.0)
    found = sampler(name, fidelity=guided)(normal(s), lq, centre_BCHW=lq, seeds=SEEDS, schedule=s)
    torch.testing.assert_close(found, lq, atol=5e-3, rtol=1e-2)
