"""Every part with every other: build, loss, one optimiser step, two sampling steps, save, strict load, equal image.

Pairwise over the axes of tests/helpers/matrix.py here; the whole product, which trains each module once, is in
tests/slow.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from restore_lab.config.compatibility import IncompatibleParts, check_compatibility
from tests.helpers.configs import composed
from tests.helpers.matrix import (
    AXES,
    Priors,
    comes_back,
    everything,
    made,
    meaningful,
    name_of,
    pairwise,
    restored,
    trained,
)
from tests.helpers.prior_cache import read_once


@pytest.fixture(scope="module")
def priors(tmp_path_factory) -> Iterator[Priors]:
    with read_once():
        yield Priors(tmp_path_factory.mktemp("priors"))


@pytest.mark.parametrize("choice", pairwise(), ids=name_of)
def test_a_combination_trains_samples_saves_and_loads(choice, priors, tmp_path) -> None:
    cfg = priors.config(choice)
    module = made(cfg)
    trained(module)
    comes_back(module, cfg, tmp_path, restored(module))


def test_the_rows_cover_every_pair_of_options() -> None:
    there = {pair for choice in pairwise() for pair in itertools.combinations(choice.items(), 2)}
    for a, b in itertools.combinations(AXES, 2):
        for x, y in itertools.product(AXES[a], AXES[b]):
            assert (((a, x), (b, y)) in there) == meaningful({a: x, b: y}), (a, x, b, y)
    assert all(meaningful(choice) for choice in pairwise())
    assert len(pairwise()) < 100 < sum(1 for _ in everything())


@pytest.mark.parametrize(
    "choice",
    [
        {"family": "sd3", "fusion": "modulation_decoder"},
        {"family": "sd3", "fusion": "zero_sft_attention"},
        {"trunk": "concat", "fidelity": "adares"},
        {"trunk": "half", "fidelity": "adares"},
        {"trunk": "none", "prompt": "caption"},
    ],
    ids=name_of,
)
def test_combinations_outside_the_matrix_are_refused(choice) -> None:
    """The last is refused by the part: a stream without an image encoder."""
    assert not meaningful(choice)
    words = [word for axis, option in choice.items() for word in AXES[axis][option]]
    if choice.get("family") == "sd3":
        words += ["adaptor=controlnet"] if "adaptor=controlnet" not in words else []
    with pytest.raises(IncompatibleParts):
        check_compatibility(composed("evaluate", *words))
