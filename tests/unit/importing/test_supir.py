"""SUPIR's checkpoint: the public layout at toy width imports whole and computes the original's output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from restore_lab.importing.checkpoint import Checkpoint
from restore_lab.importing.engine import convert
from restore_lab.importing.recognise import RecognisedCheckpoint
from restore_lab.importing.supir import SUPIR_LAYOUT
from restore_lab.inspection.describe import on_meta
from restore_lab.methods.weights import fingerprint_of
from restore_lab.types import Hint
from tests.helpers.configs import composed
from tests.helpers.import_priors import KL, LAYERS, SDXL, imported, method_with, prior_folder, stored
from tests.helpers.ldm_reference import Control, ControlledUNet, KLEncoder, randomised, sinusoids
from tests.helpers.toy_priors import toy_inputs


def prefixed(module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def release():
    """Control branch, UNet with connectors, robust encoder, all random."""
    encoder = KLEncoder(widths=KL["block_out_channels"], layers=1)
    return randomised(Control(**SDXL), seed=1), randomised(ControlledUNet(**SDXL), seed=2), randomised(encoder, seed=3)


@pytest.fixture(scope="module")
def state(release) -> dict[str, torch.Tensor]:
    """A whole file, with the prior and what else a release's holds."""
    control, unet, encoder = release
    return {
        **prefixed(control, "model.control_model."),
        **prefixed(unet, "model.diffusion_model."),
        **prefixed(encoder, "first_stage_model.denoise_encoder."),
        **prefixed(encoder, "first_stage_model.encoder."),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": torch.ones(4),
        "denoiser.sigmas": torch.ones(10),
    }


@pytest.fixture(scope="module")
def prior(release, tmp_path_factory):
    """A toy SDXL folder whose UNet is the reference's, converted by diffusers' own converter."""
    folder = prior_folder(tmp_path_factory.mktemp("prior"))
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    theirs = {k: v for k, v in prefixed(release[1], "model.diffusion_model.").items() if "project_modules" not in k}
    unet.load_state_dict(convert_ldm_unet_checkpoint(theirs, dict(unet.config)))
    unet.save_pretrained(folder / "unet")
    return folder


def words(prior, tmp_path) -> list[str]:
    return ["scale=tiny", f"backbone.path={prior}", f"runs_dir={tmp_path}"]


@torch.no_grad()
def test_the_release_imports_whole_and_gives_its_output(release, state, prior, tmp_path) -> None:
    control, unet, encoder = release
    file = tmp_path / "no_name_that_says_anything.ckpt"
    torch.save({"state_dict": state, "global_step": 7}, file)
    done = imported([file], *words(prior, tmp_path))
    (told,) = done.facts["sources"]
    assert told["layout"] == "supir" and told["mapped"] + told["base"] == told["keys"] == len(state)
    trained = [k for k in state if "control_model" in k or "project_modules" in k or "denoise_encoder" in k]
    assert told["mapped"] == told["tensors"] == len(trained)

    module = method_with(done, *words(prior, tmp_path))
    assert done.facts["base"] == fingerprint_of(module.backbone.denoiser)  # read off the file, and of what is loaded
    z, t, cond = toy_inputs(module.backbone)
    y = torch.cat([cond.pooled_BD, sinusoids(cond.size_BD.flatten(), 8).reshape(2, -1)], dim=-1)
    z_lq = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    theirs = unet(z, t, cond.tokens_BLD, y, control(z_lq, t, z, cond.tokens_BLD, y))
    hint = Hint(lq_BCHW=torch.zeros(2, 3, 32, 32), lq_latent_BCHW=z_lq)
    controls = module.adaptor.control(z, t, hint, cond)
    ours = module.backbone(z, t, cond, at=module.adaptor.fuse, carry=controls)
    plain = module.backbone(z, t, cond)
    assert (theirs - plain).abs().mean() > 0.1 * theirs.abs().mean()  # the adaptor does something
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(module.lq_encoder.encoder(image), encoder(image), rtol=1e-4, atol=1e-5)


def test_a_pruned_half_precision_file_imports_too(state, prior, tmp_path) -> None:
    kept = {k: v.half() for k, v in state.items() if not k.startswith(("conditioner", "first_stage_model.encoder"))}
    kept = {k: v for k, v in kept.items() if "diffusion_model" not in k or "project_modules" in k}
    done = imported([stored(kept, tmp_path / "pruned.safetensors")], *words(prior, tmp_path))
    (told,) = done.facts["sources"]
    assert (told["keys"], told["base"]) == (len(kept), 1)  # denoiser.sigmas


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("model.control_model.input_hint_block.0.bias", "renamed"),
        ("model.control_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", "missing"),
        ("model.diffusion_model.project_modules.3.attn.to_out.0.bias", "missing"),
        ("model.diffusion_model.project_modules.11.param_free_norm.weight", "of another shape"),
        ("first_stage_model.denoise_encoder.mid.attn_1.q.weight", "of another shape"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(state, prior, tmp_path, key, change) -> None:
    assert key in state
    bad = dict(state)
    value = bad.pop(key)
    if change == "renamed":
        bad[f"{key}_renamed"] = value
    if change == "of another shape":
        bad[key] = torch.cat([value, value])
    file = stored(bad, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="it does not fit") as told:
        imported([file], *words(prior, tmp_path))
    assert key in str(told.value) and str(file) in str(told.value) and "\n" not in str(told.value)
    if change == "renamed":
        assert f"1 left over: {key}_renamed" in str(told.value) and f"1 missing: {key}" in str(told.value)
    else:
        assert f"1 {change}: {key}" in str(told.value)
    assert not list(tmp_path.glob("imported/**/*.safetensors"))


def test_every_weight_at_sdxls_size_is_covered() -> None:
    """On the meta device: the public layout's keys and shapes, made by the reference, and methods.md's counts."""
    shape = {
        "widths": (320, 640, 1280),
        "heads": (5, 10, 20),
        "depths": (0, 2, 10),
        "middle_depth": 10,
        "layers": LAYERS,
        "context": 2048,
        "label": 2816,
    }
    with torch.device("meta"):
        control, unet = Control(**shape), ControlledUNet(**shape)
        encoder = KLEncoder(widths=(128, 256, 512, 512), layers=2)
    tensors = {
        **prefixed(control, "model.control_model."),
        **prefixed(unet.project_modules, "model.diffusion_model.project_modules."),
        **prefixed(encoder, "first_stage_model.denoise_encoder."),
    }
    module = on_meta(composed("import", *SUPIR_LAYOUT.words, "files=[none]"))
    taken, base = convert(
        RecognisedCheckpoint(layout=SUPIR_LAYOUT, source=Checkpoint(file=Path("none"), tensors=tensors)), module
    )
    assert base == 0 and len(taken) == len(tensors) == len(module.adaptor_state())
    count = {part: sum(v.numel() for k, v in taken.items() if k.startswith(part)) for part in ("trunk", "fusion")}
    assert round(count["trunk"] / 1e6, 1) == 1243.4 and round(count["fusion"] / 1e6, 1) == 54.8
    assert round(sum(v.numel() for k, v in taken.items() if k.startswith("lq_encoder")) / 1e6, 2) == 34.16
