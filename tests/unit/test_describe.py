"""`restore-lab describe` at full scale, on the meta device: the counts that the papers and their releases have."""

from __future__ import annotations

import pytest

from restore_lab.methods.describe import describe, render
from tests.composed import composed

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
            *words,
        )
    )
    assert facts["name"] in render(facts)
    found = {name: count / MILLION for name, count in facts["parameters"].items()}
    return found | {name: facts[f"{name}_parameters"] / MILLION for name in ("total", "trainable")}


@pytest.mark.parametrize(("backbone", "millions"), [("sd15", 361.279), ("sd21", 364.23), ("sdxl", 1251.0)])
def test_controlnets_as_diffusers_has_them(backbone, millions) -> None:
    import torch
    from diffusers import ControlNetModel

    from restore_lab.build import build

    found = described("adaptor=controlnet", backbone=backbone)
    adaptor = sum(count for name, count in found.items() if name.startswith("adaptor."))
    assert adaptor == pytest.approx(millions, abs=0.05)
    with torch.device("meta"):
        cfg = composed("describe", f"backbone={backbone}", f"backbone.path=config:{backbone}", "backbone.meta=true")
        theirs = ControlNetModel.from_unet(build(cfg.backbone).unet, load_weights_from_unet=False)
    assert adaptor == pytest.approx(sum(p.numel() for p in theirs.parameters()) / MILLION, abs=1e-6)


def test_diff_restorer_on_sd_15_itemised() -> None:
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


def test_supirs_robust_encoder_and_prior() -> None:
    found = described("method=supir", backbone="sdxl")
    assert found["denoiser"] == pytest.approx(2567.463684, abs=1e-6)
    assert found["lq_encoder"] == pytest.approx(34.16, abs=0.01)
    assert found["trainable"] == pytest.approx(750.68, abs=0.01)  # the encoder is frozen in this stage
    released = described("method=supir", "variant=release", "adaptor=supir_release", backbone="sdxl")
    assert released["trainable"] == pytest.approx(1298.18, abs=0.01)
