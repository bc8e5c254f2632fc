"""Procedural scenes with captions, drawn from (seed, index): the training data of the shipped priors.

Each scene is one of seven kinds (`SCENE_KINDS`), with a caption of its content: "a red circle and a small blue star on
a green background", "diagonal black and white stripes", "the word SKY in yellow on a purple texture". Colours,
lighting, texture and a slight lens blur vary, so that the statistics are close to those of photographs. Selected by
`data=procedural`. Shapes: a scene is uint8, size x size x 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np

from restore_lab.config.kinds import Count, Range
from restore_lab.config.validate import check_arguments
from restore_lab.data.sources import scene_elements as draw
from restore_lab.random import rng as seeded
from restore_lab.types import Picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.random import Generator

SCENE_COLOURS = {
    "red": (0.80, 0.14, 0.12),
    "orange": (0.92, 0.52, 0.13),
    "yellow": (0.93, 0.84, 0.22),
    "green": (0.20, 0.58, 0.22),
    "blue": (0.14, 0.32, 0.76),
    "purple": (0.48, 0.20, 0.62),
    "pink": (0.93, 0.58, 0.70),
    "brown": (0.44, 0.28, 0.16),
    "beige": (0.83, 0.74, 0.60),
    "white": (0.94, 0.94, 0.93),
    "grey": (0.50, 0.50, 0.50),
    "black": (0.07, 0.07, 0.08),
    "teal": (0.12, 0.55, 0.58),
}
Size = Annotated[int, Range(16, 2**16, unit="pixels")]
SCENE_KINDS = ("leaves", "texture", "gradient", "stripes", "shapes", "text", "landscape")
ANGLES = {"horizontal": np.pi / 2, "vertical": 0.0, "diagonal": np.pi / 4}
SCENE_WORDS = (
    "SKY",
    "SEA",
    "SUN",
    "CAT",
    "DOG",
    "OPEN",
    "STOP",
    "CAFE",
    "BUS",
    "HELLO",
    "LAB",
    "42",
    "7",
    "2026",
    "EXIT",
    "RED",
)


def draw_scene(rng: Generator, *, size: int, kinds: Sequence[str] = SCENE_KINDS) -> tuple[np.ndarray, str]:
    """One scene as uint8 HWC and its caption.

    Args:
        rng: source of all randomness.
        size: side in pixels.
        kinds: subset of `SCENE_KINDS`, equally likely.

    Raises:
        ValueError: for an unknown kind.
    """
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind not in _SCENES:
        raise ValueError(f"unknown kind of scene {kind!r}; one of {', '.join(SCENE_KINDS)}")
    picture, caption = _SCENES[kind](rng, size)
    return _photograph(rng, picture), caption


def _photograph(rng: Generator, picture: np.ndarray) -> np.ndarray:
    """Make a drawing photographic: muted colours, a lighting gradient, texture, lens blur, exposure, 8-bit rounding."""
    size = picture.shape[0]
    if rng.uniform() < 0.4:
        grey = picture.mean(axis=2, keepdims=True)
        picture = grey + rng.uniform(0.3, 0.8) * (picture - grey)
    if rng.uniform() < 0.5:
        light = 1.0 + rng.uniform(0.1, 0.35) * (draw.ramp(rng, size) - 0.5)
        picture = picture * light[..., None]
    if rng.uniform() < 0.5:
        picture = picture + (rng.uniform(0.01, 0.06) * draw.power_law(rng, size, rng.uniform(0.7, 1.4)))[..., None]
    if rng.uniform() < 0.6:
        picture = draw.soften(picture, rng.uniform(0.3, 0.9))
    picture = np.clip(picture, 0, 1) ** rng.uniform(0.8, 1.25)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _colours(rng: Generator, count: int) -> list[tuple[str, np.ndarray]]:
    """Distinct colours with their names, each jittered."""
    names = rng.choice(list(SCENE_COLOURS), count, replace=False)
    return [
        (str(n), np.clip(np.array(SCENE_COLOURS[n]) + rng.normal(0, 0.05, 3), 0, 1).astype(np.float32)) for n in names
    ]


def _leaves(rng: Generator, size: int) -> tuple[np.ndarray, str]:
    colours = _colours(rng, int(rng.integers(2, 4)))
    fine = rng.uniform() < 0.5
    table = np.stack([value for _, value in colours])
    picture = draw.dead_leaves(rng, size, table, count=70 if fine else 35, smallest=1.2 if fine else 4.0)
    return picture, f"{'small' if fine else 'large'} {_list(name for name, _ in colours)} leaves"


def _surface(rng: Generator, size: int, name: str, value: np.ndarray) -> tuple[np.ndarray, str]:
    """A background of one colour, plain or textured, and its phrase in the caption."""
    if rng.uniform() < 0.4:
        return np.broadcast_to(value, (size, size, 3)).astype(np.float32), f"a {name} background"
    field = draw.power_law(rng, size, rng.uniform(0.6, 1.6))
    return value + (rng.uniform(0.04, 0.14) * field)[..., None], f"a {name} texture"


def _texture(rng: Generator, size: int) -> tuple[np.ndarray, str]:
    (a, va), (b, vb) = _colours(rng, 2)
    smooth = rng.uniform() < 0.5
    field = draw.power_law(rng, size, rng.uniform(1.5, 2.2) if smooth else rng.uniform(0.7, 1.2))
    weight = np.clip(0.5 + rng.uniform(0.2, 0.5) * field, 0, 1)
    return draw.blend(va, vb, weight), f"a {'cloudy' if smooth else 'rough'} {a} and {b} texture"


def _gradient(rng: Generator, size: int) -> tuple[np.ndarray, str]:
    (a, va), (b, vb) = _colours(rng, 2)
    radial = rng.uniform() < 0.4
    picture = draw.blend(va, vb, draw.ramp(rng, size, radial=radial))
    return picture, f"a {'round' if radial else 'smooth'} gradient from {a} to {b}"


def _stripes(rng: Generator, size: int) -> tuple[np.ndarray, str]:
    (a, va), (b, vb) = _colours(rng, 2)
    name = str(rng.choice(list(ANGLES)))
    angle = ANGLES[name] + rng.normal(0, 0.08) + (np.pi / 2 if name == "diagonal" and rng.uniform() < 0.5 else 0)
    wide = rng.uniform() < 0.5
    period = rng.uniform(12, 26) if wide else rng.uniform(4, 10)
    if rng.uniform() < 0.25:
        field, what = draw.checks(rng, size, angle=angle, period=period), "checks"
    else:
        field, what = draw.stripes(rng, size, angle=angle, period=period, soft=rng.uniform() < 0.4), "stripes"
    return draw.blend(va, vb, field), f"{'wide' if wide else 'narrow'} {name} {a} and {b} {what}"


def _place(
    rng: Generator, picture: np.ndarray, name: str, value: np.ndarray, where: tuple[float, float] = (0.2, 0.8)
) -> tuple[np.ndarray, str]:
    """Draw one object, randomly shaded and with a shadow; returns the image and its phrase in the caption."""
    size = picture.shape[0]
    kind = str(rng.choice(draw.SHAPES))
    small = rng.uniform() < 0.4
    radius = size * (rng.uniform(0.08, 0.15) if small else rng.uniform(0.18, 0.34))
    low, high = where
    y, x = rng.uniform(low, high, 2) * size
    angle = rng.uniform(0, 2 * np.pi)
    mask = draw.shape_mask(kind, size, centre=(y, x), radius=radius, angle=angle)
    if rng.uniform() < 0.4:
        offset = rng.uniform(0.03, 0.07) * size
        shadow = draw.shape_mask(kind, size, centre=(y + offset, x + offset), radius=radius, angle=angle)
        picture = picture * (1 - 0.45 * shadow[..., None])
    fill = np.broadcast_to(value, picture.shape)
    if rng.uniform() < 0.6:
        fill = fill * (1.0 + rng.uniform(0.2, 0.6) * (0.5 - draw.ramp(rng, size, radial=True)))[..., None]
    if rng.uniform() < 0.3:
        fill = fill + (0.08 * draw.power_law(rng, size, 1.0))[..., None]
    return draw.blend(picture, fill, mask), f"a {'small ' if small else ''}{name} {kind}"


def _shapes(rng: Generator, size: int) -> tuple[np.ndarray, str]:
    count = int(rng.integers(1, 4))
    (ground, vg), *objects = _colours(rng, count + 1)
    picture, background = _surface(rng, size, ground, vg)
    words = []
    for name, value in objects:
        picture, phrase = _place(rng, picture, name, value)
        words.append(phrase)
    return picture, f"{_list(words)} on {background}"


def _text(rng: Generator, size: int) -> tuple[np.ndarray, str]:
    (ink, vi), (ground, vg) = _colours(rng, 2)
    picture, background = _surface(rng, size, ground, vg)
    word = str(rng.choice(SCENE_WORDS))
    return draw.blend(picture, vi, draw.letters(rng, size, word)), f"the word {word} in {ink} on {background}"


def _landscape(rng: Generator, size: int) -> tuple[np.ndarray, str]:
    """Sky above a rough ground with a wavy horizon, and sometimes an object: smooth regions next to fine texture."""
    (sky, vs), (ground, vg), (name, value) = _colours(rng, 3)
    up = draw.ramp(rng, size, angle=-np.pi / 2)
    above = draw.blend(vs, np.minimum(vs + 0.25, 1.0), 1 - up)
    above = above + (rng.uniform(0.0, 0.1) * draw.power_law(rng, size, 1.8))[..., None]
    texture = draw.power_law(rng, size, rng.uniform(0.6, 1.3))
    below = vg * (0.75 + 0.5 * (1 - up))[..., None] + (rng.uniform(0.06, 0.2) * texture)[..., None]
    horizon = rng.uniform(0.3, 0.7) * size + rng.uniform(0.5, 5.0) * draw.power_law(rng, size, 2.0)[:1, :]
    mask = np.clip(np.arange(size, dtype=np.float32)[:, None] - horizon + 0.5, 0, 1)
    picture, words = draw.blend(above, below, mask), f"{ground} ground under a {sky} sky"
    if rng.uniform() < 0.7:
        picture, phrase = _place(rng, picture, name, value, where=(0.3, 0.8))
        words = f"{phrase} on {words}"
    return picture, words


_SCENES = {
    "leaves": _leaves,
    "texture": _texture,
    "gradient": _gradient,
    "stripes": _stripes,
    "shapes": _shapes,
    "text": _text,
    "landscape": _landscape,
}


def _list(words: Iterable[str]) -> str:
    """An English list: "a, b and c"."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


@check_arguments
class ProceduralSource:
    """Procedural scenes; epoch e continues where e - 1 ended, so that no scene repeats.

    Args:
        seed: of the scenes.
        size: side in pixels.
        length: scenes per epoch.
        kinds: subset of `SCENE_KINDS`, equally likely.
    """

    def __init__(self, *, seed: int, size: Size, length: Count, kinds: Sequence[str] = SCENE_KINDS) -> None:
        self.seed, self.size, self.length, self.kinds = seed, size, length, tuple(kinds)

    def __len__(self) -> int:
        return self.length

    def keys(self) -> list[str]:
        return [f"scene_{index:07d}" for index in range(self.length)]

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Scene `index` of `epoch`."""
        number = epoch * self.length + index
        picture, caption = draw_scene(seeded("scene", self.seed, number), size=self.size, kinds=self.kinds)
        return Picture(hq_HWC=picture, caption=caption, key=f"scene_{number:07d}")


def draw_captions(*, seed: int, count: int) -> list[str]:
    """The captions of `count` scenes, for training on text only."""
    source = ProceduralSource(seed=seed, size=16, length=count)
    return [source.read(index).caption for index in range(count)]
