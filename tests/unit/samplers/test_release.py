"""Each `variant=release` samples as its release does: every step's latent, around networks in closed form.

SUPIR's against numbers of its released code (tests/golden), InstantIR's against its rules written out in float64 below
(its infer.py and pipelines/sdxl_instantir.py): ancestral steps at SDXL's leading timesteps from the noised LQ, previews
of each half of the guidance, and the adaptive restoration and creative restoration that can be switched on.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from restore_lab.adaptors.lq_encoder import RobustEncoder
from restore_lab.backbones.schedule import Schedule
from restore_lab.config.build import build
from restore_lab.methods.conditioning import Conditions
from restore_lab.random import generator
from restore_lab.samplers.colour import wavelet
from restore_lab.samplers.fidelity.base import Steer
from restore_lab.samplers.fidelity.restoration_guided import RestorationGuided
from restore_lab.samplers.level import Level
from restore_lab.samplers.tiling import Gaussian, Tiles
from restore_lab.types import Cond, Hint
from tests.helpers.checkout import ROOT
from tests.helpers.closed_form import SDXL, Adaptor, ClosedForm, Prior, Recorded, noises, switch, text
from tests.helpers.configs import composed
from tests.helpers.toy_methods import toy_batch, toy_spire

GOLDEN = ROOT / "tests" / "golden"
SUPIR = np.load(GOLDEN / "supir_sampler.npz")  # no pickle in it
CASES = sorted({name.partition("/")[0] for name in SUPIR.files if "/" in name})


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| over all numbers."""
    return float((found - expected).norm() / expected.norm())


def tensor(name: str) -> Tensor:
    return torch.from_numpy(SUPIR[name])


@cache
def released(method: str, *words: str) -> Any:
    """The config of a method's release, with words typed after it."""
    return composed("evaluate", f"method={method}", "scale=full", "data=procedural", "variant=release", *words)


def supir(settings: dict[str, Any]) -> Any:
    """The release's sampler as the config composes it, with a case's settings typed."""
    words = [f"sampler.{name}={settings[name]}" for name in ("steps", "s_churn", "s_noise")]
    words.append(f"sampler.fidelity.tau_r={settings['restore'] or 'null'}")
    if settings["cfg_start"] is None:
        words.append(f"sampler.guidance.scale={settings['cfg']}")
    else:
        ends = (settings["cfg_start"], settings["cfg"])
        words += [f"sampler.guidance.scale.{end}={v}" for end, v in zip(("start", "end"), ends, strict=True)]
    if settings["cs_start"] is not None or settings["cs"] != 1.0:
        start = settings["cs"] if settings["cs_start"] is None else settings["cs_start"]
        ends = (f"sampler.strength.start={start}", f"sampler.strength.end={settings['cs']}")
        words += ["sampler/strength=linear", *ends]
    return build(released("supir", *words).sampler)


def supir_method(settings: dict[str, Any]) -> ClosedForm:
    kernel, lq = tensor("kernel"), tensor("lq")

    def say(z_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        h = F.conv2d(z_BCHW, kernel, padding=1) * (1 + t_B.float() / 1000)[:, None, None, None]
        return 0.9 * torch.tanh(0.8 * z_BCHW + 0.3 * h + cond.tokens_BLD.view(-1, 1, 1, 1))

    def control(z_BCHW: Tensor, t_B: Tensor, hint: Hint, cond: Cond) -> Tensor:
        return -0.4 * lq * (1 - 0.5 * t_B.float() / 1000)[:, None, None, None]

    return ClosedForm(
        prior=Prior(say, schedule=Schedule.from_config(SDXL)), adaptor=Adaptor(control), sampler=supir(settings)
    )


@pytest.mark.parametrize("case", CASES)
def test_supirs_steps_equal_its_releases(case: str, monkeypatch) -> None:
    """Guidance by the raised noise, control scale and restoration guidance by the plain one, at every step."""
    method = supir_method(json.loads(str(SUPIR[f"{case}/settings"])))

    def run() -> Tensor:
        monkeypatch.setattr("restore_lab.samplers.init.noise_like", noises({"init": [tensor("init")]}))
        monkeypatch.setattr("restore_lab.samplers.edm.noise_like", noises({"churn": list(tensor("churn"))}))
        return method.sample(
            tensor("lq"),
            centre_BCHW=tensor("centre"),
            cond=text(0.7),
            null=text(-0.5),
            hint=Hint(lq_BCHW=tensor("lq")),
        )

    assert relative(run(), tensor(f"{case}/final")) < 1e-5
    method.sampler.fidelity = recorded = Recorded(method.sampler.fidelity)
    run()
    sigmas = tensor(f"{case}/sigmas")
    assert [level.sigma for _, level in recorded.latents] == pytest.approx(sigmas[:-1].tolist(), rel=1e-4)
    found = [z_BCHW * math.sqrt(1 + level.next_sigma**2) for z_BCHW, level in recorded.latents]
    for x_BCHW, expected_CHW in zip(found, tensor(f"{case}/latents"), strict=True):
        assert relative(x_BCHW[0], expected_CHW) < 1e-4


def test_only_the_result_is_clamped(monkeypatch) -> None:
    """SUPIR's release: E(D(z_LQ)), the colour fix and its reference take decoded images as they are."""
    module: Any = toy_spire(lq_encoder=partial(RobustEncoder, weights=None))
    module.sampler.colour = partial(wavelet, levels=2)
    module.sampler.fidelity = RestorationGuided(tau_r=1.0, s_tmin=-1.0, recode=True)
    codec, encoded, decoded = module.backbone.codec, [], []
    encode, decode = codec.encode, codec.decode

    def widely(z_BCHW: Tensor, *, clamp: bool = True, decoder: Any = None) -> Tensor:
        image = 40 * decode(z_BCHW, clamp=False, decoder=decoder) - 19.5
        decoded.append(image)
        return image.clamp(0, 1) if clamp else image

    monkeypatch.setattr(codec, "decode", widely)
    monkeypatch.setattr(codec, "encode", lambda image, **more: encoded.append(image) or encode(image, **more))
    restored = module.restore(toy_batch())
    reference, image = decoded
    assert reference.min() < 0 and reference.max() > 1 and image.min() < 0 and image.max() > 1
    assert torch.equal(encoded[-1], reference)  # the centre of the restoration guidance
    torch.testing.assert_close(restored, wavelet(image, reference, levels=2).clamp(0, 1))


PAPER = ("adaptor_reference.prompt=false",)  # one preview for both halves


def tiling() -> Gaussian:
    return Gaussian(tile=8, overlap=4, batch=4, sigma=0.1, words="image")


class Halves:
    """The networks of an InstantIR in closed form: of each half of the guidance (words, pooled text, image)."""

    kernel = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 6
    positive, negative = (0.7, 0.4, 0.5), (-0.5, -0.3, -0.1)

    def noise(self, z: Tensor, t: float, half: tuple[float, float, float], *, lora: bool) -> Tensor:
        """What the prior says; LoRA reaches the image's resampler too."""
        words, pooled, seen = half
        h = F.conv2d(z, self.kernel.to(z), padding=1) * (1 + t / 1000)
        seen = math.tanh(seen + 0.4) if lora else math.tanh(seen)
        return (0.8 if lora else 0.9) * torch.tanh(0.7 * z + 0.3 * h + words + 0.2 * pooled + 0.6 * seen)

    def aggregator(self, lq: Tensor, preview: Tensor, t: float, pooled: Any) -> Tensor:
        """What is added to the prior's output."""
        return 0.2 * torch.sin(lq + 0.5 * preview + pooled) * (1 - 0.5 * t / 1000)


def instantir_method(*words: str) -> tuple[ClosedForm, Cond, Cond, Hint]:
    """The release as the config composes it, around these networks; its conditions and hint."""
    cfg, halves, lora = released("instantir", *words), Halves(), switch()

    def say(z_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        seen = cond.visual_BLD.view(-1, 1, 1, 1)
        tokens, pooled = cond.tokens_BLD.view(-1, 1, 1, 1), cond.pooled_BD.view(-1, 1, 1, 1)
        h = F.conv2d(z_BCHW, halves.kernel.to(z_BCHW), padding=1) * (1 + float(t_B[0]) / 1000)
        return (0.8 if lora.on else 0.9) * torch.tanh(0.7 * z_BCHW + 0.3 * h + tokens + 0.2 * pooled + 0.6 * seen)

    def control(z_BCHW: Tensor, t_B: Tensor, hint: Hint, cond: Cond) -> Tensor:
        pooled = cond.pooled_BD.view(-1, 1, 1, 1)
        return halves.aggregator(hint.lq_latent_BCHW, hint.reference_BCHW, float(t_B[0]), pooled)

    class Stream(torch.nn.Module):
        def forward(self, seen_BND: Tensor) -> Tensor:
            return torch.tanh(seen_BND + 0.4) if lora.on else torch.tanh(seen_BND)

    adaptor = Adaptor(control, text="removed", reference=True, stream=Stream(), lora=lora)
    method = ClosedForm(
        prior=Prior(say, schedule=Schedule.from_config(SDXL)),
        adaptor=adaptor,
        sampler=build(cfg.sampler),
        reference=build(cfg.adaptor_reference),
    )

    def cond(half: tuple[float, float, float]) -> Cond:
        words, pooled, seen = (torch.full((2, 1, 1), value) for value in half)
        return method.conditioner.stream(Cond(tokens_BLD=words, pooled_BD=pooled[:, :, 0]), seen)

    conds = cond(halves.positive), cond(halves.negative)
    seen, black = (c.visual_BND for c in conds)
    lq = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(2)) * 0.6
    empty = replace(text(9.0, rows=2), pooled_BD=torch.zeros(2, 1))
    hint = Hint(lq_BCHW=lq, lq_latent_BCHW=lq, visual_BND=seen, visual_null_BND=black, empty=empty)
    return method, *conds, hint


def instantir_rules(
    lq: Tensor,
    init: Tensor,
    noise: list[Tensor],
    *,
    steps: int = 30,
    guidance: float = 7.0,
    preview_start: float = 0.0,
    creative_start: float = 1.0,
    adaptive: bool = False,
) -> list[Tensor]:
    """The latent after every step, by the release's rules, in float64."""
    halves = Halves()
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bars = np.cumprod(1 - betas)
    times = [i * (1000 // steps) + 1 for i in range(steps)][::-1]
    z = math.sqrt(bars[times[0]]) * lq + math.sqrt(1 - bars[times[0]]) * init
    factor, before, latents = torch.ones(len(lq), 1, 1, 1, dtype=lq.dtype), torch.zeros_like(lq), []
    for i, t in enumerate(times):
        bar, after = bars[t], bars[times[i + 1]] if i + 1 < steps else 1.0
        scale = factor.clamp(0, 1) * float((i + 1) / steps <= creative_start)
        said, previews = [], []
        for half in (halves.positive, halves.negative):
            if i / steps < preview_start:
                preview = lq
            else:
                x0 = (z - math.sqrt(1 - bar) * halves.noise(z, t, half, lora=True)) / math.sqrt(bar)
                scaled = (10 * t) ** 2
                preview = 0.25 / (scaled + 0.25) * z + 10 * t / math.sqrt(scaled + 0.25) * x0
            residual = halves.aggregator(lq, preview, t, half[1])
            said.append(halves.noise(z, t, half, lora=False) + scale * residual)
            previews.append(preview)
        eps = said[1] + guidance * (said[0] - said[1])
        x0 = (z - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
        if adaptive:
            moved = (previews[0] - before).square().sum(dim=(1, 2, 3), keepdim=True)
            factor, before = (previews[0] - x0).square().sum(dim=(1, 2, 3), keepdim=True) / moved, previews[0]
        now = bar / after  # DDPM's posterior between these two timesteps (Ho et al. 2020, Eqs. 6, 7)
        mean = (math.sqrt(after) * (1 - now) * x0 + math.sqrt(now) * (1 - after) * z) / (1 - bar)
        z = mean + math.sqrt((1 - after) / (1 - bar) * (1 - now)) * noise[i]
        latents.append(z)
    return latents


INSTANTIR = {
    "as released": ((), {}),
    "previews from a share of the steps": (("sampler.fidelity.preview_from=0.37",), {"preview_start": 0.37}),
    "adaptive": (("sampler.fidelity.mode=residual",), {"adaptive": True}),
    "adaptive, previews later": (
        ("sampler.fidelity.mode=residual", "sampler.fidelity.preview_from=0.2"),
        {"adaptive": True, "preview_start": 0.2},
    ),
    "creative": (("sampler/strength=until", "sampler.strength.share=0.62"), {"creative_start": 0.62}),
    "few steps": (("sampler.steps=7", "sampler.guidance.scale=3"), {"steps": 7, "guidance": 3.0}),
}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("case", INSTANTIR)
def test_instantirs_steps_equal_its_releases(case: str, batched: bool, monkeypatch) -> None:
    """Each half of the guidance with its own words, pooled text, image and preview, whether in one call or in turn."""
    typed, rules = INSTANTIR[case]
    method, cond, null, hint = instantir_method(*typed)
    method.denoiser.batched = batched
    init = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr("restore_lab.samplers.init.noise_like", noises({"init": [init]}))
    lq: Any = hint.lq_latent_BCHW
    method.sampler.fidelity = recorded = Recorded(method.sampler.fidelity)
    method.sample(lq, centre_BCHW=lq, cond=cond, null=null, hint=hint)
    draws = [generator(seed, "sampling noise") for seed in range(2)]
    noise = [torch.stack([torch.randn(4, 8, 12, generator=draw) for draw in draws]).double() for _ in recorded.latents]
    expected = instantir_rules(lq.double(), init.double(), noise, **rules)
    assert len(expected) == len(recorded.latents)
    for (found, _), latent in zip(recorded.latents, expected, strict=True):
        assert relative(found.double(), latent) < 1e-4
    assert relative(recorded.latents[-1][0].double(), expected[-1]) < 1e-5


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("typed", "same", "calls"), [((), False, 2), (PAPER, False, 2), (PAPER, True, 1)])
def test_a_trunk_runs_once_where_it_reads_the_same_in_both_halves(typed, same, calls, batched) -> None:
    """Twice for previews of each half or pooled text of each; rows, not calls, where the halves go together."""
    method, cond, null, hint = instantir_method(*typed)
    method.denoiser.batched = batched
    null = replace(cond, visual_BLD=null.visual_BLD) if same else null
    at = {"level": Level(sigma=1.0, next_sigma=0.5, share=0.1), "steer": Steer(), "seeds": [0, 1]}
    z: Any = hint.lq_latent_BCHW
    for tiles in (None, Tiles(size=(8, 12), tile=(8, 8), overlap=4, compression=1, settings=tiling())):
        method.adaptor.calls.clear()
        conditions = Conditions(cond=cond, null=null, hint=hint)
        method.denoise(z, torch.tensor([5, 5]), conditions, **at, tiles=tiles)
        rows = 2 if tiles is None else 4  # two images, in two windows
        assert method.adaptor.calls == ([rows * calls] if batched else [rows] * calls)


def test_every_release_has_a_trajectory() -> None:
    from restore_lab.config.conf_dir import conf_dir

    methods = {path.parent.name for path in (conf_dir() / "method").glob("*/release.yaml")}
    assert methods == {"supir", "instantir"}  # a new one: a trajectory above, and its name here
