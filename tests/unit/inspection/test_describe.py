"""`restore-lab describe` at full scale, on the meta device: the counts of the papers and their releases."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from restore_lab.inspection import describe as describe_module
from restore_lab.inspection.describe import describe, render_description, training_flops
from restore_lab.samplers.guidance import Branch
from restore_lab.types import Prompt
from tests.helpers.configs import composed
from tests.helpers.toy_methods import toy_spire

MILLION = 1e6


def described(*words: str, backbone: str) -> dict[str, float]:
    """Millions of parameters by part, and the totals."""
    facts = describe(
        composed(
            "describe",
            "scale=full",
            "data=procedural",
            f"backbone={backbone}",
            f"backbone.path=config:{backbone}",
            "size=64",
            "flops=false",
            *words,
        )
    )
    assert facts["name"] in render_description(facts)
    found = {name: count / MILLION for name, count in facts["parameters"].items()}
    return found | {name: facts[f"{name}_parameters"] / MILLION for name in ("total", "trainable")}


@pytest.mark.parametrize(("backbone", "millions"), [("sd15", 361.279), ("sd21", 364.23), ("sdxl", 1251.0)])
def test_controlnets_have_diffusers_counts(backbone, millions) -> None:
    import torch
    from diffusers import ControlNetModel

    from restore_lab.config.build import build

    found = described("adaptor=controlnet", backbone=backbone)
    adaptor = sum(count for name, count in found.items() if name.startswith("adaptor."))
    assert adaptor == pytest.approx(millions, abs=0.05)
    with torch.device("meta"):
        cfg = composed("describe", f"backbone={backbone}", f"backbone.path=config:{backbone}", "backbone.meta=true")
        theirs = ControlNetModel.from_unet(build(cfg.backbone).unet, load_weights_from_unet=False)
    assert adaptor == pytest.approx(sum(p.numel() for p in theirs.parameters()) / MILLION, abs=1e-6)


def test_diff_restorer_on_sd15_has_its_counts_per_part() -> None:
    """Section III gives no widths: these are our reading's, and the notes' for the decoder."""
    found = described("method=diff_restorer", backbone="sd15")
    assert found["denoiser"] == pytest.approx(859.52, abs=0.01)
    assert found["visual"] == pytest.approx(303.97, abs=0.01)  # CLIP ViT-L/14 and its projection
    assert found["processor.semantic"] == pytest.approx(1.775, abs=0.001)  # 768-768-768-768
    assert found["processor.degradation"] == pytest.approx(0.526, abs=0.001)  # 768-512-256
    assert found["processor.classifier"] == pytest.approx(2056 / MILLION, abs=1e-9)  # 256-8
    assert found["decoder"] == pytest.approx(49.49 + 9.57 + 9.57 + 2.43, abs=0.01)
    assert found["adaptor.fusion"] + found["adaptor.trunk"] == pytest.approx(361.11, abs=0.01)
    assert found["adaptor.hint"] == pytest.approx(6.67, abs=0.01)
    assert found["control_decoder"] == pytest.approx(2.08, abs=0.01)
    trained = ("adaptor", "processor", "control_decoder")
    assert found["trainable"] == pytest.approx(
        sum(n for name, n in found.items() if name.startswith(trained)), abs=1e-6
    )
    small = described("method=diff_restorer", "decoder=codec", "module.reconstruction_weight=0", backbone="sd15")
    assert small["decoder"] == 0 and "control_decoder" not in small


def test_supirs_encoder_and_prior_have_their_counts() -> None:
    found = described("method=supir", backbone="sdxl")
    assert found["denoiser"] == pytest.approx(2567.463684, abs=1e-6)
    assert found["lq_encoder"] == pytest.approx(34.16, abs=0.01)
    assert found["trainable"] == pytest.approx(750.68, abs=0.01)  # the encoder is frozen in this stage
    released = described("method=supir", "variant=release", "adaptor=supir_release", backbone="sdxl")
    assert released["trainable"] == pytest.approx(1298.18, abs=0.01)


def test_instantir_has_the_releases_counts() -> None:
    """Resampler 82.7 M, DCP 849.8 M, aggregator 1004.8 M, LoRA 232.2 M."""
    found = described("method=instantir", backbone="sdxl")
    assert found["denoiser"] == pytest.approx(2567.463684, abs=1e-6)  # LoRA in it is counted apart
    assert found["adaptor.stream"] == pytest.approx(849.8, abs=0.05)
    assert found["adaptor.trunk"] + found["adaptor.fusion"] == pytest.approx(1004.8, abs=0.05)
    assert found["trainable"] == pytest.approx(1004.8, abs=0.05)  # the last stage's
    # Its resampler has keys and values in one layer, with one A of 64 x 1280 for both; ours has an A for each.
    shared = 4 * 64 * 1280 / MILLION
    assert found["adaptor.lora"] - shared == pytest.approx(232.2, abs=0.05)
    assert found["visual"] == pytest.approx(304.37, abs=0.01)  # DINOv2-large


def test_resampler_and_stream_are_counted_separately() -> None:
    import torch

    from restore_lab.config.build import build

    cfg = composed("describe", "scale=full", "method=instantir", "backbone.path=config:sdxl", "backbone.meta=true")
    with torch.device("meta"):
        stream = build(cfg.adaptor.stream)(build(cfg.backbone), inputs=1024)
    count = lambda module: sum(p.numel() for p in module.parameters()) / MILLION  # noqa: E731
    assert count(stream.resampler) == pytest.approx(82.70, abs=0.01)
    assert count(stream.layers) == pytest.approx(767.10, abs=0.05) and len(stream.layers) == 70


@pytest.mark.parametrize(
    ("words", "backbone", "paper", "ours"),
    [
        (("method=dra",), "sdxl", 157, 156.04),  # fitted
        (("method=dra", "lq_encoder=codec"), "sd3", 80, 80.36),  # fitted
        (("method=dra", "adaptor=dra_natural"), "sdxl", None, 185.30),
    ],
)
def test_dra_has_the_counts_of_table_3(words, backbone, paper, ours) -> None:
    """Within one percent of the paper's counts by the fitted reading; the natural one is larger."""
    found = described(*words, backbone=backbone)
    assert found["trainable"] == pytest.approx(ours, abs=0.01)
    if paper is not None:
        assert found["trainable"] == pytest.approx(paper, rel=0.01)


@pytest.mark.parametrize(("depth", "millions"), [(6, 538.8), (12, 1062.9), (23, 2023.6)])
def test_sd3_controlnets_count_by_depth(depth, millions) -> None:
    """As diffusers counts them, whose hint is a latent."""
    import torch
    from diffusers import SD3ControlNetModel

    from restore_lab.backbones.loading.load import load_backbone

    latent = ("adaptor=controlnet", "adaptor.hint_widths=null", "adaptor.lq_latent=true")
    found = described(*latent, f"adaptor.trunk.depth={depth}", backbone="sd3")
    adaptor = sum(count for name, count in found.items() if name.startswith("adaptor."))
    assert found["denoiser"] == pytest.approx(2028.3, abs=0.05)
    assert adaptor == pytest.approx(millions, abs=0.05)
    with torch.device("meta"):
        prior = load_backbone("config:sd3", family="mmdit", meta=True).transformer
        theirs = SD3ControlNetModel.from_transformer(
            prior, num_layers=depth, num_extra_conditioning_channels=0, load_weights_from_transformer=False
        )
    assert adaptor == pytest.approx(sum(p.numel() for p in theirs.parameters()) / MILLION, abs=1e-6)


def test_a_training_step_is_counted_with_its_backward_pass() -> None:
    """More than latents and prediction, at most latents and three predictions; a layer goes back in one or two."""
    module = toy_spire().to("meta")
    t = torch.zeros(1, device="meta")
    lq = torch.zeros(1, 3, 32, 32, device="meta")
    prompt = Prompt(semantic=("",), negative=("",), instruction=("",))
    with torch.no_grad(), torch.device("meta"):
        cond = module.conditioner.cond(prompt, (32, 32))
        with FlopCounterMode(display=False) as latents:
            module.backbone.codec.encode(lq)
        hint = module.conditioner.hint(lq, prompt)
        side = 32 // module.backbone.codec.compression
        z = torch.zeros(1, module.backbone.codec.channels, side, side)
        with FlopCounterMode(display=False) as forward:
            module.denoiser.weigh(z, t, (Branch(weight=1.0, cond=cond, hint=hint),))
    counted = training_flops(module, size=32) - latents.get_total_flops()
    assert forward.get_total_flops() < counted <= 3 * forward.get_total_flops()


def test_a_discriminator_is_counted_separately(monkeypatch) -> None:
    plain = describe(composed("describe", "size=64", "flops=false"))
    made = describe_module.on_meta

    def adversarial(cfg):
        module = made(cfg)
        module.discriminator = torch.nn.Linear(99, 1, device="meta")
        return module

    monkeypatch.setattr(describe_module, "on_meta", adversarial)
    facts = describe(composed("describe", "size=64", "flops=false"))
    assert facts["trainable_parameters"] == plain["trainable_parameters"] > 0
    assert facts["total_parameters"] == plain["total_parameters"]
    assert facts["parameters"] == plain["parameters"] | {"discriminator": 100}
    assert (plain["others"], facts["others"]) == ({}, {"discriminator": 100})
    assert "besides    0.00 M trainable in discriminator, no part of the method" in render_description(facts)
