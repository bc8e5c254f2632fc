"""Kernels and the filter against closed forms and plain convolution; resize, JPEG, rounding and noise likewise."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import special, stats
from torch.nn import functional as F

from restore_lab.degradation.blur import (
    filter_image,
    gaussian_kernel,
    generalized_kernel,
    kernel_from,
    plateau_kernel,
    sinc_kernel,
)
from restore_lab.degradation.jpeg import jpeg, round_8bit
from restore_lab.degradation.noise import gaussian_noise, poisson_noise
from restore_lab.degradation.resize import RESIZE_MODES, resize
from restore_lab.degradation.usm import usm_sharpen


def photo(*, size: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    return round_8bit(F.interpolate(coarse, size=(size, size), mode="bicubic")[0]).double()


def moments(kernel: torch.Tensor) -> tuple[float, float, float]:
    axis = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return float((kernel * x * x).sum()), float((kernel * y * y).sum()), float((kernel * x * y).sum())


def test_gaussian_kernel_has_the_variances_of_its_rotated_covariance() -> None:
    angle = 0.6
    kernel = gaussian_kernel(41, 3.0, 1.5, rotation=angle)
    c, s = math.cos(angle), math.sin(angle)
    xx, yy, xy = 9 * c * c + 2.25 * s * s, 9 * s * s + 2.25 * c * c, (9 - 2.25) * c * s
    assert float(kernel.sum()) == pytest.approx(1)
    assert moments(kernel) == pytest.approx((xx, yy, xy), abs=1e-3)


def test_families_follow_their_formulas() -> None:
    axis = np.arange(-4, 5)
    r2 = (axis[None] ** 2 + axis[:, None] ** 2) / 4.0
    for kernel, plain in (
        (generalized_kernel(9, 2.0, beta=0.7), np.exp(-0.5 * r2**0.7)),
        (plateau_kernel(9, 2.0, beta=1.8), 1 / (1 + r2**1.8)),
    ):
        assert np.allclose(kernel.numpy(), plain / plain.sum())
    assert torch.allclose(generalized_kernel(9, 2.0, beta=1.0), gaussian_kernel(9, 2.0))


def test_sinc_kernel_follows_the_bessel_formula_and_passes_low_frequencies() -> None:
    cutoff, axis = 1.7, np.arange(-10, 11)
    r = np.sqrt(axis[None] ** 2 + axis[:, None] ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        plain = np.where(r == 0, cutoff**2 / (4 * np.pi), cutoff * special.j1(cutoff * r) / (2 * np.pi * r))
    assert np.allclose(sinc_kernel(21, cutoff=cutoff).numpy(), plain / plain.sum())
    response = torch.fft.rfft2(sinc_kernel(41, cutoff=math.pi / 2), s=(128, 128)).abs()[0]
    assert response[:20].min() > 0.8 and response[50:].max() < 0.2


def test_an_even_kernel_and_an_unknown_family_are_refused() -> None:
    with pytest.raises(ValueError, match="size 8 is not a positive odd"):
        gaussian_kernel(8, 1.0)
    with pytest.raises(ValueError, match="unknown blur family 'box'"):
        kernel_from({"family": "box", "size": 3, "sigma_x": 1.0, "sigma_y": 1.0, "rotation": 0.0})


def test_filter_equals_plain_correlation_under_reflect_padding() -> None:
    image, kernel = photo(size=37), torch.rand(7, 7, dtype=torch.float64)
    padded = F.pad(image[None], (3, 3, 3, 3), mode="reflect")
    plain = F.conv2d(padded, kernel.expand(3, 1, 7, 7), groups=3)[0]
    assert torch.allclose(filter_image(image, kernel), plain, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_filter_pads_images_smaller_than_the_kernel(size: int) -> None:
    image = photo(size=size)
    padded = np.pad(image.numpy(), ((0, 0), (10, 10), (10, 10)), mode="reflect")
    kernel = gaussian_kernel(21, 2.0)
    plain = F.conv2d(torch.from_numpy(padded)[None], kernel.expand(3, 1, 21, 21).contiguous(), groups=3)[0]
    assert torch.allclose(filter_image(image, kernel), plain, atol=1e-12)


def test_area_resize_is_the_block_mean_and_keeps_constants() -> None:
    image = photo()
    blocks = image.reshape(3, 16, 4, 16, 4).mean((2, 4))
    assert torch.allclose(resize(image, height=16, width=16, mode="area"), blocks)
    flat = torch.full((3, 20, 30), 0.3, dtype=torch.float64)
    for mode in RESIZE_MODES:
        assert torch.allclose(resize(flat, height=7, width=45, mode=mode), torch.tensor(0.3, dtype=torch.float64))
    with pytest.raises(ValueError, match="unknown resize mode 'lanczos'; there are area"):
        resize(flat, height=7, width=7, mode="lanczos")


def test_antialiased_bicubic_equals_pillow() -> None:
    image = photo().float()
    plane = Image.fromarray(image[0].numpy(), mode="F").resize((16, 16), Image.Resampling.BICUBIC)
    ours = resize(image, height=16, width=16, mode="bicubic_antialias")
    assert np.abs(ours[0].numpy() - np.array(plane)).max() < 1e-3


@pytest.mark.parametrize("quality", [10, 50, 95])
def test_jpeg_equals_pillow(quality: int) -> None:
    image = photo(size=50)
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    plain = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
    ours = jpeg(image, quality=quality)
    assert np.array_equal((ours * 255).round().byte().permute(1, 2, 0).numpy(), plain)
    assert not torch.equal(ours, image)


def test_jpeg_refuses_quality_zero_and_grey() -> None:
    with pytest.raises(ValueError, match=r"quality 0 is outside 1\.\.100"):
        jpeg(photo(), quality=0)
    with pytest.raises(ValueError, match="RGB image, got 1 channels"):
        jpeg(photo()[:1], quality=50)


def test_round_keeps_256_levels_and_clips() -> None:
    x = torch.linspace(-0.2, 1.2, 3001, dtype=torch.float64).reshape(1, 1, -1)
    levels = (round_8bit(x) * 255).unique()
    assert len(levels) == 256
    assert torch.allclose(levels, torch.arange(256, dtype=torch.float64))
    assert (round_8bit(x) - x.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-12


def test_gaussian_noise_has_its_sigma_and_grey_is_one_field() -> None:
    flat = torch.full((3, 128, 128), 0.5, dtype=torch.float64)
    colour = gaussian_noise(flat, sigma=0.05, grey=False, seed=3) - flat
    grey = gaussian_noise(flat, sigma=0.05, grey=True, seed=3) - flat
    assert float(colour.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(colour.mean())) < 0.001
    assert abs(float((colour[0] * colour[1]).mean())) < 0.05**2 * 0.03
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])


@pytest.mark.parametrize("level", [3, 40, 200])
def test_poisson_noise_has_the_law_of_poisson_counts(level: int) -> None:
    # A ramp of all 256 levels beside the flat part fixes the peak at 256.
    image = torch.full((3, 200, 200), level / 255, dtype=torch.float64)
    image[:, 0, :200] = torch.arange(200, dtype=torch.float64) / 255
    image[:, 1, :56] = torch.arange(200, 256, dtype=torch.float64) / 255
    scale = 0.25  # keeps the noise off the clipping at 0
    noise = (poisson_noise(image, scale=scale, grey=False, seed=1) - image)[:, 2:] / scale
    counts = ((noise + level / 255) * 256).round().flatten()
    rate = level / 255 * 256
    assert float(counts.mean()) == pytest.approx(rate, rel=0.01)
    assert float(counts.var()) == pytest.approx(rate, rel=0.03)
    edges = stats.poisson.ppf([0.1, 0.3, 0.5, 0.7, 0.9], rate)
    found = [(counts <= edge).double().mean().item() for edge in edges]
    assert np.allclose(found, stats.poisson.cdf(edges, rate), atol=0.01)


def test_grey_poisson_noise_is_one_field() -> None:
    image = photo().clamp(0.3, 0.7)
    noise = poisson_noise(image, scale=0.1, grey=True, seed=5) - image
    assert torch.allclose(noise[0], noise[2], atol=1e-12)
    assert float(noise.std()) > 0


def test_usm_keeps_flat_areas_and_steepens_edges() -> None:
    step = torch.full((3, 64, 64), 0.3, dtype=torch.float64)
    sharpen = {"weight": 0.5, "threshold": 10.0, "size": 51, "sigma": 8.0}
    assert torch.allclose(usm_sharpen(step, **sharpen), step)
    step[:, :, 32:] = 0.7
    sharp = usm_sharpen(step, **sharpen)
    assert float(sharp[0, 32, 31]) < 0.25 and float(sharp[0, 32, 32]) > 0.75
