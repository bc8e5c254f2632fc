"""Precision per part: the dtype of each part's weights, and what stays in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from restore_lab.backbones.loading.diffusers_folder import BackboneError
from restore_lab.backbones.loading.load import load_backbone
from tests.helpers.checkout import CONF
from tests.helpers.toy_priors import toy_unet_folder, toy_vae
from tests.helpers.toy_repositories import write_repository

BASES = CONF / "backbone" / "full"


def kinds(backbone: Any) -> tuple[set[torch.dtype], ...]:
    """Of denoiser, text encoders and codec."""
    parts = (backbone.denoiser, backbone.text, backbone.codec)
    return tuple({p.dtype for p in part.parameters()} for part in parts)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"dtype": "bfloat16"}, ("bfloat16", "bfloat16", "bfloat16")),
        ({"dtype": "bfloat16", "codec_dtype": "float32"}, ("bfloat16", "bfloat16", "float32")),
        ({"text_dtype": "float16"}, ("float32", "float16", "float32")),
        (
            {"dtype": "float16", "text_dtype": "bfloat16"},
            ("float16", "bfloat16", "float32"),
        ),  # the codec would overflow
        ({"codec_dtype": "float16"}, ("float32", "float32", "float32")),
    ],
)
def test_each_part_has_the_dtype_of_its_setting(words, expected, tmp_path) -> None:
    backbone = load_backbone(str(toy_unet_folder(tmp_path)), family="unet", **words)
    assert kinds(backbone) == tuple({getattr(torch, word)} for word in expected)


def test_a_codec_without_force_upcast_stays_in_float16(tmp_path) -> None:
    folder = toy_unet_folder(tmp_path)
    toy_vae(seed=9, force_upcast=False).save_pretrained(tmp_path / "fixed")
    options = {"family": "unet", "dtype": "float16", "codec_path": str(tmp_path / "fixed")}
    backbone = load_backbone(str(folder), **options)
    assert kinds(backbone)[2] == {torch.float16}
    expected = toy_vae(seed=9).state_dict()
    assert all(torch.equal(value, expected[key].half()) for key, value in backbone.codec.vae.state_dict().items())
    with pytest.raises(BackboneError, match=r"codec_path=.*no codec in diffusers format"):
        load_backbone(str(folder), **{**options, "codec_path": str(tmp_path / "nowhere")})


def test_t5_keeps_float32_layers_that_overflow_in_float16(tmp_path) -> None:
    write_repository(tmp_path / "sd3", "sd3")
    backbone = load_backbone(str(tmp_path / "sd3"), family="mmdit", text_dtype="float16", t5_length=4)
    types = {name.rpartition("wo.")[1]: p.dtype for name, p in backbone.text.t5.named_parameters()}
    assert types == {"": torch.float16, "wo.": torch.float32}


@pytest.mark.parametrize("word", ["dtype", "text_dtype", "codec_dtype"])
def test_an_unknown_dtype_is_named(word) -> None:
    with pytest.raises(ValueError, match=f"{word}=int8: there are: float32, float16, bfloat16"):
        load_backbone("config:sd15", family="unet", **{word: "int8"})


@pytest.mark.parametrize("name", ["sd15", "sd21", "sd21_base", "sdxl", "sd3"])
def test_real_priors_are_read_in_bfloat16_with_their_codec_in_float32(name) -> None:
    settings = yaml.safe_load((BASES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert (settings["dtype"], settings["text_dtype"], settings["codec_dtype"]) == ("bfloat16", None, "float32")
