"""The degradation-aware decoder: Eq. (5), its initial state, losses, training and storage."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from restore_lab.backbones.codec.codec import Codec
from restore_lab.decoders.codec import CodecDecoder
from restore_lab.decoders.consistency import ConsistencyDecoder
from restore_lab.decoders.degradation_aware import DegradationAwareDecoder, RefinementBlock
from restore_lab.methods.diff_restorer import DecoderTraining
from restore_lab.methods.weights import DECODER, WEIGHTS
from restore_lab.objectives.decoder import (
    PatchDiscriminator,
    Perceptual,
    discriminator_loss,
    generator_loss,
    hinge,
    vgg19,
)
from restore_lab.training.module import Optimisation, TrainingModule
from restore_lab.types import Hint
from tests.helpers.toy_methods import shake, toy_batch, toy_spire
from tests.helpers.toy_priors import toy_backbone, toy_vae

EMBEDDING = 6


@pytest.fixture(scope="module")
def backbone():
    return toy_backbone("sd")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def hint(count: int = 2, *, seed: int = 0) -> Hint:
    return Hint(lq_BCHW=draw(count, 3, 32, 32, seed=seed), degradation_BD=draw(count, EMBEDDING, seed=seed + 1))


def test_the_encoders_feature_maps_end_in_its_output(backbone) -> None:
    x, vae = draw(2, 3, 32, 32), backbone.codec.vae
    with torch.no_grad():
        levels = backbone.codec.features(x)
        encoder = vae.encoder
        h = encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(levels[-1])))
        assert torch.equal(encoder.conv_out(h), encoder(2 * x - 1))
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 32, 32), (8, 16, 16), (8, 8, 8)]


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_an_untrained_decoder_equals_the_codecs_bit_for_bit(backbone, blocks) -> None:
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decoder = DegradationAwareDecoder(backbone, blocks=blocks, embedding=EMBEDDING)
    with torch.no_grad():
        plain = backbone.codec.decode(z, clamp=False)
        assert torch.equal(decoder(z, hint(), backbone.codec), plain)
        assert torch.equal(CodecDecoder(backbone)(z, hint(), backbone.codec), plain)
        if blocks:
            shake(decoder.blocks)
            made = decoder(z, hint(), backbone.codec)
            assert (made - plain).abs().max() > 1e-3
            other = decoder(z, Hint(lq_BCHW=hint(seed=9).lq_BCHW, degradation_BD=hint().degradation_BD), backbone.codec)
            assert (other - made).abs().max() > 1e-4  # the LQ is seen
            other = decoder(z, Hint(lq_BCHW=hint().lq_BCHW, degradation_BD=-hint().degradation_BD), backbone.codec)
            assert (other - made).abs().max() > 1e-4  # and what degraded it


def test_a_refinement_block_equals_equation_5() -> None:
    block = RefinementBlock(4, embedding=EMBEDDING).double()
    shake(block)
    z, lq, p = (draw(2, *shape).double() for shape in ((4, 5, 7), (4, 5, 7), (EMBEDDING,)))
    w = dict(block.named_parameters())
    merged = F.conv2d(torch.cat([z, lq], 1), w["merge.weight"], w["merge.bias"], padding=1)
    gate = 1 / (1 + torch.exp(-(p @ w["gate.weight"].T + w["gate.bias"])))
    h = F.conv2d(F.silu(merged * gate[:, :, None, None]), w["body.1.weight"], w["body.1.bias"], padding=1)
    h = F.silu(F.group_norm(h, 4, w["body.2.weight"], w["body.2.bias"]))
    h = F.conv2d(h, w["body.4.weight"], w["body.4.bias"], padding=1)
    torch.testing.assert_close(block(z, lq, p), h + z)


def test_blocks_of_sds_codec_have_the_documented_sizes() -> None:
    sizes = [sum(p.numel() for p in RefinementBlock(width, embedding=256).parameters()) for width in (512, 512, 256)]
    assert [round(size / 1e6, 2) for size in sizes] == [9.57, 9.57, 2.43]


def test_bad_arguments_and_inputs_are_refused(backbone) -> None:
    with pytest.raises(ValueError, match=r"decoder\.blocks=4: this codec has 3 levels"):
        DegradationAwareDecoder(backbone, blocks=4, embedding=0)
    decoder = DegradationAwareDecoder(backbone, blocks=1, embedding=EMBEDDING)
    with pytest.raises(ValueError, match=r"the method has none; set decoder\.embedding=0"):
        decoder(draw(1, 4, 8, 8), Hint(lq_BCHW=draw(1, 3, 32, 32)), backbone.codec)
    with pytest.raises(ValueError, match=r"decodes SD 1.x's latents .* 1/4 of the side; set decoder=codec"):
        ConsistencyDecoder(backbone, path="nowhere")


def test_the_consistency_decoder_equals_diffusers(backbone, tmp_path) -> None:
    from diffusers import ConsistencyDecoderVAE

    blocks = {"layers_per_block": 1, "norm_num_groups": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = ConsistencyDecoderVAE(
            encoder_block_out_channels=(8, 8, 8, 8),
            encoder_norm_num_groups=4,
            encoder_layers_per_block=1,
            **{f"decoder_{name}": value for name, value in blocks.items()},
            decoder_block_out_channels=(8, 8, 8, 8),
        )
    theirs.save_pretrained(tmp_path)
    four = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    codec = Codec(toy_vae(block_out_channels=(8, 8, 8, 8), **four, scaling_factor=0.18215))
    backbone = toy_backbone("sd")
    backbone.codec = codec
    decoder = ConsistencyDecoder(backbone, path=str(tmp_path))
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = decoder(z, hint(), codec)
        alone = theirs.decode(z[1:] / 0.18215, generator=torch.Generator().manual_seed(0)).sample
    torch.testing.assert_close(made[1:], (alone + 1) / 2, atol=1e-5, rtol=1e-5)
    assert made.shape == (2, 3, 32, 32) and not any(p.requires_grad for p in decoder.parameters())
    with pytest.raises(ValueError, match=r"decoder\.path=/nowhere: no consistency decoder"):
        ConsistencyDecoder(backbone, path="/nowhere")
    backbone.codec = Codec(toy_vae(block_out_channels=(8, 8, 8, 8), **four, scaling_factor=0.13025))
    with pytest.raises(ValueError, match=r"scaled by 0.18215; this codec's are scaled by 0.13025"):
        ConsistencyDecoder(backbone, path=str(tmp_path))


def test_hinge_losses_equal_their_formulas() -> None:
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.5])
    assert float(hinge(real, made)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1.5) / 2))


def test_decoder_and_discriminator_get_separate_gradients() -> None:
    rival = PatchDiscriminator(width=4, layers=1)
    made, real = draw(2, 3, 16, 16).requires_grad_(), draw(2, 3, 16, 16, seed=1)
    loss = generator_loss(rival, made)
    assert float(loss.detach()) == pytest.approx(-float(rival(made).mean().detach()), rel=1e-5)
    (loss + discriminator_loss(rival, made, real)).backward()
    both = [p.grad.clone() for p in rival.parameters()]
    image = made.grad.clone()
    rival.zero_grad()
    hinge(rival(real), rival(made.detach())).backward()
    for found, p in zip(both, rival.parameters(), strict=True):
        torch.testing.assert_close(found, p.grad)
    alone = made.detach().requires_grad_()
    (-rival(alone).mean()).backward()
    torch.testing.assert_close(image, alone.grad)


def test_the_discriminator_judges_patches_of_70_pixels() -> None:
    rival = PatchDiscriminator(width=4, layers=3)
    for index, layer in enumerate(rival.body):
        if isinstance(layer, nn.GroupNorm):  # it joins the whole picture
            rival.body[index] = nn.Identity()
    image = torch.zeros(1, 3, 160, 160, requires_grad=True)
    logits = rival(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    touched = image.grad.abs().sum(dim=(0, 1)) > 0
    assert (int(touched.any(dim=0).sum()), int(touched.any(dim=1).sum())) == (70, 70)


@pytest.fixture(scope="module")
def vgg_state() -> dict[str, torch.Tensor]:
    from torchvision.models import vgg19 as architecture

    with torch.device("meta"):
        features = architecture().features.to_empty(device="cpu")
    draw = torch.Generator().manual_seed(0)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=draw)
            nn.init.zeros_(layer.bias)
    return {f"features.{name}": value for name, value in features.state_dict().items()}


def test_the_perceptual_loss_equals_torchvisions_features(vgg_state, tmp_path) -> None:
    from torchvision.models import vgg19 as architecture
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.save(vgg_state, tmp_path / "vgg.pth")
    loss = vgg19(str(tmp_path / "vgg.pth"))
    assert isinstance(loss, Perceptual) and not any(p.requires_grad for p in loss.parameters())
    with torch.device("meta"):
        features = architecture().features.eval()
    features.load_state_dict({name.removeprefix("features."): p for name, p in vgg_state.items()}, assign=True)
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    weights = {"2": 0.1, "7": 0.1, "16": 1.0, "25": 1.0, "34": 1.0}
    extract = create_feature_extractor(features, list(weights))
    made, wanted = draw(1, 3, 32, 32), draw(1, 3, 32, 32, seed=1)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        a, b = (extract((x - mean) / std) for x in (made, wanted))
        by_hand = sum(weight * (a[name] - b[name]).abs().mean() for name, weight in weights.items())
        torch.testing.assert_close(loss(made, wanted), by_hand)
        assert float(loss(made, made)) == 0.0


def test_without_vgg_weights_the_perceptual_loss_is_left_out_with_a_warning(
    vgg_state, tmp_path, caplog, monkeypatch
) -> None:
    from urllib.error import URLError

    from torchvision.models import VGG19_Weights

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(VGG19_Weights, "get_state_dict", offline)
    for weights in (None, "torchvision"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert vgg19(weights) is None
        assert "the perceptual loss is left out, the other two go on" in caplog.text
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "damaged.pth").write_bytes(b"nothing")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    for name in ("other.pth", "damaged.pth", "damaged.safetensors"):
        with pytest.raises(ValueError, match=rf"{name}: not torchvision's VGG-19 .*; give another file, or null"):
            vgg19(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"vgg19=.*nowhere\.pth: cannot be read"):
        vgg19(str(tmp_path / "nowhere.pth"))


def restorer(*, decoder=True, seed: int = 0):
    made = partial(DegradationAwareDecoder, blocks=2, embedding=0) if decoder else None
    return toy_spire(decoder=made, seed=seed)


def training(*, perceptual=None, rival: bool = True, after: int = 0) -> DecoderTraining:
    return DecoderTraining(
        restorer=restorer(),
        discriminator=PatchDiscriminator(width=4, layers=1) if rival else None,
        perceptual=perceptual,
        perceptual_weight=0.1,
        adversarial_weight=0.5,
        adversarial_from=after,
        discriminator_lr=1e-4,
        discriminator_betas=(0.5, 0.9),
    )


def losses_of(module: DecoderTraining) -> dict[str, float]:
    losses = module.loss(toy_batch(), step=0)
    losses["loss"].backward()
    return {name: float(value.detach()) for name, value in losses.items()}


def test_the_loss_of_the_stage_is_the_sum_of_its_parts(vgg_state) -> None:
    from torchvision.models import vgg19 as architecture

    module = training(perceptual=Perceptual(architecture(num_classes=1).features))
    found = losses_of(module)
    parts = {"reconstruction", "perceptual", "adversarial", "discriminator"}
    assert found["loss"] == pytest.approx(sum(found[part] for part in parts), rel=1e-5)
    silent = {name for name, p in module.trainable().items() if p.grad is None or not p.grad.any()}
    # Behind a convolution that starts at zero nothing is learned in the first step.
    assert silent and all("restorer.decoder.blocks" in name and "body.4" not in name for name in silent)
    assert all(name.startswith(("restorer.decoder.", "discriminator.")) for name in module.trainable())
    assert "adversarial" not in losses_of(training(after=5))
    assert set(losses_of(training(rival=False))) == {"reconstruction", "loss"}
    groups = module.param_groups()
    assert [group.get("lr") for group in groups] == [None, 1e-4] and groups[1]["betas"] == (0.5, 0.9)


def test_a_decoder_learns_what_the_codec_lost() -> None:
    """A few steps on one batch bring the clean latents' images nearer to the clean images."""
    module = training(rival=False)
    optimiser = torch.optim.AdamW(module.param_groups(), lr=5e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        losses.append(losses_of(module)["loss"])
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]


def test_weights_of_the_decoder_stage_hold_the_adaptors(tmp_path, caplog) -> None:
    one = training()
    shake(one.restorer.adaptor, size=0.05)
    (tmp_path / "adaptor").mkdir()
    (tmp_path / "decoder").mkdir()
    one.restorer.export(tmp_path / "adaptor")
    shake(one.restorer.decoder, size=0.05)
    one.export(tmp_path / "decoder")
    wanted = one.restorer.restore(toy_batch())

    other = restorer(seed=1)
    other.load_weights(tmp_path / "decoder" / WEIGHTS)
    torch.testing.assert_close(other.restore(toy_batch()), wanted, atol=1e-5, rtol=0)
    plain = restorer(decoder=False, seed=2)  # decoder=codec: the same file, without its decoder
    plain.load_weights(tmp_path / "decoder" / WEIGHTS)
    assert (plain.restore(toy_batch()) - wanted).abs().max() > 1e-3
    assert plain.decoder_state() == {} and all(name.startswith(DECODER) for name in other.decoder_state())
    fresh = restorer(seed=3)
    with caplog.at_level(logging.INFO):
        fresh.load_weights(tmp_path / "adaptor" / WEIGHTS)
    assert "no decoder in it (stage decoder makes one)" in caplog.text
    torch.testing.assert_close(fresh.restore(toy_batch()), plain.restore(toy_batch()), atol=1e-5, rtol=0)


def test_a_decoder_without_parameters_is_not_trained() -> None:
    settings = dict.fromkeys(("perceptual_weight", "adversarial_weight", "discriminator_lr"), 0.0)
    with pytest.raises(ValueError, match="nothing to train; choose decoder=degradation_aware"):
        DecoderTraining(
            restorer=restorer(decoder=False),
            discriminator=None,
            perceptual=None,
            adversarial_from=0,
            discriminator_betas=(0.5, 0.9),
            **settings,
        )


def test_a_decoder_does_not_change_the_adaptors_initial_weights() -> None:
    """So that it need not count in the identity of the stage before it."""
    one, other = restorer(decoder=False), restorer(decoder=True)
    for name, value in one.adaptor_state().items():
        assert torch.equal(value, other.adaptor_state()[name]), name


def test_further_training_keeps_a_trained_decoder(tmp_path) -> None:
    one = training()
    shake(one.restorer.decoder, size=0.05)
    one.export(tmp_path)
    again = restorer(seed=4)
    again.load_weights(tmp_path / WEIGHTS)
    (tmp_path / "again").mkdir()
    again.export(tmp_path / "again")
    last = restorer(seed=5)
    last.load_weights(tmp_path / "again" / WEIGHTS)
    torch.testing.assert_close(last.restore(toy_batch()), one.restorer.restore(toy_batch()), atol=1e-5, rtol=0)


def test_gradients_are_clipped_per_optimiser() -> None:
    module = TrainingModule(training(), optimisation=Optimisation(lr=1.0))
    optimiser = torch.optim.SGD(module.module.param_groups(), lr=1.0)
    for size, group in zip((1e-3, 100.0), optimiser.param_groups, strict=True):
        for p in group["params"]:
            p.grad = torch.full_like(p, size)
    small = [p.grad.clone() for p in optimiser.param_groups[0]["params"]]
    module.configure_gradient_clipping(optimiser, gradient_clip_val=1.0)
    assert all(torch.equal(p.grad, g) for p, g in zip(optimiser.param_groups[0]["params"], small, strict=True))
    norm = torch.stack([p.grad.norm() for p in optimiser.param_groups[1]["params"]]).norm()
    assert float(norm) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_decoder_of_a_codec_in_half_precision_is_trained_in_single(backbone, dtype) -> None:
    codec = Codec(toy_vae().to(dtype))
    half = toy_backbone("sd")
    half.codec = codec
    decoder = DegradationAwareDecoder(half, blocks=2, embedding=EMBEDDING)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}
    made = decoder(z, hint(1), codec)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, codec.decode(z, clamp=False), atol=0.05, rtol=0)
