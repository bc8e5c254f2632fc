"""SD3's three text encoders against diffusers' encode_prompt; absent encoders give zeros; the memory of texts."""

from __future__ import annotations

import logging
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from restore_lab.backbones.loading.load import load_backbone
from restore_lab.backbones.loading.places import BackboneError
from restore_lab.backbones.text.sd3 import TripleTextEncoder
from tests.helpers.rounding import close
from tests.helpers.toy_priors import (
    PROJECTION,
    TEXT_LENGTH,
    TEXT_WIDTH,
    TEXT_WIDTH_2,
    toy_mmdit,
    toy_scheduler,
    toy_text_model,
    toy_tokenizer,
    toy_unet_folder,
    toy_vae,
)

TEXTS = ["a cat", "", "Dejpeg 30"]
T5_WIDTH = 48  # wider than both towers side by side, so that there is something to fill
T5_LENGTH = 5
CLIPS_WIDTH = TEXT_WIDTH + TEXT_WIDTH_2


def toy_t5_tokenizer() -> T5Tokenizer:
    """T5's tokenizer with a token per letter; it ends every text with </s> and pads after it."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzD0123456789"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *((letter, -2.0) for letter in letters)], extra_ids=0)


def toy_t5(*, width: int = T5_WIDTH) -> T5EncoderModel:
    """Two layers of random weights; the global generator is left as it was."""
    config = T5Config(
        vocab_size=len(toy_t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = T5EncoderModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def triple(
    *,
    present: tuple[bool, bool, bool] = (True, True, False),
    t5_length: int = T5_LENGTH,
    width: int = T5_WIDTH,
    cache_bytes: int = 2**20,
) -> TripleTextEncoder:
    """Toy encoders with the same weights each time, some of them absent."""
    first, second, third = present
    return TripleTextEncoder(
        clips=[
            toy_text_model(projected=True, second=False, seed=1) if first else None,
            toy_text_model(projected=True, seed=2) if second else None,
        ],
        clip_tokenizers=[toy_tokenizer() if first else None, toy_tokenizer() if second else None],
        t5=toy_t5() if third else None,
        t5_tokenizer=toy_t5_tokenizer() if third else None,
        width=width,
        pooled=2 * PROJECTION,
        t5_length=t5_length,
        first_width=TEXT_WIDTH,
        cache_bytes=cache_bytes,
    )


def pipeline_of(text: TripleTextEncoder) -> StableDiffusion3Pipeline:
    """diffusers' pipeline around the same encoders."""
    return StableDiffusion3Pipeline(
        transformer=toy_mmdit(joint_attention_dim=text.width),
        scheduler=toy_scheduler("sd3"),
        vae=toy_vae(),
        text_encoder=text.encoders[0],
        tokenizer=text.tokenizers[0],
        text_encoder_2=text.encoders[1],
        tokenizer_2=text.tokenizers[1],
        text_encoder_3=text.t5,
        tokenizer_3=text.t5_tokenizer,
    )


def said_by(pipeline: StableDiffusion3Pipeline, one: str, *, t5_length: int) -> tuple[Tensor, Tensor]:
    """Tokens and pooled vector; without gradients, as its own call has it (T5 rounds otherwise with them)."""
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            one, None, None, "cpu", do_classifier_free_guidance=False, max_sequence_length=t5_length
        )
    return tokens, pooled


def test_the_toy_t5_reads_letters_and_pads() -> None:
    """The tokenizer is what the tests below need: words apart, an end, padding that T5 is not told of."""
    ids = toy_t5_tokenizer()(["a cat", "a"], padding="max_length", max_length=8, truncation=True).input_ids
    assert ids[0][:-2].count(ids[1][1]) == 2  # the letter a, twice
    assert [row.count(1) for row in ids] == [1, 1]
    assert [row.count(0) for row in ids] == [1, 5]
    assert 2 not in ids[0]


@pytest.mark.parametrize(
    ("third", "t5_length", "width"),
    [(False, 0, CLIPS_WIDTH), (False, 5, CLIPS_WIDTH), (False, 5, T5_WIDTH), (True, 5, T5_WIDTH), (True, 12, T5_WIDTH)],
)
def test_embeddings_equal_the_pipelines(third, t5_length, width) -> None:
    text = triple(present=(True, True, third), t5_length=t5_length, width=width)
    pipeline = pipeline_of(text)
    for one in TEXTS:
        theirs, pooled = said_by(pipeline, one, t5_length=t5_length)
        ours, ours_pooled = text([one])
        assert ours.shape == (1, TEXT_LENGTH + t5_length, width)
        assert torch.equal(ours, theirs)
        assert torch.equal(ours_pooled, pooled)
    assert bool(ours[:, TEXT_LENGTH:].any()) == third


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_a_batch_equals_the_pipelines_with_and_without_a_memory(cache_bytes) -> None:
    text = triple(present=(True, True, True), cache_bytes=cache_bytes)
    theirs, null, pooled, null_pooled = pipeline_of(text).encode_prompt(
        TEXTS, None, None, "cpu", max_sequence_length=T5_LENGTH
    )
    for texts, tokens, vector in ((TEXTS, theirs, pooled), ([""] * 3, null, null_pooled)):
        ours, ours_pooled = text(texts)
        torch.testing.assert_close(ours, tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours_pooled, vector, atol=1e-5, rtol=1e-5)


def silenced(tokens: Tensor, pooled: Tensor, *, present: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor]:
    """All three encoders' words with zeros where the absent ones' stood."""
    tokens, pooled = tokens.clone(), pooled.clone()
    if not present[0]:
        tokens[:, :TEXT_LENGTH, :TEXT_WIDTH] = 0
        pooled[:, :PROJECTION] = 0
    if not present[1]:
        tokens[:, :TEXT_LENGTH, TEXT_WIDTH:CLIPS_WIDTH] = 0
        pooled[:, PROJECTION:] = 0
    if not present[2]:
        tokens[:, TEXT_LENGTH:] = 0
    return tokens, pooled


@pytest.fixture(scope="module")
def whole() -> tuple[Tensor, Tensor]:
    """What all three say of the texts."""
    return triple(present=(True, True, True))(TEXTS)


def test_each_encoder_fills_its_own_part(whole) -> None:
    tokens, pooled = whole
    assert tokens.shape == (3, TEXT_LENGTH + T5_LENGTH, T5_WIDTH)
    assert pooled.shape == (3, 2 * PROJECTION)
    assert tokens[:, :TEXT_LENGTH, :CLIPS_WIDTH].all()
    assert tokens[:, TEXT_LENGTH:].all()
    assert not tokens[:, :TEXT_LENGTH, CLIPS_WIDTH:].any()
    assert pooled.all()


@pytest.mark.parametrize("present", list(product([True, False], repeat=3)))
def test_an_absent_encoder_gives_zeros(present, whole, monkeypatch) -> None:
    # Without any CLIP tower nothing tells its length, for which SD3's own stands; the toys' is shorter.
    monkeypatch.setattr("restore_lab.backbones.text.sd3.CLIP_LENGTH", TEXT_LENGTH)
    text = triple(present=present)
    tokens, pooled = text(TEXTS)
    expected, expected_pooled = silenced(*whole, present=present)
    assert close(tokens, expected)
    assert close(pooled, expected_pooled)
    assert (tokens.dtype, pooled.dtype) == (torch.float32, torch.float32)
    assert len(text.encoders) == sum(present[:2])
    again = triple(present=present, cache_bytes=0)(TEXTS)
    torch.testing.assert_close(again, (tokens, pooled), atol=1e-5, rtol=1e-5)


def test_without_clip_encoders_their_tokens_are_77_zeros() -> None:
    tokens, pooled = triple(present=(False, False, True))(["a"])
    assert tokens.shape == (1, 77 + T5_LENGTH, T5_WIDTH)
    assert not tokens[:, :77].any()
    assert tokens[:, 77:].all()
    assert not pooled.any()


def test_remembered_texts_are_bit_identical_in_any_batch() -> None:
    text, calls = triple(present=(True, True, True)), []
    for model in (*text.encoders, text.t5):
        model.register_forward_hook(lambda *_: calls.append(1))
    first = text(["b", "", "b", "a"])
    assert len(calls) == 3 * 3
    again = text(["a", "b", "", ""])
    assert len(calls) == 3 * 3
    fresh = [triple(present=(True, True, True))([one]) for one in ("b", "", "a")]
    for ours, remembered, alone in zip(first, again, zip(*fresh, strict=True), strict=True):
        b, null, repeated, a = ours.split(1)
        assert torch.equal(repeated, b)
        assert torch.equal(remembered, torch.cat([a, b, null, null]))
        assert close(torch.cat([b, null, a]), torch.cat(alone))  # by models of their own
    text.to(torch.float64)
    tokens, pooled = text(["a"])
    assert len(calls) == 4 * 3
    assert (tokens.dtype, pooled.dtype) == (torch.float64, torch.float64)


def test_zero_t5_tokens_are_left_out() -> None:
    tokens, pooled = triple(present=(True, True, True), t5_length=0)(["a cat", ""])
    expected, expected_pooled = triple(present=(True, True, False), t5_length=0)(["a cat", ""])
    assert close(tokens, expected)
    assert close(pooled, expected_pooled)


def test_a_text_longer_than_t5s_length_is_truncated() -> None:
    text = triple(present=(True, True, True), t5_length=4)
    cut, other = text(["abcd"])[0], text(["abce"])[0]
    assert torch.equal(cut[:, TEXT_LENGTH:], other[:, TEXT_LENGTH:])
    assert not torch.equal(cut, other)


def test_a_text_longer_than_clips_length_is_truncated_with_a_warning(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        tokens, _ = triple()(["x " * 40])
    assert tokens.shape == (1, TEXT_LENGTH + T5_LENGTH, T5_WIDTH)
    assert caplog.text.count("longer than the encoder's 16 tokens") == 1


def test_text_beyond_clip_that_t5_reads_gives_no_warning(caplog) -> None:
    """80 tokens of T5: 41 letters are cut for CLIP and whole for T5, which says nothing; 90 are too many for both."""
    text = triple(present=(True, True, True), t5_length=80)
    with caplog.at_level(logging.WARNING):
        text(["x" * 41, "a cat"])
        assert not caplog.text
        text(["x" * 90, "y" * 91])
    assert caplog.text.count("longer than the encoder's 80 tokens") == 1 and "yyy" not in caplog.text


@pytest.mark.parametrize("texts", ["a cat", []])
def test_bare_string_or_nothing_is_refused(texts) -> None:
    with pytest.raises(ValueError, match="non-empty sequence"):
        triple()(texts)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A toy prior without T5, and its copy with one; do not write into them."""
    root = tmp_path_factory.mktemp("sd3")
    plain = toy_unet_folder(root, "sd3")
    full = root / "with_t5"
    shutil.copytree(plain, full)
    toy_t5(width=CLIPS_WIDTH).save_pretrained(full / "text_encoder_3")
    toy_t5_tokenizer().save_pretrained(full / "tokenizer_3")
    return {"plain": plain, "full": full}


def loaded(folder: Path, **options: Any) -> Any:
    return load_backbone(str(folder), family="mmdit", t5_length=T5_LENGTH, **options)


def test_a_folder_without_a_third_encoder_loads(folders) -> None:
    text = loaded(folders["plain"]).text
    assert text.t5 is None
    tokens, pooled = text(TEXTS)
    assert tokens.shape == (3, TEXT_LENGTH + T5_LENGTH, CLIPS_WIDTH)
    assert tokens[:, :TEXT_LENGTH].all()
    assert not tokens[:, TEXT_LENGTH:].any()
    assert pooled.all()
    assert close(loaded(folders["plain"], without=["text_encoder_3"]).text(TEXTS)[0], tokens)


def test_a_folder_with_all_three_equals_the_pipeline_that_reads_it(folders) -> None:
    text = loaded(folders["full"]).text
    pipeline = StableDiffusion3Pipeline(
        transformer=toy_mmdit(),
        scheduler=toy_scheduler("sd3"),
        vae=toy_vae(),
        text_encoder=toy_text_model(projected=True, second=False, seed=2),
        tokenizer=toy_tokenizer(),
        text_encoder_2=toy_text_model(projected=True, seed=3),
        tokenizer_2=toy_tokenizer(),
        text_encoder_3=toy_t5(width=CLIPS_WIDTH),
        tokenizer_3=toy_t5_tokenizer(),
    )
    for one in TEXTS:
        theirs, pooled = said_by(pipeline, one, t5_length=T5_LENGTH)
        ours, ours_pooled = text([one])
        assert close(ours, theirs)
        assert close(ours_pooled, pooled)


@pytest.mark.parametrize("left_out", ["text_encoder", "text_encoder_2", "text_encoder_3"])
def test_without_excludes_an_encoder(left_out, folders) -> None:
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokens, pooled = loaded(folders["full"]).text(TEXTS)
    text = loaded(folders["full"], without=[left_out]).text
    assert len(text.encoders) + (text.t5 is not None) == 2
    expected = silenced(tokens, pooled, present=tuple(name != left_out for name in names))
    assert all(close(a, b) for a, b in zip(text(TEXTS), expected, strict=True))


def test_an_excluded_encoder_is_not_read(folders, tmp_path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(folders["full"], folder)
    (folder / "text_encoder_3" / "model.safetensors").write_bytes(b"not weights")
    shutil.rmtree(folder / "tokenizer_3")
    with pytest.raises(BackboneError, match="text_encoder_3: weights cannot be read") as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)
    assert loaded(folder, without=["text_encoder_3"]).text.t5 is None


@pytest.mark.parametrize("without", [["t5"], ["text_encoder_3", "text_encoder_4"], "t5"])
def test_an_unknown_encoder_is_refused_in_one_line(without, folders) -> None:
    with pytest.raises(BackboneError, match=r"backbone.without=.*is not one of text_encoder, text_encoder_2") as caught:
        loaded(folders["plain"], without=without)
    assert "\n" not in str(caught.value)


def test_a_missing_t5_tokenizer_is_named(folders, tmp_path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(folders["full"], folder)
    shutil.rmtree(folder / "tokenizer_3")
    with pytest.raises(BackboneError, match="tokenizer_3: not a T5 tokenizer") as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_the_second_clip_gives_zeros_for_it(folders, tmp_path) -> None:
    folder = tmp_path / "one_tower"
    shutil.copytree(folders["full"], folder)
    shutil.rmtree(folder / "text_encoder_2")
    expected = silenced(*loaded(folders["full"]).text(TEXTS), present=(True, False, True))
    assert all(close(a, b) for a, b in zip(loaded(folder).text(TEXTS), expected, strict=True))


def test_a_missing_first_clip_of_unknown_width_is_refused(folders, tmp_path) -> None:
    """768 and the second tower's width are more than the transformer reads: nothing tells where its tokens stood."""
    folder = tmp_path / "one_tower"
    shutil.copytree(folders["plain"], folder)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ValueError, match="text_encoder") as caught:
        loaded(folder).text(TEXTS)
    assert "\n" not in str(caught.value)
