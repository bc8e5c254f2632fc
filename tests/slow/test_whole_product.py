"""The whole product of the composition matrix: every module trains once and restores under every sampler.

A job for an idle machine: `make test-slow`. Its outcome stands in docs/results/composition.md.
"""

from __future__ import annotations

import itertools

import pytest

from restore_lab.config.build import build
from tests.helpers.matrix import AXES, MADE, SAMPLED, Priors, comes_back, made, meaningful, name_of, restored, trained

pytestmark = pytest.mark.slow
MODULES = [
    choice
    for options in itertools.product(*(AXES[axis] for axis in MADE))
    if meaningful(choice := dict(zip(MADE, options, strict=True)))
]


@pytest.fixture(scope="module")
def priors(tmp_path_factory) -> Priors:
    return Priors(tmp_path_factory.mktemp("priors"))


@pytest.fixture(scope="module")
def samplers(priors) -> dict[tuple[str, ...], object]:
    """Every sampler, composed once."""
    found = {}
    for options in itertools.product(*(AXES[axis] for axis in SAMPLED)):
        sampled = dict(zip(SAMPLED, options, strict=True))
        trunk = {"trunk": "spatial", "fusion": "sft"} if sampled["fidelity"] == "adares" else {}
        whole = {"family": "sd", "trunk": "concat", "fusion": "zero_conv", "lq_encoder": "codec", "prompt": "caption"}
        found[options] = priors.config({**whole, **trunk, **sampled}).sampler
    return found


@pytest.mark.parametrize("choice", MODULES, ids=name_of)
def test_every_module_restores_under_every_sampler(choice, priors, samplers, tmp_path) -> None:
    cfg = priors.config({**choice, "fidelity": "none", "scheduler": "ddim", "init": "noise"})
    module = made(cfg)
    trained(module)
    comes_back(module, cfg, tmp_path, restored(module))
    for options, sampler in samplers.items():
        if meaningful({**choice, **dict(zip(SAMPLED, options, strict=True))}):
            module.sampler = build(sampler)
            restored(module)
