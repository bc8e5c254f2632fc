"""The codec against diffusers' encode and decode, and its normalisation in closed form."""

from __future__ import annotations

import pytest
import torch

from restore_lab.backbones.codec.codec import Codec
from tests.helpers.toy_priors import toy_vae


def images(count: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tiny", [False, True])
def test_shapes_and_range(tiny) -> None:
    codec = Codec(toy_vae(tiny=tiny))
    assert (codec.compression, codec.channels) == (4, 4)
    z = codec.encode(images())
    assert z.shape == (2, 4, 4, 4)
    out = codec.decode(100 * z)
    assert out.shape == (2, 3, 16, 16)
    assert 0 <= out.min() <= out.max() <= 1


def test_kl_equals_diffusers() -> None:
    vae = toy_vae(scaling_factor=0.5)
    codec, x = Codec(vae), images()
    z = codec.encode(x)
    torch.testing.assert_close(z, vae.encode(2 * x - 1).latent_dist.mode() * 0.5)
    torch.testing.assert_close(codec.decode(z, clamp=False), vae.decode(z / 0.5).sample / 2 + 0.5)


def test_tiny_equals_diffusers() -> None:
    vae = toy_vae(tiny=True)
    codec, x = Codec(vae), images()
    z = codec.encode(x)
    torch.testing.assert_close(z, vae.encode(2 * x - 1).latents)
    torch.testing.assert_close(codec.decode(z, clamp=False), vae.decode(z).sample / 2 + 0.5)


def test_normalisation_per_channel_and_shift() -> None:
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 4.0, 8.0]
    x = images()
    raw = toy_vae().encode(2 * x - 1).latent_dist.mode()
    per_channel = Codec(toy_vae(latents_mean=mean, latents_std=std, scaling_factor=0.5))
    expected = (raw - torch.tensor(mean).view(1, 4, 1, 1)) * 0.5 / torch.tensor(std).view(1, 4, 1, 1)
    torch.testing.assert_close(per_channel.encode(x), expected)
    shifted = Codec(toy_vae(shift_factor=0.25, scaling_factor=2.0))
    torch.testing.assert_close(shifted.encode(x), (raw - 0.25) * 2.0)
    decoded = [codec.decode(codec.encode(x), clamp=False) for codec in (per_channel, shifted, Codec(toy_vae()))]
    torch.testing.assert_close(decoded[0], decoded[2])
    torch.testing.assert_close(decoded[1], decoded[2])


def test_posterior_draw_has_its_spread_and_ignores_the_batch() -> None:
    vae = toy_vae(scaling_factor=1.0)
    codec, x = Codec(vae), images(3)
    std = vae.encode(2 * x - 1).latent_dist.std
    drawn = codec.encode(x, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2, 3)])
    alone = codec.encode(x[2:], generator=[torch.Generator().manual_seed(3)])
    torch.testing.assert_close(drawn[2:], alone)
    noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((drawn - codec.encode(x))[0] / std[0], noise, atol=1e-4, rtol=1e-4)


def test_gradients_pass_through_the_decoder() -> None:
    codec = Codec(toy_vae()).requires_grad_(False)
    z = codec.encode(images()).requires_grad_(True)
    codec.decode(z, clamp=False).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="18x18: both sides must be multiples of 4"):
        Codec(toy_vae()).encode(torch.rand(1, 3, 18, 18))
    with pytest.raises(ValueError, match="no posterior"):
        Codec(toy_vae(tiny=True)).encode(images(), generator=torch.Generator())
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        Codec(toy_vae()).encode(images(), generator=[torch.Generator()])
