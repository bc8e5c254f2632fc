"""Text conditions against diffusers' encode_prompt; the memory of encoded texts."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from restore_lab.backbones.lru import TensorLRU
from restore_lab.backbones.text.clip import TextEncoder
from tests.helpers.rounding import close
from tests.helpers.toy_priors import toy_scheduler, toy_text_model, toy_tokenizer, toy_unet, toy_vae

TEXTS = ["a cat", "", "Dejpeg 30"]


def sd_text(cache_bytes: int = 2**20) -> TextEncoder:
    return TextEncoder(
        encoders=[toy_text_model()], tokenizers=[toy_tokenizer()], penultimate=False, cache_bytes=cache_bytes
    )


def sdxl_text() -> TextEncoder:
    encoders = [toy_text_model(), toy_text_model(projected=True)]
    return TextEncoder(encoders=encoders, tokenizers=[toy_tokenizer(), toy_tokenizer()], penultimate=True)


@torch.no_grad()
def test_sd_equals_the_pipeline() -> None:
    text = sd_text()
    pipeline = StableDiffusionPipeline(
        vae=toy_vae(),
        unet=toy_unet("sd"),
        text_encoder=text.encoders[0],
        tokenizer=text.tokenizers[0],
        scheduler=toy_scheduler("sd"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for one in TEXTS:
        theirs, _ = pipeline.encode_prompt(one, "cpu", 1, False)
        ours, pooled = text([one])
        assert torch.equal(ours, theirs)
        assert pooled is None


@torch.no_grad()
def test_sdxl_equals_the_pipeline() -> None:
    text = sdxl_text()
    pipeline = StableDiffusionXLPipeline(
        vae=toy_vae(),
        unet=toy_unet("sdxl"),
        text_encoder=text.encoders[0],
        text_encoder_2=text.encoders[1],
        tokenizer=text.tokenizers[0],
        tokenizer_2=text.tokenizers[1],
        scheduler=toy_scheduler("sdxl"),
        add_watermarker=False,
    )
    for one in TEXTS:
        tokens, _, pooled, _ = pipeline.encode_prompt(one, device="cpu", do_classifier_free_guidance=False)
        ours_tokens, ours_pooled = text([one])
        assert torch.equal(ours_tokens, tokens)
        assert torch.equal(ours_pooled, pooled)


def test_embeddings_do_not_depend_on_order_repeats_or_batch() -> None:
    together, _ = sd_text()(["b", "", "b", "a"])
    alone = [sd_text()([one])[0] for one in ("b", "", "b", "a")]
    assert close(together, torch.cat(alone))  # by models of their own
    assert not torch.equal(together[0], together[3])


def test_equal_texts_are_encoded_once() -> None:
    text, calls = sd_text(), []
    text.encoders[0].register_forward_hook(lambda *_: calls.append(1))
    text(["a", "a", "b"])
    text(["b", "a"])
    assert len(calls) == 2
    text.to(torch.float64)
    assert text(["a"])[0].dtype == torch.float64
    assert len(calls) == 3


def test_the_memory_of_texts_is_bounded() -> None:
    one = 16 * 16 * 4
    text = sd_text(cache_bytes=2 * one)
    for word in "abcdef":
        text([word])
    assert len(text.cache) == 2
    assert text.cache.bytes == 2 * one


def test_lru_drops_the_least_recently_used() -> None:
    lru = TensorLRU(max_bytes=8)
    value = (torch.zeros(1),)
    lru.put("a", value)
    lru.put("b", value)
    lru.get("a")
    lru.put("c", value)
    assert lru.get("b") is None
    assert lru.get("a") is value
    lru.put("a", (torch.zeros(2),))
    assert (len(lru), lru.bytes) == (1, 8)
    lru.put("huge", (torch.zeros(9),))
    assert (len(lru), lru.bytes) == (0, 0)


def test_long_text_is_truncated_with_a_warning(caplog) -> None:
    long = "x " * 40
    with caplog.at_level(logging.WARNING):
        tokens, _ = sd_text()([long])
    assert tokens.shape == (1, 16, 16)
    assert "longer than the encoder's 16 tokens" in caplog.text


@pytest.mark.parametrize("texts", ["a cat", []])
def test_bare_string_or_nothing_is_refused(texts) -> None:
    with pytest.raises(ValueError, match="non-empty sequence"):
        sd_text()(texts)
