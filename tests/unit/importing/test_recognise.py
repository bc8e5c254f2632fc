"""ControlNets, DiffBIR's IRControlNet and LoRAs; what is recognised and refused; no pickle is run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers

from restore_lab.importing.checkpoint import checkpoint_files, read_checkpoint
from restore_lab.importing.recognise import recognise
from restore_lab.types import Hint
from tests.helpers.import_priors import HEADS, LAYERS, WIDTHS, imported, method_with, prior_folder, stored
from tests.helpers.ldm_reference import DiffBIRControl, randomised
from tests.helpers.payload import Payload
from tests.helpers.toy_priors import TEXT_WIDTH, toy_inputs

HINT_WIDTHS = (4, 6, 8)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """Of SD 2.1's shape: linear projections, v prediction."""
    return prior_folder(tmp_path_factory.mktemp("prior"), "sd21")


def words(prior, tmp_path) -> list[str]:
    return ["scale=tiny", f"backbone.path={prior}", f"runs_dir={tmp_path}"]


def toy_controlnet(prior: Path) -> ControlNetModel:
    unet = UNet2DConditionModel.from_pretrained(prior / "unet")
    made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_WIDTHS)
    return randomised(made)  # type: ignore[return-value]


@torch.no_grad()
def test_a_diffusers_controlnet_folder_gives_diffusers_output(prior, tmp_path) -> None:
    controlnet = toy_controlnet(prior)
    controlnet.save_pretrained(tmp_path / "theirs")
    own = [*words(prior, tmp_path), f"adaptor.hint_widths=[{','.join(map(str, HINT_WIDTHS))}]"]
    done = imported([tmp_path / "theirs"], *own)
    assert done.facts["sources"][0]["mapped"] == len(controlnet.state_dict())
    module = method_with(done)
    z, t, cond = toy_inputs(module.backbone)
    lq = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    down, mid = controlnet(z, t, cond.tokens_BLD, lq, return_dict=False)
    unet = UNet2DConditionModel.from_pretrained(prior / "unet")
    theirs = unet(z, t, cond.tokens_BLD, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    controls = module.adaptor.control(z, t, Hint(lq_BCHW=lq), cond)
    ours = module.backbone(z, t, cond, at=module.adaptor.fuse, carry=controls)
    assert (theirs - unet(z, t, cond.tokens_BLD).sample).abs().mean() > 0.05 * theirs.abs().mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_diffbirs_controlnet_gives_its_own_output(prior, tmp_path) -> None:
    shape = {"widths": WIDTHS, "heads": HEADS, "depths": (1, 1, 0), "middle_depth": 1, "layers": LAYERS}
    reference = randomised(DiffBIRControl(**shape, context=TEXT_WIDTH))
    file = tmp_path / "v2.pth"
    torch.save({f"module.{key}": value for key, value in reference.state_dict().items()}, file)
    done = imported([file], *words(prior, tmp_path))
    (told,) = done.facts["sources"]
    assert (told["layout"], told["mapped"], told["base"]) == ("diffbir", len(reference.state_dict()), 0)
    module = method_with(done)
    z, t, cond = toy_inputs(module.backbone)
    lq = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    *down, mid = reference(z, lq, t, cond.tokens_BLD)
    unet = UNet2DConditionModel.from_pretrained(prior / "unet")
    theirs = unet(z, t, cond.tokens_BLD, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    hint = Hint(lq_BCHW=torch.zeros(2, 3, 32, 32), lq_latent_BCHW=lq)
    ours = module.backbone(z, t, cond, at=module.adaptor.fuse, carry=module.adaptor.control(z, t, hint, cond))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def toy_lora(prior: Path, *, endings: tuple[str, ...], rank: int) -> dict[str, torch.Tensor]:
    """A random LoRA in peft's names, without prefix."""
    found, draw = {}, torch.Generator().manual_seed(3)
    for name, layer in UNet2DConditionModel.from_pretrained(prior / "unet").named_modules():
        if name.endswith(endings) and hasattr(layer, "weight"):
            outputs, inputs = layer.weight.shape[:2]
            found[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=draw) / inputs**0.5
            found[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=draw)
    return found


@pytest.mark.parametrize("spelling", ["diffusers", "diffusers alpha", "header alpha", "peft"])
@torch.no_grad()
def test_a_lora_gives_the_output_that_diffusers_gives_it(prior, tmp_path, spelling) -> None:
    lora = toy_lora(prior, endings=("to_q", "to_k", "to_v", "to_out.0"), rank=4)
    folder = tmp_path / "lora"
    folder.mkdir()
    told = {"r": 4, "lora_alpha": 2, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    file = folder / "pytorch_lora_weights.safetensors"
    if spelling == "diffusers":
        stored({f"unet.{k}": v for k, v in convert_state_dict_to_diffusers(lora).items()}, file)
    elif spelling == "diffusers alpha":
        alphas = {k.replace(".lora_A.weight", ".alpha"): torch.tensor(2.0) for k in lora if "lora_A" in k}
        stored({f"unet.{k}": v for k, v in (lora | alphas).items()}, file)
    elif spelling == "header alpha":
        StableDiffusionPipeline.save_lora_weights(folder, lora, unet_lora_adapter_metadata=told)
    else:
        file = stored({f"base_model.model.{k}": v for k, v in lora.items()}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(told))
    done = imported([file], *words(prior, tmp_path))
    assert "adaptor.lora.rank=4" in done.facts["words"]
    module = method_with(done)
    z, t, cond = toy_inputs(module.backbone)
    ours = module.backbone(z, t, cond)

    unet = UNet2DConditionModel.from_pretrained(prior / "unet")
    plain = unet(z, t, cond.tokens_BLD).sample
    alpha = 4 if spelling == "diffusers" else 2
    for key, down in lora.items():
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            unet.get_submodule(name).weight += alpha / 4 * lora[f"{name}.lora_B.weight"] @ down
    theirs = unet(z, t, cond.tokens_BLD).sample
    assert (theirs - plain).abs().mean() > 0.02 * plain.abs().mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_key_left_over_is_refused_by_name(prior, tmp_path) -> None:
    lora = toy_lora(prior, endings=("to_q",), rank=2)
    lora["text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"left over: text_model\.encoder\.layers\.0\.self_attn\.q_proj\.lora_A"):
        imported([stored(lora, tmp_path / "x.safetensors")], *words(prior, tmp_path))


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_a_pickle_with_a_payload_is_refused_and_does_not_run(tmp_path, form) -> None:
    mark, file = tmp_path / "ran", tmp_path / "adapter.pt"
    state = {"image_proj": {"latents": torch.zeros(1)}, "extra": Payload(mark)}
    if form == "bare":
        file.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match="refused: this pickle holds more than tensors") as told:
        recognise([str(file)])
    assert "\n" not in str(told.value) and "weights_only" not in str(told.value)
    assert not mark.exists()
    torch.load(file, weights_only=False) if form != "bare" else pickle.loads(file.read_bytes())
    assert mark.exists()  # the payload was live


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.safetensors", b"no", "damaged or no safetensors"),
        ("a.ckpt", b"no", "refused|damaged"),
        ("a.ckpt", b"", "damaged"),
        ("a.pth", pickle.dumps([1, 2], protocol=2), "refused|damaged|not tensors by name"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, name, content, says) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as told:
        read_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(told.value) and "\n" not in str(told.value)


def test_unknown_keys_are_refused_with_the_known_formats(tmp_path) -> None:
    file = stored({"conv_first.weight": torch.zeros(1)}, tmp_path / "SUPIR-v0Q.safetensors")
    with pytest.raises(ValueError, match=r"not recognised by its 1 keys .*conv_first\.weight.*known are SUPIR"):
        recognise([str(file)])


def test_a_folder_prefers_full_precision_and_safetensors(tmp_path) -> None:
    for name in ("m.fp16.safetensors", "m.safetensors", "m.bin"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in checkpoint_files(tmp_path)] == ["m.safetensors"]
    with pytest.raises(ValueError, match="no such file or folder"):
        checkpoint_files(tmp_path / "nothing")
