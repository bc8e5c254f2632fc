"""Instructions parse into the recipe that they describe; consistency of a restored image with its LQ."""

from __future__ import annotations

import math

import pytest
import torch

from restore_lab.degradation.apply import apply_recipe
from restore_lab.degradation.instruction import consistency, parse_instruction
from restore_lab.degradation.parameterized import Parameterized


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))


def test_an_instruction_parses_into_its_recipe(image) -> None:
    """Against the degradation that drew it, noise and the way of resizing aside."""
    draws = Parameterized(name="p", down=("area",), noise=(0.0, 0.0))
    for seed in range(8):
        drawn = draws.draw(seed, 40, 48)
        again = parse_instruction(drawn.instruction(), height=40, width=48)
        assert again.instruction() == drawn.instruction()
        if drawn.steps:
            torch.testing.assert_close(apply_recipe(again, image), apply_recipe(drawn, image), atol=1e-6, rtol=0)


def test_words_without_numbers_degrade_nothing(image) -> None:
    for words in ("Deblur", "Remove all degradation", "make it nice, please", "Denoise; Dejpeg"):
        recipe = parse_instruction(words, height=40, width=48)
        assert recipe.instruction() == words
        assert {step.kind for step in recipe.steps} == {"told"}
    with pytest.raises(ValueError, match=r"'Denoise with sigma 6': the number is expected from 0 to 1"):
        parse_instruction("Denoise with sigma 6", height=40, width=48)


def test_an_image_degraded_by_its_recipe_is_consistent(image) -> None:
    recipe = parse_instruction("Deblur with sigma 2.0; Denoise with sigma 0.06", height=40, width=48)
    lq = apply_recipe(parse_instruction("Deblur with sigma 2.0", height=40, width=48), image)
    assert consistency(image, lq, recipe) == (100.0, "Deblur with sigma 2.0")
    ramp = torch.linspace(0, 1, 40)[:, None].expand(3, 40, 48)  # noise blurs into grey, and so does other noise
    assert consistency(ramp, lq, recipe)[0] < 15


def test_without_numbers_consistency_compares_block_means(image) -> None:
    """A checkerboard of +-0.1 has no mean; a shift of 0.1 is 20 dB. Whole levels count as what they stand for."""
    base = 0.25 + image / 2
    board = 0.1 * (-1.0) ** (torch.arange(40)[:, None] + torch.arange(48))
    value, against = consistency(base + board, base, None)
    assert (value > 99, against) == (True, "means of 8x8 pixels")
    assert consistency(base + 0.1, base, None)[0] == pytest.approx(-20 * math.log10(0.1), abs=1e-3)
    levels = (base * 255).round()
    assert consistency(levels / 255, levels.to(torch.uint8), None)[0] == 100.0
    assert consistency(levels / 255, (levels * 257).to(torch.uint16), None)[0] == pytest.approx(100.0, abs=1e-6)
