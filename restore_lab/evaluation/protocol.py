"""Evaluation protocols: image preparation, the label of a number, and the interfaces of metrics.

`Protocol` prepares an image_BCHW in [0, 1] (size, crop, 8-bit rounding, border, RGB or luma). `ColumnLabel` labels a
number; two numbers share a column of a table only if their `ColumnLabel.id` is equal. `ImageMetric` and `SetMetric` are
the interfaces of metrics.

Luma is BT.601: `y` in studio range, 16-235, as in MATLAB's rgb2ycbcr and BasicSR; `yiq` in full range, 0-255, pyiqa's
default colour space. Neither is rounded again (as in BasicSR).
Config: protocol=rgb | y | rgb_border4 | y_border4 | y_border8, a paper's (spire ...) or another project's (osediff ...)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import CountOrZero, Pixels
from restore_lab.config.validate import check_arguments

Colour = Literal["rgb", "y", "yiq"]
Rounding = Literal["8bit", "none"]


class MetricUnavailable(ValueError):
    """A metric that cannot run; the message is one line with what is missing and how to get it."""


@check_arguments
@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The preparation of images for metrics.

    For every metric: resize, crop and rounding, in this order. `resize` is the shorter side in pixels (bicubic, with
    antialiasing), `crop` the side of a centre crop; null for neither. Colour and border apply to pixel metrics only
    (PSNR, SSIM, MS-SSIM); the columns of other metrics have RGB and no border.
    """

    colour: Colour = "rgb"
    border: CountOrZero = 0
    rounding: Rounding = "8bit"
    resize: Pixels | None = None
    crop: Pixels | None = None

    def prepare(self, image_BCHW: Tensor) -> Tensor:
        """Resize, crop and round, as for every metric.

        Raises:
            ValueError: if the crop is larger than the image.
        """
        image_BCHW = image_BCHW.float()
        if self.resize is not None:
            image_BCHW = resize_shorter_side(image_BCHW, self.resize)
        if self.crop is not None:
            height, width = image_BCHW.shape[-2:]
            if min(height, width) < self.crop:
                raise ValueError(f"protocol crop {self.crop} is larger than a {width}x{height} image; lower it")
            top, left = (height - self.crop) // 2, (width - self.crop) // 2
            image_BCHW = image_BCHW[..., top : top + self.crop, left : left + self.crop]
        return self.round(image_BCHW)

    def round(self, image_BCHW: Tensor) -> Tensor:
        """Clamp to [0, 1] and round to 8-bit levels, if the protocol does."""
        clamped = image_BCHW.float().clamp(0.0, 1.0)
        return (clamped * 255.0).round() / 255.0 if self.rounding == "8bit" else clamped

    def pixels(self, image_BCHW: Tensor) -> Tensor:
        """Crop the border and convert the colour for a pixel metric: 3 channels or 1, in [0, 1].

        Raises:
            ValueError: if the border leaves nothing.
        """
        height, width = image_BCHW.shape[-2:]
        if min(height, width) <= 2 * self.border:
            raise ValueError(f"protocol border {self.border} leaves nothing of a {width}x{height} image; lower it")
        edge = self.border
        inner = image_BCHW[..., edge : height - edge, edge : width - edge]
        return inner if self.colour == "rgb" else luma(inner, full_range=self.colour == "yiq")


def resize_shorter_side(image_BCHW: Tensor, side: int) -> Tensor:
    """Resize images in [0, 1] to a shorter side of `side` pixels."""
    height, width = (round(length * side / min(image_BCHW.shape[-2:])) for length in image_BCHW.shape[-2:])
    return resize_bicubic(image_BCHW, height=height, width=width)


def resize_bicubic(image_BCHW: Tensor, *, height: int, width: int) -> Tensor:
    """Resize images in [0, 1]: bicubic with antialiasing."""
    if image_BCHW.shape[-2:] == (height, width):
        return image_BCHW
    resampled = torch.nn.functional.interpolate(image_BCHW, size=(height, width), mode="bicubic", antialias=True)
    return resampled.clamp(0.0, 1.0)


def luma(image_BCHW: Tensor, *, full_range: bool = False) -> Tensor:
    """Y of ITU-R BT.601, B1HW from RGB in [0, 1]: from 16/255 to 235/255, or 0 to 1 for `full_range`."""
    if full_range:  # a matrix product in the image's precision, as in pyiqa
        return (image_BCHW.movedim(1, -1) @ image_BCHW.new_tensor([[0.299], [0.587], [0.114]])).movedim(-1, 1)
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=image_BCHW.device) / 255.0
    weighted = image_BCHW.double() * weights.view(1, 3, 1, 1)
    return (weighted.sum(dim=1, keepdim=True) + 16.0 / 255.0).to(image_BCHW.dtype)


@dataclass(frozen=True, kw_only=True)
class ColumnLabel:
    """The label of a number. `weights` identifies the metric's code and weights; `size` is "WxH" of the measured
    images, or "mixed"."""

    metric: str
    weights: str
    colour: Colour
    border: int
    size: str
    rounding: Rounding
    count: int
    resize: int | None = None
    crop: int | None = None

    @property
    def id(self) -> str:
        """12 hex characters, equal for numbers of one column."""
        return hashlib.sha256(json.dumps(self.fields(), sort_keys=True).encode()).hexdigest()[:12]

    def fields(self) -> dict[str, str | int]:
        """The fields that are not None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def text(self) -> str:
        """The label as text, for the foot of a table."""
        border = f", border {self.border}" if self.border else ""
        by = f", {self.weights}" if self.weights else ""
        rounding = "8-bit" if self.rounding == "8bit" else "not rounded"
        size = (
            f"{self.size}{f' scaled to {self.resize}' if self.resize else ''}{' from the middle' if self.crop else ''}"
        )
        return f"{self.metric}: {self.colour.upper()}{border}, {size}, {rounding}, n={self.count}{by}"


class Metric:
    """The properties of a metric.

    `id` is the head of its column; `weights` identifies code version and weight files with hashes, final after the
    first call; `min_size` is the minimum image side in pixels; `pixel` is whether the protocol's colour and border
    apply.
    """

    id: str = ""
    weights: str = ""
    higher_is_better: bool = True
    needs_reference: bool = True
    needs_caption: bool = False
    pixel: bool = False
    colour: Colour | None = None
    min_size: int = 1

    def missing(self) -> str:
        """One line with what this metric lacks and where to put it; empty if it can run. Cheap."""
        return ""


class ImageMetric(Metric):
    """A metric with one value per image."""

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        """Values_B; NaN for an image without value (no caption).

        Raises:
            MetricUnavailable: if it cannot run.
        """
        raise NotImplementedError


class SetMetric(Metric):
    """A metric of two sets of images, on features of each image."""

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Features_BD, float64 on the CPU."""
        raise NotImplementedError

    def distance(self, restored_ND: Tensor, reference_ND: Tensor) -> float:
        """The value for two sets of features."""
        raise NotImplementedError
