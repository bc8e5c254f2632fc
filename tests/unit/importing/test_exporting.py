"""Exports: a diffusers pipeline loads them and gives our image; methods without a format are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

from restore_lab.config.build import build
from restore_lab.importing.exporting import export
from restore_lab.methods.weights import weights_file
from restore_lab.random import noise_like
from restore_lab.storage.artefact import Manifest
from restore_lab.types import Batch
from tests.helpers.configs import composed
from tests.helpers.import_priors import imported
from tests.helpers.toy_methods import shake

SEED, CAPTION, SCALE = 11, "a cat, asleep", 3.0


def method(toy_folder, *words: str, size: float = 0.5) -> tuple[Any, list[str]]:
    """A method with random weights of its own, sampling with DDIM, guided by the words."""
    own = ["scale=tiny", f"backbone.path={toy_folder}", "hint_widths=[4,6,8]", *words]
    own += ["sampler.steps=3", f"sampler.guidance.scale={SCALE}"]
    torch.manual_seed(0)
    module = build(composed("restore", *own, "input=none").module).eval()
    shake(module.adaptor, size=size)
    return module, own


def pipeline(module: Any, cls: Any, **others: Any) -> Any:
    """diffusers' pipeline around the same prior, with the same scheduler."""
    backbone = module.backbone
    parts = {
        "vae": backbone.codec.vae,
        "text_encoder": backbone.text.encoders[0],
        "tokenizer": backbone.text.tokenizers[0],
        "unet": backbone.unet,
        "scheduler": module.sampler.scheduler(backbone.schedule),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        **others,
    }
    made = cls(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def shown() -> torch.Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ours(module: Any) -> torch.Tensor:
    batch = Batch(hq_BCHW=None, lq_BCHW=shown(), caption=(CAPTION,), key=("a",), seed=(SEED,), recipe=(None,))
    return module.restore(batch)


def theirs(pipe: Any, **inputs: Any) -> torch.Tensor:
    noise = noise_like(torch.zeros(1, 4, 8, 8), [SEED], "init")
    return pipe(
        prompt=CAPTION,
        latents=noise,
        num_inference_steps=3,
        guidance_scale=SCALE,
        height=32,
        width=32,
        output_type="pt",
        **inputs,
    ).images


def same(ours: torch.Tensor, theirs: torch.Tensor, *, plain: torch.Tensor) -> bool:
    """Whether two images differ by less than a hundredth of what the adaptor does, well above rounding."""
    effect = (theirs - plain).abs().mean()
    return bool(effect > 1e-4 and (ours - theirs).abs().max() < 0.01 * effect)


@pytest.mark.parametrize("adaptor", ["controlnet_diffusers", "controlnet"])
@torch.no_grad()
def test_a_pipeline_loads_an_exported_controlnet_and_gives_the_same_image(toy_folder, tmp_path, adaptor) -> None:
    module, words = method(toy_folder, "method=controlnet", f"adaptor={adaptor}", "hint_lq_latent=false")
    module.export(_made(tmp_path / "run"))
    told = export(composed("export", *words, f"weights={tmp_path / 'run'}", f"output={tmp_path / 'out'}"))
    signed = adaptor == "controlnet"
    assert ("[-1, 1]" in told[1]) == signed and len(told) == 2
    controlnet = ControlNetModel.from_pretrained(tmp_path / "out" / "controlnet")
    pipe = pipeline(module, StableDiffusionControlNetPipeline, controlnet=controlnet)
    made = theirs(pipe, image=2 * shown() - 1 if signed else shown())
    assert same(ours(module), made, plain=theirs(pipeline(module, StableDiffusionPipeline)))
    if not signed:
        back = imported([tmp_path / "out" / "controlnet"], *words[:3], f"runs_dir={tmp_path}")
        again, first = (load_file(weights_file(str(place))) for place in (back.folder, tmp_path / "run"))
        assert again.keys() == first.keys() and all(torch.equal(again[k], first[k]) for k in first)


@torch.no_grad()
def test_a_pipeline_loads_exported_lora_and_gives_the_same_image(toy_folder, tmp_path) -> None:
    own = ("method=controlnet", "adaptor=prior_lora", "adaptor.lora.rank=2", "adaptor.lora.alpha=1")
    module, words = method(toy_folder, *own, size=3.0)
    module.export(_made(tmp_path / "run"))
    export(composed("export", *words, f"weights={tmp_path / 'run'}", f"output={tmp_path / 'out'}"))
    made = ours(module)
    clean, _ = method(toy_folder, "method=controlnet", "adaptor=controlnet", "hint_lq_latent=false")
    pipe = pipeline(clean, StableDiffusionPipeline)
    plain = theirs(pipe)
    pipe.load_lora_weights(tmp_path / "out")
    assert same(made, theirs(pipe), plain=plain)
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.kind == "exported" and manifest.extra["base"] is not None


def test_methods_without_a_diffusers_format_are_refused(toy_folder, tmp_path) -> None:
    module, words = method(toy_folder, "method=spire")
    module.export(_made(tmp_path / "run"))
    own = [f"weights={tmp_path / 'run'}", f"output={tmp_path / 'out'}", "dtype=float16"]
    told = export(composed("export", *words, *own))
    assert told[1:] == ["no format of diffusers' holds fusion, hint, trunk"]
    assert {value.dtype for value in load_file(tmp_path / "out" / "adaptor.safetensors").values()} == {torch.float16}
    again = [word for word in own if not word.startswith("dtype")]
    with pytest.raises(ValueError, match="holds another artefact"):
        export(composed("export", *words, *again))
    with pytest.raises(ValueError, match="does not fit this adaptor"):
        export(composed("export", *words, "adaptor/fusion=zero_conv", *own))


def _made(folder):
    folder.mkdir()
    return folder
