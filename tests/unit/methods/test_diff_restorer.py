"""Diff-Restorer at toy size: CLIP's input, the three losses and their ablations, training and storage."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from restore_lab.adaptors.control import ControlAdaptor
from restore_lab.adaptors.fusion.zero_conv import ZeroConv
from restore_lab.adaptors.injection import ControlDecoder, ControlEncoder
from restore_lab.adaptors.prompt_processor import PromptProcessor
from restore_lab.adaptors.trunk.unet import Trunk
from restore_lab.degradation.diff_restorer import RandomKinds
from restore_lab.degradation.vocabulary import LABELS
from restore_lab.methods.diff_restorer import DiffRestorer, degradation_loss
from restore_lab.methods.weights import weights_file
from restore_lab.objectives.denoising import Denoising
from restore_lab.prompts.dropout import Dropout
from restore_lab.prompts.semantic import NoText
from restore_lab.prompts.slots import PromptSources
from restore_lab.prompts.visual import ClipVision
from restore_lab.samplers.tiling import Gaussian
from restore_lab.types import Batch
from tests.helpers.toy_methods import shake, toy_sampler
from tests.helpers.toy_priors import toy_backbone

WIDTHS = [8, 8, 16]


@pytest.fixture(scope="module")
def clip() -> ClipVision:
    return ClipVision(path="asset:tiny_clip")


def toy(clip, *, degradation: float = 1.0, reconstruction: float = 1.0, embedding: int = 6, seed: int = 0):
    torch.manual_seed(seed)
    backbone = toy_backbone("sd")
    return DiffRestorer(
        backbone=backbone,
        adaptor=partial(
            ControlAdaptor,
            trunk=partial(Trunk, middle="trainable", feed="add"),
            fusion=ZeroConv,
            text="semantic",
            hint_widths=None,
            hint_channels=None,
            encoder=partial(ControlEncoder, widths=WIDTHS, out=8, embedding=embedding),
        ),
        prompts=PromptSources(
            semantic=NoText(),
            instruction=NoText(),
            dropout=Dropout(semantic=0.0, instruction=0.0),
            positive="",
            negative="",
            visual=clip,
        ),
        objective=Denoising(t_min=0.0, t_max=1.0),
        sampler=toy_sampler(),
        processor=partial(PromptProcessor, hidden=12, degradation=6, kinds=8),
        control_decoder=partial(ControlDecoder, widths=WIDTHS),
        degradation_weight=degradation,
        reconstruction_weight=reconstruction,
    )


def batch(count: int = 4) -> Batch:
    hq = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    lq, recipes = RandomKinds(name="x")(hq, list(range(count)))
    names = tuple(str(i) for i in range(count))
    return Batch(hq_BCHW=hq, lq_BCHW=lq, caption=names, key=names, seed=tuple(range(count)), recipe=recipes)


def losses(module: DiffRestorer, pairs: Batch) -> dict[str, float]:
    found = module.loss(pairs, step=0)
    found["loss"].backward()
    return {name: float(value.detach()) for name, value in found.items()}


def test_clip_gets_the_input_of_its_processor(clip) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessor

    from restore_lab.storage.paths import place_of

    image = (torch.rand(3, 96, 80, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    processor = CLIPImageProcessor.from_pretrained(place_of("asset:tiny_clip"))
    pixels = processor(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = clip.projection(clip.tower(pixel_values=pixels).pooler_output)
    ours = clip(image[None].float() / 255)[:, 0]
    assert float(torch.nn.functional.cosine_similarity(ours, theirs)) > 0.999
    assert ours.shape == (1, clip.width)
    with pytest.raises(ValueError, match=r"prompt.visual.path=/nowhere: no CLIP"):
        ClipVision(path="/nowhere")


def test_the_loss_is_the_sum_of_its_three_terms(clip) -> None:
    module = toy(clip)
    shake(module.adaptor, size=0.05)
    found = losses(module, batch())
    assert found["loss"] == pytest.approx(found["diffusion"] + found["degradation"] + found["reconstruction"], rel=1e-5)
    assert found["degradation"] == pytest.approx(math.log(8), rel=0.5)
    silent = [n for n, p in module.trainable().items() if p.grad is None or not p.grad.any()]
    # Attention to a single token is the token whatever the query: what makes queries and keys of it learns nothing.
    assert all("norm2" in name or "attn2.to_q" in name or "attn2.to_k" in name for name in silent)
    frozen = [p for name, p in module.named_parameters() if name.startswith(("backbone", "visual", "prompts"))]
    assert frozen and all(p.grad is None for p in frozen)


def test_each_loss_can_be_left_out(clip) -> None:
    plain = losses(toy(clip, degradation=0.0, reconstruction=0.0), batch())
    assert set(plain) == {"diffusion", "loss"}
    module = toy(clip, degradation=0.0)
    assert not any("classifier" in name for name in module.trainable())
    assert not any("control_decoder" in name for name in toy(clip, reconstruction=0.0).trainable())
    half, whole = (losses(toy(clip, degradation=weight), batch())["degradation"] for weight in (0.5, 1.0))
    assert half == pytest.approx(whole / 2, rel=1e-4)


def test_the_classifier_loss_equals_cross_entropy() -> None:
    pairs = batch(3)
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    kinds = [next(i for i, kind in enumerate(LABELS) if _is(recipe, kind)) for recipe in pairs.recipe]
    by_hand = -sum(float(logits[i].log_softmax(0)[k]) for i, k in enumerate(kinds)) / 3
    assert float(degradation_loss(logits, pairs)) == pytest.approx(by_hand, rel=1e-5)
    unknown = Batch(**{**pairs.__dict__, "recipe": (None,) * 3})
    with pytest.raises(ValueError, match="these pairs have none; set degradation_weight=0"):
        degradation_loss(logits, unknown)


def _is(recipe, kind: str) -> bool:
    return ("motion_blur" if kind == "blur" else kind) in recipe.kinds


def test_visual_prompts_change_only_their_own_image(clip) -> None:
    module = toy(clip)
    shake(module.adaptor, size=0.05)
    shake(module.processor, size=0.2)
    pairs = batch()
    together = module.restore(pairs)
    torch.testing.assert_close(module.restore(pairs.select([2]))[0], together[2], atol=1e-4, rtol=0)
    with torch.no_grad():
        module.processor.degradation[-1].bias.add_(3.0)
    assert (module.restore(pairs) - together).abs().max() > 1e-4


def test_weights_round_trip_without_the_control_decoder(clip, tmp_path) -> None:
    one, other = toy(clip), toy(clip, seed=1)
    for part in (one.adaptor, one.processor):
        shake(part, size=0.05)
    one.export(tmp_path)
    other.load_weights(weights_file(str(tmp_path)))
    torch.testing.assert_close(other.restore(batch()), one.restore(batch()), atol=1e-5, rtol=0)
    assert not any("control_decoder" in name for name in one.adaptor_state())
    assert any(name.startswith("processor.semantic") for name in one.adaptor_state())


def test_without_p_d_the_control_gets_zeros(clip) -> None:
    """The same tensors as with it: a trained model may be tried without."""
    module = toy(clip)
    shake(module.adaptor, size=0.05)
    pairs = batch(2)
    prompt = module.conditioner.prompts(pairs, training=False)
    told = module.conditioner.hint(pairs.lq_BCHW, prompt).degradation_BD
    with_it = module.restore(pairs)
    module.conditioner.degradation_prompt = False
    null = module.conditioner.hint(pairs.lq_BCHW, prompt).degradation_BD
    assert null.shape == told.shape and not null.any() and told.any()
    assert (module.restore(pairs) - with_it).abs().max() > 1e-5


def test_without_the_semantic_branch_the_embedding_is_the_token() -> None:
    embedding = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    plain = PromptProcessor(inputs=10, tokens=10, hidden=4, degradation=3, kinds=8, semantic=False)
    assert torch.equal(plain(embedding).tokens_BLD[:, 0], embedding)
    assert not any(name.startswith("semantic") for name, _ in plain.named_parameters())
    with pytest.raises(ValueError, match=r"semantic=false: CLIP's embedding has 10 numbers and the prior's tokens 12"):
        PromptProcessor(inputs=10, tokens=12, hidden=4, degradation=3, kinds=8, semantic=False)


def test_in_tiles_clip_sees_the_whole_image_or_each_tile(clip) -> None:
    module = toy(clip).eval()
    shake(module, size=0.1)
    pairs = batch(1)
    wide = replace(pairs, hq_BCHW=None, lq_BCHW=torch.cat([pairs.lq_BCHW, 1 - pairs.lq_BCHW], dim=3))
    made = {}
    for words in ("image", "tile"):
        module.sampler.tiling = Gaussian(tile=32, overlap=8, batch=2, sigma=0.1, words=words)
        made[words] = module.restore(wide)
        assert made[words].shape == wide.lq_BCHW.shape
    assert not torch.equal(made["image"], made["tile"])
