"""The prompt slots: each source's texts, and dropout from the samples' seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from restore_lab.prompts.dropout import Dropout
from restore_lab.prompts.instruction import Blind, FromRecipe
from restore_lab.prompts.semantic import Caption, FixedText, NoText, ShuffledCaption
from restore_lab.prompts.slots import PromptSources
from restore_lab.types import REMOVE_ALL, Batch, Recipe
from tests.helpers.toy_methods import recipe_of
from tests.helpers.toy_priors import toy_dino


def batch(count: int = 4, *, first: int = 0) -> Batch:
    numbers = range(first, first + count)
    return Batch(
        hq_BCHW=None,
        lq_BCHW=None,
        caption=tuple(f"caption {n}" for n in numbers),
        key=tuple(f"key_{n}" for n in numbers),
        seed=tuple(numbers),
        recipe=(recipe_of("blur", "noise"),) * count,
    )


def sources(*, semantic=None, instruction=None, p=(0.0, 0.0), positive="", negative="") -> PromptSources:
    return PromptSources(
        semantic=semantic or Caption(),
        instruction=instruction or FromRecipe(values=1.0),
        dropout=Dropout(semantic=p[0], instruction=p[1]),
        positive=positive,
        negative=negative,
    )


def test_semantic_sources_give_their_texts() -> None:
    four = batch()
    assert NoText()(four) == ("",) * 4
    assert Caption()(four) == four.caption
    assert FixedText(text="a cat's, asleep")(four) == ("a cat's, asleep",) * 4


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_shuffled_captions_belong_to_other_images(count) -> None:
    some = batch(count)
    words = ShuffledCaption()(some)
    assert sorted(words) == sorted(some.caption)
    assert all(a != b for a, b in zip(words, some.caption, strict=True))
    with pytest.raises(ValueError, match="at least 2 images"):
        ShuffledCaption()(batch(1))


def test_instructions_have_numbers_types_or_both() -> None:
    many = batch(400)
    numbers, types = "Deblur with sigma 2.4; Denoise with sigma 2.4", "Deblur; Denoise"
    assert set(FromRecipe(values=1.0)(many)) == {numbers}
    assert set(FromRecipe(values=0.0)(many)) == {types}
    mixed = FromRecipe(values=0.5)(many)
    assert set(mixed) == {numbers, types}
    assert 160 <= mixed.count(numbers) <= 240  # four standard deviations around 200
    assert Blind()(many) == (REMOVE_ALL,) * 400


def test_empty_and_blind_recipes_have_their_instructions_and_none_is_refused() -> None:
    clean = replace(batch(1), recipe=(Recipe(pipeline="toy", seed=0),))
    assert FromRecipe(values=1.0)(clean) == ("",)
    blind = replace(batch(1), recipe=(replace(recipe_of("blur"), blind=True),))
    assert FromRecipe(values=0.0)(blind) == (REMOVE_ALL,)
    with pytest.raises(ValueError, match=r"^key_0: no recipe says .* prompt/instruction=blind"):
        FromRecipe(values=1.0)(replace(batch(1), recipe=(None,)))


def test_each_slot_drops_at_its_own_rate() -> None:
    many = batch(2000)
    both = Dropout(semantic=0.1, instruction=0.5)
    semantic, instruction = (both(many.caption, many, slot=slot) for slot in ("semantic", "instruction"))
    assert semantic.count("") == pytest.approx(200, abs=55)
    assert instruction.count("") == pytest.approx(1000, abs=90)
    together = sum(a == b == "" for a, b in zip(semantic, instruction, strict=True))
    assert together == pytest.approx(100, abs=40)  # independent coins: 0.1 * 0.5
    assert all(text in ("", caption) for text, caption in zip(semantic, many.caption, strict=True))


def test_joint_dropout_empties_all_slots_at_once() -> None:
    many = batch(2000)
    joint = Dropout(semantic=0.0, instruction=0.1, together=0.2)
    semantic, instruction = (joint(many.caption, many, slot=slot) for slot in ("semantic", "instruction"))
    assert semantic.count("") == pytest.approx(400, abs=75)
    assert instruction.count("") == pytest.approx(560, abs=85)  # 0.2 + 0.8 * 0.1
    assert all(b == "" for a, b in zip(semantic, instruction, strict=True) if a == "")


def test_dinos_tokens_are_those_of_its_own_processor(tmp_path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    from restore_lab.prompts.visual import DinoVision

    folder = toy_dino(tmp_path)
    image = (torch.rand(3, 40, 30, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(folder)(pixel_values=pixels).last_hidden_state
    ours = DinoVision(path=str(folder)).train()(image[None].float() / 255)
    assert ours.shape == (1, 5, 16)  # the class token and 2 x 2 patches
    assert float(torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)) > 0.999
    with pytest.raises(ValueError, match=r"prompt\.visual\.path=/nowhere: no DINOv2"):
        DinoVision(path="/nowhere")


def test_dropout_and_coins_belong_to_the_sample_not_to_the_batch() -> None:
    whole, parts = batch(64), [batch(1, first=n) for n in range(64)]
    words = sources(instruction=FromRecipe(values=0.5), p=(0.3, 0.3))
    together = words(whole, training=True)
    apart = [words(one, training=True) for one in parts]
    assert together.semantic == tuple(one.semantic[0] for one in apart)
    assert together.instruction == tuple(one.instruction[0] for one in apart)
    assert "" in together.semantic and "" in together.instruction


def test_no_dropout_outside_training_and_nulls_are_empty_strings() -> None:
    prompt = sources(p=(1.0, 1.0))(batch(3), training=False)
    assert prompt.semantic == batch(3).caption
    assert "" not in prompt.instruction
    assert prompt.negative == ("",) * 3
    dropped = sources(p=(1.0, 1.0))(batch(3), training=True)
    assert dropped.semantic == dropped.instruction == ("",) * 3


def test_quality_words_are_added_only_when_restoring() -> None:
    source = sources(positive="sharp", negative="blurred, noisy", p=(0.5, 0.0))
    assert source(batch(50), training=False).semantic == tuple(f"{text} sharp" for text in batch(50).caption)
    wordless = sources(semantic=NoText(), positive="sharp")
    assert wordless(batch(2), training=False).semantic == ("sharp", "sharp")
    words = source(batch(50), training=True)
    assert set(words.semantic) <= {"", *batch(50).caption}
    assert "" in words.semantic
    assert words.negative == ("blurred, noisy",) * 50


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_probabilities_outside_0_to_1_are_refused(p) -> None:
    with pytest.raises(ValueError, match=r"Dropout\.semantic=.*: expected a number from 0 to 1"):
        Dropout(semantic=p, instruction=0.0)
    with pytest.raises(ValueError, match=r"FromRecipe\.values=.*: expected a number from 0 to 1"):
        FromRecipe(values=p)
