"""SUPIR's robust encoder: starts as the codec's, learns without darkening, round-trips."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from restore_lab.adaptors.control import ControlAdaptor
from restore_lab.adaptors.fusion.zero_conv import ZeroConv
from restore_lab.adaptors.lq_encoder import CodecEncoder, RobustEncoder
from restore_lab.adaptors.trunk.unet import Trunk
from restore_lab.backbones.codec.codec import Codec
from restore_lab.methods.supir import EncoderTraining
from restore_lab.methods.weights import LQ_ENCODER, weights_file
from restore_lab.objectives.encoder import EncoderLoss
from tests.helpers.rounding import close
from tests.helpers.toy_methods import shake, toy_batch, toy_spire
from tests.helpers.toy_priors import toy_backbone, toy_vae


@pytest.fixture(scope="module")
def backbone():
    return toy_backbone("sdxl")


def images(count: int = 4, *, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def robust(backbone, weights: str | None = None) -> RobustEncoder:
    return RobustEncoder(backbone, weights=weights)


def test_an_untrained_robust_encoder_equals_the_codecs(backbone) -> None:
    x, encoder = images(), robust(backbone)
    with torch.no_grad():
        assert close(encoder(x, backbone.codec), backbone.codec.encode(x))  # a copy of its modules
        assert torch.equal(CodecEncoder(backbone)(x, backbone.codec), backbone.codec.encode(x))
        shake(encoder)
        assert not close(encoder(x, backbone.codec), backbone.codec.encode(x))
    assert list(CodecEncoder(backbone).parameters()) == []
    assert not any(p.requires_grad for p in backbone.parameters())


def test_each_encoder_loss_compares_with_its_target(backbone) -> None:
    codec, encoder = backbone.codec, robust(backbone)
    shake(encoder, size=0.05)
    lq, hq = images(seed=1), images(seed=2)

    def encode(x):
        return encoder(x, codec)

    with torch.no_grad():
        made = codec.decode(encode(lq), clamp=False)
        wanted = {
            "codec": codec.decode(codec.encode(hq), clamp=False),
            "image": hq,
            "printed": codec.decode(encode(hq), clamp=False),
        }
    for target, image in wanted.items():
        loss, restored = EncoderLoss(target=target, both_halves=False)(lq, hq, encode=encode, codec=codec)
        assert float(loss) == pytest.approx(float((made - image).square().mean()), rel=1e-5)
        torch.testing.assert_close(restored, made)
    with pytest.raises(ValueError, match=r"target=gt: there are: codec, image, printed"):
        EncoderLoss(target="gt", both_halves=False)


def test_a_collapsed_encoder_lowers_only_the_printed_loss(backbone) -> None:
    """One latent for everything: the paper's loss is zero, the default's is not."""
    codec, latent = backbone.codec, torch.zeros(4, backbone.codec.channels, 8, 8)
    losses = {
        target: float(
            EncoderLoss(target=target, both_halves=True)(images(), images(), encode=lambda x: latent, codec=codec)[0]
        )
        for target in ("codec", "image", "printed")
    }
    assert losses["printed"] == 0.0 and losses["codec"] > 1e-8 and losses["image"] > 1e-4


def test_training_lowers_the_loss_and_keeps_brightness() -> None:
    """A codec trained for a moment, then the encoder on noisy images: less error than at the start, no darker."""
    torch.manual_seed(0)
    vae = toy_vae()
    smooth = torch.nn.functional.interpolate(images(6, seed=5)[..., :4, :4], size=(32, 32), mode="bicubic").clamp(0, 1)
    optimiser = torch.optim.Adam(vae.parameters(), lr=3e-3)
    for _ in range(70):
        loss = (vae(2 * smooth - 1).sample - (2 * smooth - 1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    backbone = toy_backbone("sd")
    backbone.codec = Codec(vae.requires_grad_(False))
    module = EncoderTraining(
        backbone=backbone,
        lq_encoder=partial(RobustEncoder, weights=None),
        objective=EncoderLoss(target="codec", both_halves=False),
    )
    logged: dict[str, list[float]] = {"loss": [], "luminance": []}
    optimiser = torch.optim.Adam(module.trainable().values(), lr=2e-3)
    draw = torch.Generator().manual_seed(1)
    for _ in range(35):
        noisy = (smooth + 0.2 * torch.randn(smooth.shape, generator=draw)).clamp(0, 1)
        batch = toy_batch(6, size=(32, 32))
        object.__setattr__(batch, "hq_BCHW", smooth)
        object.__setattr__(batch, "lq_BCHW", noisy)
        losses = module.loss(batch, step=0)
        for name, value in losses.items():
            logged[name].append(float(value.detach()))
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    first, last = (sum(part) / 5 for part in (logged["loss"][:5], logged["loss"][-5:]))
    assert last < 0.7 * first
    assert logged["luminance"][-1] == pytest.approx(1.0, abs=0.05)
    assert set(module.trainable()) == {f"lq_encoder.{name}" for name, _ in module.lq_encoder.named_parameters()}


def test_weights_round_trip_and_bad_ones_are_named(backbone, tmp_path) -> None:
    encoder = robust(backbone)
    shake(encoder)
    encoder.save(tmp_path)
    again = robust(backbone, str(tmp_path))
    assert close(again(images(), backbone.codec), encoder(images(), backbone.codec))
    with pytest.raises(ValueError, match="no such weights; train them with restore-lab train method=supir"):
        robust(backbone, str(tmp_path / "nothing"))
    other = toy_backbone("sd")
    other.codec = Codec(toy_vae(block_out_channels=(8, 8, 16)))
    with pytest.raises(ValueError, match="does not fit this codec's encoder"):
        robust(other, str(tmp_path))
    tiny = toy_backbone("sd")
    tiny.codec = Codec(toy_vae(tiny=True))
    with pytest.raises(ValueError, match="copies an AutoencoderKL's encoder; this codec is AutoencoderTiny"):
        robust(tiny)


def supir(*, seed: int = 0):
    """SPIRE's toy with SUPIR's encoder and a trunk that reads its latent."""
    adaptor = partial(
        ControlAdaptor,
        trunk=partial(Trunk, middle="trainable", feed="add"),
        fusion=ZeroConv,
        text="semantic",
        hint_widths=None,
        hint_channels=None,
        lq_latent=True,
    )
    return toy_spire(adaptor=adaptor, lq_encoder=partial(RobustEncoder, weights=None), seed=seed)


def test_weights_of_a_method_hold_its_encoder(tmp_path) -> None:
    one, other = supir(), supir(seed=1)
    shake(one)
    with torch.no_grad():
        for p in one.lq_encoder.parameters():
            p.add_(0.1)
    assert not any(name.startswith(LQ_ENCODER) for name in one.trainable())
    one.export(tmp_path)
    other.load_weights(weights_file(str(tmp_path)))
    batch = toy_batch(2)
    torch.testing.assert_close(other.restore(batch), one.restore(batch), atol=1e-6, rtol=0)
    assert any(name.startswith(LQ_ENCODER) for name in one.adaptor_state())
