"""Each `variant=release` samples as its release does: every step's latent, around networks in closed form.

SUPIR's against numbers of its released code (tests/golden).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from restore_lab.backbones.schedule import Schedule
from restore_lab.config.build import build
from restore_lab.types import Cond, Hint
from tests.closed_form import SDXL, Adaptor, ClosedForm, Prior, Recorded, noises, text
from tests.composed import composed

GOLDEN = Path(__file__).parents[1] / "golden"
SUPIR = np.load(GOLDEN / "supir_sampler.npz")  # no pickle in it
CASES = sorted({name.partition("/")[0] for name in SUPIR.files if "/" in name})


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| over all numbers."""
    return float((found - expected).norm() / expected.norm())


def tensor(name: str) -> Tensor:
    return torch.from_numpy(SUPIR[name])


def released(method: str, *words: str) -> Any:
    """The sampler of a method's release as the config composes it, with words typed after it."""
    fixed = (f"method={method}", "scale=full", "data=procedural", "variant=release")
    return build(composed("evaluate", *fixed, *words).sampler)


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
    return released("supir", *words)


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
def test_supir_steps_as_its_release(case: str, monkeypatch) -> None:
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
    found = [z_BCHW * math.sqrt(1 + level.following**2) for z_BCHW, level in recorded.latents]
    for x_BCHW, expected_CHW in zip(found, tensor(f"{case}/latents"), strict=True):
        assert relative(x_BCHW[0], expected_CHW) < 1e-4
