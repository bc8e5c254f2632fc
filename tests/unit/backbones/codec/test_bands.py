"""The codec in bands against the whole codec: any width, any shape, in memory and in files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from restore_lab.adaptors.lq_encoder import RobustEncoder
from restore_lab.backbones.codec import bands
from restore_lab.backbones.codec.bands import Canvas, map_bands
from restore_lab.backbones.codec.codec import Codec
from restore_lab.decoders.degradation_aware import DegradationAwareDecoder
from restore_lab.types import Hint
from tests.helpers.toy_methods import shake
from tests.helpers.toy_priors import toy_backbone, toy_vae

WIDTHS = {
    "toy": {},
    "uneven, two layers": {"block_out_channels": (8, 16, 24), "layers_per_block": 2},
    "attention": {"mid_block_add_attention": True, "block_out_channels": (8, 12, 16)},
    "no quantising": {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 6},
}


def picture(height: int, width: int, *, count: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth on the left, noise on the right, so that local statistics are not those of the whole."""
    draw = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, width).expand(count, 3, height, width)
    return ramp * torch.rand(count, 3, height, width, generator=draw)


@pytest.fixture(params=["memory", "file"])
def place(request, monkeypatch) -> str:
    if request.param == "file":
        monkeypatch.setattr(bands, "IN_MEMORY", 0)
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("size", [(64, 40), (20, 132)])
def test_the_codec_in_bands_equals_the_whole_codec(name, size, place) -> None:
    codec, x = Codec(toy_vae(**WIDTHS[name])), picture(*size, count=2)
    z = codec.encode(x)
    whole = codec.decode(z, clamp=False)
    codec.pixels = size[1] * 12
    assert codec.rows(size) == 12
    torch.testing.assert_close(codec.encode(x), z, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(codec.decode(z, clamp=False), whole, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_bands_without_their_neighbours_or_the_pooled_norms_would_differ(monkeypatch) -> None:
    codec, x = Codec(toy_vae()), picture(64, 40)
    z, pieces = codec.encode(x), torch.cat([codec.encode(part) for part in x.split(16, dim=2)], dim=2)
    assert (pieces - z).abs().max() > 1e-4
    codec.pixels = 40 * 16
    monkeypatch.setattr(Canvas, "bind_norm", lambda self, norm: norm)  # each band by its own statistics
    assert (codec.encode(x) - z).abs().max() > 2e-5


def test_gradients_go_through_the_whole_codec() -> None:
    codec = Codec(toy_vae())
    codec.pixels = 64
    z = codec.encode(picture(16, 16)).detach().requires_grad_(True)
    codec.decode(z, clamp=False).sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


@torch.no_grad()
def test_the_robust_encoder_in_bands_equals_the_whole(place) -> None:
    backbone = toy_backbone("sd")
    encoder, x = RobustEncoder(backbone, weights=None), picture(64, 40)
    shake(encoder, size=0.05)
    z = encoder(x, backbone.codec)
    assert (z - backbone.codec.encode(x)).abs().max() > 1e-3
    backbone.codec.pixels = 40 * 16
    torch.testing.assert_close(encoder(x, backbone.codec), z, atol=2e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [0, 2, 3])
def test_the_degradation_aware_decoder_in_bands_equals_the_whole(blocks, place) -> None:
    backbone = toy_backbone("sd")
    torch.manual_seed(0)
    decoder, x = DegradationAwareDecoder(backbone, blocks=blocks, embedding=5), picture(64, 40, count=2)
    shake(decoder, size=0.05)
    z = backbone.codec.encode(x)
    hint = Hint(lq_BCHW=picture(64, 40, count=2, seed=1), degradation_BD=torch.randn(2, 5))
    whole = decoder(z, hint, backbone.codec)
    backbone.codec.pixels = 40 * 12
    torch.testing.assert_close(decoder(z, hint, backbone.codec), whole, atol=5e-6, rtol=1e-5)


def test_moments_are_those_of_the_whole_map(place) -> None:
    x = 100 + torch.randn(1, 8, 50, 30, generator=torch.Generator().manual_seed(0))
    canvas = Canvas(height=50, width=30, channels=8, dtype=torch.float32)
    for top in range(0, 50, 7):
        canvas.put(top, x[:, :, top : top + 7])
    torch.testing.assert_close(canvas.rows(3, 44), x[:, :, 3:44], atol=0, rtol=0)
    torch.testing.assert_close(canvas.mean_C, x.double().mean(dim=(0, 2, 3)), rtol=1e-7, atol=0)
    norm = nn.GroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(canvas.bind_norm(norm)(x), norm(x), atol=5e-5, rtol=1e-5)


def test_an_unfilled_map_has_no_norm() -> None:
    canvas = Canvas(height=4, width=4, channels=8, dtype=torch.float32)
    canvas.put(0, torch.zeros(1, 8, 2, 4))
    with pytest.raises(ValueError, match="8 of them filled"):
        canvas.bind_norm(nn.GroupNorm(4, 8))
    with pytest.raises(ValueError, match="has a BatchNorm2d"):
        canvas.bind_norm(nn.BatchNorm2d(8))


def test_out_of_memory_halves_the_bands_says_so_and_goes_on(caplog) -> None:
    x, seen = picture(32, 8), []

    def double(band: torch.Tensor) -> torch.Tensor:
        seen.append(band.shape[2])
        if band.shape[2] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * band

    made = map_bands(double, [Canvas.of(x)], like=x, channels=3, rows=32, halo=0)
    assert torch.equal(made.rows(0, 32), 2 * x)
    assert seen == [32, 16, 8, 8, 8, 8]
    assert "bands of 8 rows" in caplog.text

    def never(band: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="can't allocate"):
        map_bands(never, [Canvas.of(x)], like=x, channels=3, rows=32, halo=0)
