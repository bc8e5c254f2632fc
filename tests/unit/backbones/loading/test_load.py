"""Loading a backbone: its parts, the shipped configs against published sizes, messages for bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from restore_lab.backbones.loading.load import load_backbone
from restore_lab.backbones.loading.places import BackboneError
from tests.helpers.checkout import CONF
from tests.helpers.toy_priors import TEXT_LENGTH, toy_unet_folder

BASES = CONF / "backbone" / "full"

# Parameters in millions: UNets from reference/stack.md's census, text encoders and codec as published.
SIZES = {
    "sd15": (859.5, [123.1], 36, 64),
    "sd21": (865.9, [340.4], 36, 64),
    "sdxl": (2567.5, [123.1, 694.7], 27, 32),
}


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("name", SIZES)
def test_shipped_configs_have_the_published_sizes(name, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = yaml.safe_load((BASES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert config.pop("_target_") == "restore_lab.backbones.loading.load.load_backbone"
    backbone = load_backbone(**{**config, "path": config["path"][-1:], "meta": True})
    unet, encoders, taps, multiple = SIZES[name]
    assert millions(backbone.unet) == pytest.approx(unet, abs=0.06)
    assert millions(backbone.codec) == pytest.approx(83.65, abs=0.01)
    assert [round(millions(encoder), 1) for encoder in backbone.text.encoders] == encoders
    assert (len(backbone.taps), backbone.multiple, backbone.codec.compression) == (taps, multiple, 8)
    assert all(p.is_meta for p in backbone.parameters())


def test_meta_runs_shapes_only() -> None:
    backbone = load_backbone("config:sdxl", family="unet", meta=True)
    cond = backbone.embed(["", ""], (512, 768))
    assert (cond.tokens_BLD.shape, cond.pooled_BD.shape, cond.size_BD.shape) == ((2, 77, 2048), (2, 1280), (2, 6))
    t = torch.zeros(2, dtype=torch.long, device="meta")
    assert backbone(torch.empty(2, 4, 64, 96, device="meta"), t, cond).shape == (2, 4, 64, 96)


@pytest.mark.parametrize("tiny_vae", [False, True])
@pytest.mark.parametrize("kind", ["sd", "sd21", "sdxl"])
def test_folder_round_trip(tmp_path, kind, tiny_vae) -> None:
    folder = toy_unet_folder(tmp_path, kind, tiny_vae=tiny_vae)
    backbone = load_backbone([str(tmp_path / "absent"), str(folder)], family="unet")
    saved = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == backbone.unet.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in backbone.unet.state_dict().items())
    assert backbone.schedule.prediction_type == ("v_prediction" if kind == "sd21" else "epsilon")
    assert float(backbone.schedule.alpha(999)) == pytest.approx(0.0 if kind == "sd21" else 0.0683, abs=1e-3)
    cond = backbone.embed(["a cat", ""], (24, 32))
    assert (cond.size_BD is not None) == (kind == "sdxl")
    if cond.size_BD is not None:
        assert cond.size_BD.tolist() == [[24, 32, 0, 0, 24, 32]] * 2


def test_half_precision_files_load_in_float32_and_bfloat16(tmp_path) -> None:
    folder = toy_unet_folder(tmp_path)
    for file in list(folder.glob("*/*.safetensors")):
        half = {key: value.half() for key, value in load_file(file).items()}
        file.unlink()
        save_file(half, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    for dtype in (torch.float32, torch.bfloat16):
        backbone = load_backbone(str(folder), family="unet", dtype=str(dtype).removeprefix("torch."))
        assert {p.dtype for p in backbone.parameters()} == {dtype}
        z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        out = backbone(z, torch.tensor([5]), backbone.embed(["a"], (32, 32)))
        assert out.dtype == torch.float32
        assert out.isfinite().all()
        assert backbone.codec.encode(torch.rand(1, 3, 16, 16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/at/all", "there is no folder /nowhere/at/all"),
        ("config:sd15", "holds configs but no weights"),
        ("asset:unknown", "there is no folder .*assets/unknown"),
        ("some/hub-id", "some/hub-id: no such folder, not in the local hub cache.*hf download some/hub-id"),
        ([], "path is empty"),
    ],
)
def test_missing_paths_are_named_in_one_line(path, message, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(path, family="unet")
    assert "\n" not in str(caught.value)


def spoil_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")


def lose_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def lose_one_weight(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("conv_in.weight")
    save_file(weights, file, metadata={"format": "pt"})


def widen_config(folder: Path) -> None:
    edit_config(folder / "unet", cross_attention_dim=24)


def rename_class(folder: Path) -> None:
    edit_config(folder / "vae", _class_name="VQModel")


def add_class_labels(folder: Path) -> None:
    edit_config(folder / "unet", class_embed_type="identity")


def spoil_json(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text("{", encoding="utf-8")


def flow_scheduler(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"prediction_type": "flow_prediction"}), encoding="utf-8")


def become_a_transformer(folder: Path) -> None:
    shutil.move(folder / "unet", folder / "transformer")


def lose_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def quantise(folder: Path) -> None:
    edit_config(folder / "text_encoder", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, "unet: weights cannot be read"),
        (lose_weights, "vae: weights cannot be read"),
        (lose_one_weight, "1 weights are missing or misshapen, the first is conv_in.weight"),
        (widen_config, "unet: weights cannot be read"),
        (rename_class, "'VQModel' is not one of"),
        (add_class_labels, "class_embed_type='identity' is not supported"),
        (spoil_json, "scheduler_config.json: cannot be read as JSON"),
        (flow_scheduler, "flow_prediction"),
        (become_a_transformer, "holds a transformer, not a unet"),
        (lose_tokenizer, "tokenizer: not a CLIP tokenizer"),
        (quantise, r"text_encoder/config\.json: stored quantised; take the plain weights"),
    ],
)
def test_broken_folders_are_named(tmp_path, spoil, message) -> None:
    folder = toy_unet_folder(tmp_path)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(str(folder), family="unet")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_length_takes_its_encoders_length(tmp_path) -> None:
    folder = toy_unet_folder(tmp_path)
    file = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    assert settings.pop("model_max_length") == TEXT_LENGTH
    file.write_text(json.dumps(settings), encoding="utf-8")
    tokens_BLD = load_backbone(str(folder), family="unet").embed(["a " * 100], (32, 32)).tokens_BLD
    assert tokens_BLD.shape[1] == TEXT_LENGTH


@pytest.mark.parametrize("argument", [{"family": "flux"}, {"family": "unet", "dtype": "int8"}])
def test_an_unknown_family_or_dtype_is_refused(argument) -> None:
    with pytest.raises(ValueError, match=r"flux|int8"):
        load_backbone("config:sd15", **argument)
