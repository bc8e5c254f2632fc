"""Elements of the procedural scenes: power-law fields, gradients, stripes, dead leaves, shapes and letters.

Every function takes a numpy generator and a size and returns float32 in [0, 1]: fields and masks HW, images HWC.
Edges are anti-aliased by their signed distance in pixels, without supersampling.
Dead leaves follow Lee, Mumford and Huang (2001): discs whose radii have density r^-3, which gives natural images'
scale-free statistics; power-law fields have the amplitude spectrum 1/f^alpha.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from numpy.random import Generator

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "bar", "ellipse")


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres as rows y_HW and columns x_HW."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    return y, x


@lru_cache(maxsize=8)
def _frequencies(size: int) -> np.ndarray:
    """Radial frequencies of an rfft2, the zero frequency replaced by one."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]).astype(np.float32) * size
    f[0, 0] = 1.0
    return f


def power_law(rng: Generator, size: int, alpha: float) -> np.ndarray:
    """A random field with amplitude spectrum 1/f^alpha, standard normal over its pixels; natural images: alpha 1."""
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    field = np.fft.irfft2(spectrum * _frequencies(size) ** -alpha, s=(size, size)).astype(np.float32)
    field -= field.mean()
    return field / (field.std() + 1e-6)


def blend(a, b, weight_HW: np.ndarray) -> np.ndarray:
    """Linear interpolation, `a` at weight 0 and `b` at weight 1; `a` and `b` are colours or HWC images."""
    w = weight_HW[..., None]
    return (1.0 - w) * np.asarray(a, np.float32) + w * np.asarray(b, np.float32)


def ramp(rng: Generator, size: int, *, angle: float | None = None, radial: bool = False) -> np.ndarray:
    """A gradient field from 0 to 1, linear along an angle in radians or radial from a random centre."""
    y, x = _grid(size)
    if radial:
        cy, cx = rng.uniform(0.2, 0.8, 2) * size
        field = np.hypot(y - cy, x - cx)
    else:
        angle = rng.uniform(0, 2 * np.pi) if angle is None else angle
        field = np.cos(angle) * x + np.sin(angle) * y
    field = field - field.min()
    return field / (field.max() + 1e-6)


def stripes(rng: Generator, size: int, *, angle: float, period: float, soft: bool) -> np.ndarray:
    """Stripes as a field in [0, 1]: sinusoids if soft, else bars with anti-aliased edges; period in pixels."""
    y, x = _grid(size)
    wave = np.sin(2 * np.pi * ((np.cos(angle) * x + np.sin(angle) * y) / period + rng.uniform()))
    if soft:
        return 0.5 + 0.5 * wave
    return np.clip(0.5 + wave * period / (2 * np.pi), 0.0, 1.0)


def checks(rng: Generator, size: int, *, angle: float, period: float) -> np.ndarray:
    """A checkerboard as a field in [0, 1], anti-aliased."""
    a = 2 * stripes(rng, size, angle=angle, period=period, soft=False) - 1
    b = 2 * stripes(rng, size, angle=angle + np.pi / 2, period=period, soft=False) - 1
    return 0.5 + 0.5 * a * b


def dead_leaves(rng: Generator, size: int, colours: np.ndarray, *, count: int, smallest: float = 1.5) -> np.ndarray:
    """Overlapping leaves (ellipses) with radii of density r^-3; `colours` is N x 3."""
    largest = 0.35 * size
    u = rng.uniform(size=count)
    radii = 1.0 / np.sqrt(u / smallest**2 + (1 - u) / largest**2)
    radii[: count // 4] = np.sort(radii[: count // 4])[::-1]
    centres = rng.uniform(-0.05, 1.05, (count, 2)) * size
    aspect = rng.uniform(0.5, 1.0, count)
    angles = rng.uniform(0, np.pi, count)
    shade = rng.uniform(0.75, 1.2, (count, 1))
    fills = np.clip(colours[rng.integers(len(colours), size=count)] * shade + rng.normal(0, 0.04, (count, 3)), 0, 1)
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = fills[0]
    for r, (cy, cx), k, angle, fill in zip(radii, centres, aspect, angles, fills.astype(np.float32), strict=True):
        y0, y1 = max(int(cy - r - 1), 0), min(int(cy + r + 2), size)
        x0, x1 = max(int(cx - r - 1), 0), min(int(cx + r + 2), size)
        if y0 >= y1 or x0 >= x1:
            continue
        dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(cy)
        dx = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(cx)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        distance = np.sqrt((c * dx + s * dy) ** 2 + ((c * dy - s * dx) / np.float32(k)) ** 2) - np.float32(r)
        mask = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
        window = picture[y0:y1, x0:x1]
        window += mask * (fill - window)
    return picture


def shape_mask(kind: str, size: int, *, centre: tuple[float, float], radius: float, angle: float) -> np.ndarray:
    """The mask of one of `SHAPES` in [0, 1]; centre (row, column) and radius in pixels, angle in radians."""
    y, x = _grid(size)
    dy, dx = y - centre[0], x - centre[1]
    c, s = np.cos(angle), np.sin(angle)
    u, v = c * dx + s * dy, c * dy - s * dx
    return np.clip(0.5 - _distance(kind, u, v, radius), 0.0, 1.0).astype(np.float32)


def _distance(kind: str, u: np.ndarray, v: np.ndarray, r: float) -> np.ndarray:
    """Signed distance in pixels (negative inside) of a shape around the origin; exact or a close bound."""
    if kind == "circle":
        return np.hypot(u, v) - r
    if kind == "ring":
        return np.abs(np.hypot(u, v) - 0.75 * r) - 0.25 * r
    if kind == "ellipse":
        return (np.hypot(u, v / 0.55) - r) * 0.7
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.85 * r
    if kind == "bar":
        return np.maximum(np.abs(u) - r, np.abs(v) - 0.3 * r)
    if kind == "cross":
        arm = np.maximum(np.abs(u) - r, np.abs(v) - 0.3 * r)
        return np.minimum(arm, np.maximum(np.abs(v) - r, np.abs(u) - 0.3 * r))
    if kind == "triangle":
        return np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.5 * r
    if kind == "star":
        theta = (np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5
        return (np.hypot(u, v) * (np.cos(theta) + 1.6 * np.abs(np.sin(theta))) - r) * 0.55
    raise ValueError(f"unknown shape {kind!r}; one of {', '.join(SHAPES)}")


def letters(rng: Generator, size: int, word: str) -> np.ndarray:
    """A word as a mask in [0, 1] at a random position and size, entirely inside the image."""
    largest = int(rng.uniform(0.55, 1.1) * 1.6 * size / max(len(word), 2))
    font = _largest_font(word, size, largest=max(largest, 8))
    left, top, right, bottom = font.getbbox(word)
    x = rng.uniform(0, max(size - (right - left), 1)) - left
    y = rng.uniform(0, max(size - (bottom - top), 1)) - top
    canvas = Image.new("L", (size, size), 0)
    ImageDraw.Draw(canvas).text((x, y), word, fill=255, font=font)
    return np.asarray(canvas, np.float32) / 255.0


def _largest_font(word: str, size: int, *, largest: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's font at the largest size, up to `largest`, at which the word fits in a square of `size` pixels."""
    for font_size in range(largest, 1, -1):
        font = ImageFont.load_default(size=font_size)
        left, top, right, bottom = font.getbbox(word)
        if max(right - left, bottom - top) <= size:
            return font
    return ImageFont.load_default(size=1)


def soften(picture_HWC: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur as of a lens, sigma in pixels, by FFT with periodic boundaries."""
    size = picture_HWC.shape[0]
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    transfer = np.exp(-2 * (np.pi * sigma * f) ** 2)[..., None]
    return np.fft.irfft2(np.fft.rfft2(picture_HWC, axes=(0, 1)) * transfer, s=(size, size), axes=(0, 1)).astype(
        np.float32
    )
