"""InstantIR's three files, read in their original layout, compute the original's outputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers

from restore_lab.backbones.loading import places
from restore_lab.importing.checkpoint import Checkpoint
from restore_lab.importing.engine import convert
from restore_lab.importing.instantir import ADAPTER_LAYOUT, AGGREGATOR_LAYOUT
from restore_lab.importing.lora import PREVIEWER_LAYOUT, tidy
from restore_lab.importing.recognise import RecognisedCheckpoint, recognise
from restore_lab.inspection.describe import on_meta
from restore_lab.types import Hint
from tests.helpers.configs import composed
from tests.helpers.import_priors import imported, method_with, prior_folder, stored
from tests.helpers.instantir_reference import Aggregator, Resampler, adapter_state, lora_of, merged, run, with_adapter
from tests.helpers.ldm_reference import randomised
from tests.helpers.toy_priors import toy_inputs

RANK = 8  # conf/method/instantir/tiny.yaml, as the resampler's numbers
RESAMPLER = {"hidden": 64, "depth": 2, "heads": 4, "dim_head": 16, "queries": 16}
DINO = 96  # asset:tiny_dino's width


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return prior_folder(tmp_path_factory.mktemp("prior"))


@pytest.fixture(scope="module")
def release(prior):
    """UNet with adapter, aggregator, LoRA, all random but the UNet, which is the prior's."""
    unet = UNet2DConditionModel.from_pretrained(prior / "unet").eval()
    resampler = randomised(Resampler(inputs=DINO, outputs=unet.config.cross_attention_dim, **RESAMPLER), seed=1)
    whole = with_adapter(unet, resampler)
    for processor in whole.attn_processors.values():
        randomised(processor, seed=2)
    return whole.eval(), randomised(Aggregator(unet), seed=3), lora_of(whole, rank=RANK, seed=4)


@pytest.fixture
def files(release, tmp_path):
    """The three, as the release has them: pickles, the LoRA in diffusers' spelling."""
    whole, aggregator, lora = release
    places = [tmp_path / name for name in ("adapter.pt", "aggregator.pt", "previewer_lora_weights.bin")]
    torch.save(adapter_state(whole), places[0])
    torch.save(aggregator.state_dict(), places[1])
    torch.save({f"unet.{key}": value for key, value in convert_state_dict_to_diffusers(lora).items()}, places[2])
    return places


def words(prior, tmp_path) -> list[str]:
    return ["scale=tiny", f"backbone.path={prior}", f"runs_dir={tmp_path}"]


@torch.no_grad()
def test_the_three_release_files_import_and_give_the_releases_outputs(release, files, prior, tmp_path) -> None:
    whole, aggregator, lora = release
    done = imported(files, *words(prior, tmp_path))
    assert [source["layout"] for source in done.facts["sources"]] == [
        "instantir_adapter",
        "instantir_aggregator",
        "instantir_previewer",
    ]
    assert done.facts["other_parts"] == []
    module = method_with(done, *words(prior, tmp_path))

    z, t, cond = toy_inputs(module.backbone)
    draw = torch.Generator().manual_seed(7)
    seen, lq, preview = torch.randn(2, 10, DINO, generator=draw), *torch.randn(2, *z.shape, generator=draw)
    ours = module.backbone(z, t, replace(cond, visual_BLD=module.adaptor.stream(seen)))
    theirs = run(whole, z, t, cond, seen)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    hint = Hint(lq_BCHW=torch.zeros(2, 3, 32, 32), lq_latent_BCHW=lq, reference_BCHW=preview)
    controls = module.adaptor.control(z, t, hint, cond)
    shown = replace(cond, visual_BLD=module.adaptor.stream(seen))
    ours = module.backbone(z, t, shown, at=module.adaptor.fuse, carry=controls)
    guided = run(whole, z, t, cond, seen, aggregator(lq, preview, t, cond))
    assert (guided - theirs).abs().mean() > 0.05 * guided.abs().mean()
    torch.testing.assert_close(ours, guided, rtol=1e-4, atol=1e-5)

    with module.adaptor.lora.switch(True):  # alpha is 1 where the file says none
        ours = module.backbone(z, t, replace(cond, visual_BLD=module.adaptor.stream(seen)))
    previewed = run(merged(whole, lora, scale=1 / RANK), z, t, cond, seen)
    assert (previewed - theirs).abs().mean() > 0.02 * theirs.abs().mean()
    torch.testing.assert_close(ours, previewed, rtol=1e-4, atol=1e-5)


def test_the_training_scripts_adapter_keys_are_read_too(release, prior, tmp_path) -> None:
    spelled = {}
    for part, prefix in (("image_proj", "image_proj_model"), ("ip_adapter", "adapter_modules")):
        spelled |= {f"module.{prefix}.{key}": value for key, value in adapter_state(release[0])[part].items()}
    done = imported([stored(spelled, tmp_path / "a.safetensors")], *words(prior, tmp_path))
    assert done.facts["other_parts"] == ["fusion", "lora", "trunk"]
    with pytest.raises(ValueError, match="does not fit this adaptor"):  # restoring needs the aggregator too
        method_with(done, *words(prior, tmp_path))


@pytest.mark.parametrize(
    ("number", "key"),
    [
        (0, "image_proj.layers.1.0.to_kv.weight"),
        (0, "ip_adapter.5.ln_v_ip.linear.bias"),
        (1, "controlnet_down_blocks.4.0.mul.weight"),
        (1, "ref_conv_in.bias"),
        (2, "encoder_hid_proj.layers.0.0.to_kv.lora_B.weight"),
        (2, "mid_block.resnets.0.conv1.lora_A.weight"),
    ],
)
def test_a_missing_key_is_refused_by_name(files, prior, tmp_path, number, key) -> None:
    (found,) = recognise([str(files[number])])
    assert key in found.source.tensors
    bad = stored({k: v for k, v in found.source.tensors.items() if k != key}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=f"1 missing: {key}"):
        imported([bad], *words(prior, tmp_path))


def test_parts_of_different_networks_are_not_mixed(files, prior, tmp_path) -> None:
    with pytest.raises(ValueError, match="not parts of one network"):
        imported([files[1], files[1]], *words(prior, tmp_path))


def test_every_weight_at_sdxls_size_is_covered() -> None:
    """On the meta device: keys and shapes as the references make them, and the release's counts in millions."""
    module = on_meta(composed("import", "method=instantir", "scale=full", "files=[none]"))
    sizes = {"inputs": 1024, "outputs": 2048, "hidden": 1280, "depth": 4, "heads": 20, "dim_head": 64, "queries": 64}
    config = json.loads((Path(places.__file__).parents[1] / "configs" / "sdxl" / "unet" / "config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        whole, aggregator = with_adapter(unet, Resampler(**sizes)), Aggregator(unet)
    adapter = {f"{part}.{k}": v for part, state in adapter_state(whole).items() for k, v in state.items()}
    lora = {tidy(key): value for key, value in lora_of(whole, rank=64, seed=None).items()}
    files = (
        (ADAPTER_LAYOUT, adapter, 849.8),
        (AGGREGATOR_LAYOUT, aggregator.state_dict(), 1004.8),
        (PREVIEWER_LAYOUT, lora, 232.2),
    )
    covered: set[str] = set()
    for layout, tensors, million in files:
        taken, base = convert(
            RecognisedCheckpoint(layout=layout, source=Checkpoint(file=Path("none"), tensors=tensors)), module
        )
        assert base == 0 and round(sum(value.numel() for value in tensors.values()) / 1e6, 1) == million, layout.name
        covered |= taken.keys()
    assert covered == module.adaptor_state().keys()
