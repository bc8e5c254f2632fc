"""Single-file checkpoints of SD 1.5, SD 2.1, SDXL, SD3 and SD3.5 load the prior of the folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

from restore_lab.backbones.loading.diffusers_folder import SHIPPED, BackboneError, Folder
from restore_lab.backbones.loading.load import load_backbone
from tests.helpers import ldm_layout, toy_repositories
from tests.helpers.ldm_layout import single_file
from tests.helpers.toy_priors import MMDIT, PROJECTION, TEXT_WIDTH, toy_mmdit, toy_text_model
from tests.helpers.toy_repositories import public_keys, write_repository, write_weights

NAMES = {"sd15": "sd15", "sd21": "sd21", "sdxl": "sdxl", "sd3": "sd3", "sd35_medium": "sd35"}
TEXTS = ["a cat", ""]


@pytest.fixture(scope="module")
def priors(tmp_path_factory) -> dict[str, tuple[Path, Path, dict[str, Any]]]:
    """Of each kind a folder, a file with the same weights, and its modules; do not write into them."""
    root, found = tmp_path_factory.mktemp("single"), {}
    for name, layout in NAMES.items():
        folder = root / name
        parts = write_repository(folder, name)
        if "transformer" in parts:
            parts |= identity_projected(folder, name)
        file = root / f"{name}.safetensors"
        save_file(single_file(layout, parts), file)
        found[name] = (folder, file, parts)
    return found


def identity_projected(folder: Path, name: str) -> dict[str, Any]:
    """SD3's first tower projects by the identity, which its single files leave out."""
    config = toy_text_model(projected=True, second=False).config
    config.projection_dim, config.architectures = config.hidden_size, ["CLIPTextModelWithProjection"]
    tower = CLIPTextModelWithProjection(config).eval()
    torch.nn.init.eye_(tower.text_projection.weight)
    wide = {"in_channels": 16, "out_channels": 16, "joint_attention_dim": toy_repositories.T5_WIDTH}
    model = toy_mmdit(toy_repositories.TOY[name], **wide, pooled_projection_dim=TEXT_WIDTH + PROJECTION)
    for part, module, stem in (("text_encoder", tower, "model"), ("transformer", model, "diffusion_pytorch_model")):
        (module.config.save_pretrained if part == "text_encoder" else module.save_config)(folder / part)
        write_weights(folder / part, public_keys(part, module, old=False), stem=stem)
    return {"text_encoder": tower, "transformer": model}


def loaded(path: Path, name: str, **options: Any) -> Any:
    family = "mmdit" if toy_repositories.TOY[name] in MMDIT else "unet"
    return load_backbone(str(path), family=family, t5_length=4, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_file_loads_the_prior_of_its_folder(name, priors) -> None:
    folder, file, _ = priors[name]
    ours, theirs = loaded(file, name, config_path=str(folder)), loaded(folder, name)
    for mine, other in ((ours.denoiser, theirs.denoiser), (ours.codec, theirs.codec), (ours.text, theirs.text)):
        expected = other.state_dict()
        assert mine.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in mine.state_dict().items())
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(ours.codec.encode(image), theirs.codec.encode(image), rtol=1e-5, atol=1e-6)
    cond, other = ours.embed(TEXTS, (32, 32)), theirs.embed(TEXTS, (32, 32))
    torch.testing.assert_close(cond.tokens_BLD, other.tokens_BLD, rtol=1e-5, atol=1e-6)
    z, t = torch.randn(2, ours.codec.channels, 8, 8), torch.tensor([1, 700])
    # Not bit for bit: where in memory a matrix starts changes the order of its sums.
    torch.testing.assert_close(ours(z, t, cond), theirs(z, t, other), rtol=1e-5, atol=1e-6)
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())


def test_dtypes_reach_the_parts_of_a_file(priors) -> None:
    folder, file, _ = priors["sdxl"]
    options = {"dtype": "bfloat16", "codec_dtype": "float32", "config_path": str(folder)}
    backbone = loaded(file, "sdxl", **options)
    kinds = [{p.dtype for p in part.parameters()} for part in (backbone.unet, backbone.text, backbone.codec)]
    assert kinds == [{torch.bfloat16}, {torch.bfloat16}, {torch.float32}]


def test_ema_weights_are_read_where_a_file_has_them(priors, tmp_path) -> None:
    """v1-5-pruned.safetensors: `model_ema.` and the key without its dots; the folder on the hub is the average."""
    folder, file, _ = priors["sd15"]
    state = load_file(file)
    for key in [key for key in state if key.startswith("model.diffusion_model.")]:
        state["model_ema." + key.removeprefix("model.").replace(".", "")] = state[key] + 1
    save_file(state, tmp_path / "averaged.safetensors")
    backbone = loaded(tmp_path / "averaged.safetensors", "sd15", config_path=str(folder))
    plain = loaded(folder, "sd15").unet.state_dict()
    assert all(torch.equal(value, plain[key] + 1) for key, value in backbone.unet.state_dict().items())


def without(file: Path, prefix: str, target: Path) -> Path:
    """A copy of a file that lacks what starts with the prefix."""
    save_file({key: value for key, value in load_file(file).items() if not key.startswith(prefix)}, target)
    return target


def test_missing_parts_come_from_the_folder_next_to_the_file(priors, tmp_path) -> None:
    folder, file, _ = priors["sd3"]
    bare = without(file, "text_encoders.t5xxl.", tmp_path / "bare.safetensors")
    backbone = loaded(bare, "sd3", config_path=str(folder))
    expected = loaded(folder, "sd3").text.t5.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in backbone.text.t5.state_dict().items())


def test_parts_that_are_missing_everywhere_are_named_with_two_remedies(priors, tmp_path) -> None:
    folder, file, _ = priors["sd3"]
    bare = without(file, "text_encoders.t5xxl.", tmp_path / "bare.safetensors")
    configs = shutil.copytree(folder, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(BackboneError, match=r"holds no text_encoder_3; set backbone.config_path .* backbone.without="):
        loaded(bare, "sd3", config_path=str(configs))
    assert loaded(bare, "sd3", config_path=str(configs), without=["text_encoder_3"]).text.t5 is None


def test_a_file_without_configs_or_prior_is_refused(priors, tmp_path) -> None:
    folder, file, _ = priors["sdxl"]
    with pytest.raises(BackboneError, match=r"set backbone.config_path .*config:sdxl"):
        loaded(file, "sdxl")
    save_file({"lora.down.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(BackboneError, match="no prior in one file"):
        loaded(tmp_path / "lora.safetensors", "sdxl", config_path=str(folder))
    (tmp_path / "old.ckpt").write_bytes(b"a pickle")
    with pytest.raises(BackboneError, match=r"old.ckpt: a single file is read as .safetensors alone"):
        loaded(tmp_path / "old.ckpt", "sdxl", config_path=str(folder))
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=r"cut.safetensors: weights cannot be read"):
        loaded(tmp_path / "cut.safetensors", "sdxl", config_path=str(folder))


@pytest.mark.parametrize(
    ("name", "configs"), [("sd15", "sd21"), ("sdxl", "sd15"), ("sd21", "sdxl"), ("sd3", "sd35_medium")]
)
def test_a_file_of_another_kind_is_refused_in_one_line(name, configs, priors) -> None:
    with pytest.raises(BackboneError, match=r"does not fit|missing or misshapen|holds no") as caught:
        loaded(priors[name][1], name, config_path=str(priors[configs][0]))
    assert "\n" not in str(caught.value)


LOST = {
    "model.diffusion_model.middle_block.1.norm.weight": r"its unet does not fit sd15's config \(weights are missing\)",
    "first_stage_model.post_quant_conv.bias": r"its vae does not fit sd15's config \(weights are missing\)",
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": r"text_encoder: 1 weights are missing",
}


@pytest.mark.parametrize("key", LOST)
def test_a_missing_weight_is_an_error(key, priors, tmp_path) -> None:
    folder, file, _ = priors["sd15"]
    short = without(file, key, tmp_path / "short.safetensors")
    with pytest.raises(BackboneError, match=LOST[key]) as caught:
        loaded(short, "sd15", config_path=str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sd21_base", "sdxl", "sd3", "sd35_medium", "sd35_large"])
def test_the_shipped_vocabulary_equals_clips(name) -> None:
    """Token numbers as OpenAI's tokenizer gives them; each prior pads as its repository does."""
    pads = {"tokenizer": 0 if name.startswith("sd21") else 49407, "tokenizer_2": 0}
    prior = Folder(SHIPPED / name)
    for part in [part for part in ("text_encoder", "text_encoder_2") if prior.has(part)]:
        tokenizer = prior.tokenizer(part)
        assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
        assert tokenizer("A photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        padded = tokenizer("a", padding="max_length", max_length=5).input_ids
        pad = pads[part.replace("text_encoder", "tokenizer")]
        assert padded == [49406, 320, 49407, pad, pad]


def test_t5_without_its_tokenizer_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"does not ship; set backbone.config_path .*backbone.without="):
        Folder(SHIPPED / "sd3").tokenizer("text_encoder_3")


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd3", "sd35_medium", "sd35_large"])
def test_the_converters_know_every_layer_at_full_size(name) -> None:
    """On the meta device: the original layout of a whole prior comes back with diffusers' names and shapes."""
    from diffusers.loaders import single_file_utils as theirs

    family = "mmdit" if name.startswith("sd3") else "unet"
    backbone = load_backbone(f"config:{name}", family=family, meta=True)
    vae = ldm_layout.prefixed("first_stage_model.", ldm_layout.vae(backbone.codec.vae))
    prefix, model = "model.diffusion_model.", backbone.denoiser
    if family == "unet":
        state = ldm_layout.prefixed(prefix, ldm_layout.unet(model))
        found = theirs.convert_ldm_unet_checkpoint(state, config=dict(model.config))
    else:
        state = ldm_layout.prefixed(prefix, ldm_layout.mmdit(model))
        found = theirs.convert_sd3_transformer_checkpoint_to_diffusers(state)
    codec = theirs.convert_ldm_vae_checkpoint(vae, config=dict(backbone.codec.vae.config))
    for converted, module in ((found, model), (codec, backbone.codec.vae)):
        assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in module.state_dict().items()}
