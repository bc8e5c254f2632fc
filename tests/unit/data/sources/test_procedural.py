"""Procedural scenes: a function of (seed, index), captions that name their content, sizes, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest

from restore_lab.data.sources import scene_elements
from restore_lab.data.sources.procedural import (
    SCENE_COLOURS,
    SCENE_KINDS,
    SCENE_WORDS,
    ProceduralSource,
    draw_captions,
    draw_scene,
)

NAMES = list(SCENE_COLOURS)
TABLE = np.array(list(SCENE_COLOURS.values()))


def source(**changes) -> ProceduralSource:
    return ProceduralSource(**{"seed": 5, "size": 32, "length": 60, **changes})


def named(caption: str) -> list[int]:
    return [i for i, name in enumerate(NAMES) if re.search(rf"\b{name}\b", caption)]


class Stuck:
    """Draws the middle of the first range, then the same end of every other."""

    def __init__(self, end: int) -> None:
        self.end, self.first = end, True

    def uniform(self, *ends: float) -> float:
        first, self.first = self.first, False
        return sum(ends) / 2 if first else ends[self.end]


@pytest.mark.parametrize("word", ["i", "WWWWWWWW", "photograph"])
@pytest.mark.parametrize("size", [32, 64])
def test_words_are_whole(word, size) -> None:
    corner, opposite = (scene_elements.letters(Stuck(end), size, word) for end in (0, 1))
    assert corner.sum() > 0
    assert abs(float(corner.sum() - opposite.sum())) < 0.05 * float(corner.sum())  # subpixel places differ a little


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    first, second = source(), source()
    for index in (3, 0, 3, 59):
        a, b = first.read(index), second.read(index)
        assert np.array_equal(a.hq_HWC, b.hq_HWC)
        assert (a.caption, a.key) == (b.caption, b.key)
    assert not np.array_equal(first.read(0).hq_HWC, first.read(1).hq_HWC)
    assert not np.array_equal(first.read(0).hq_HWC, source(seed=6).read(0).hq_HWC)


def test_each_epoch_continues_after_the_last() -> None:
    short, long = source(length=10), source(length=60)
    for epoch, index in ((1, 0), (4, 7)):
        there = long.read(10 * epoch + index)
        here = short.read(index, epoch=epoch)
        assert np.array_equal(here.hq_HWC, there.hq_HWC)
        assert here.key == there.key == f"scene_{10 * epoch + index:07d}"
    assert len(short) == 10
    assert short.keys()[-1] == "scene_0000009"


@pytest.mark.parametrize("size", [16, 31, 64])
def test_scenes_have_their_size_and_type(size) -> None:
    for index in range(8):
        picture = source(size=size).read(index).hq_HWC
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_the_colours_that_a_caption_names_are_in_the_picture(kind) -> None:
    """Some pixels come nearer to the named colours than any do to the others, in nearly every scene."""
    scenes, right = source(kinds=[kind]), 0
    for index in range(40):
        scene = scenes.read(index)
        pixels = scene.hq_HWC.reshape(-1, 1, 3) / 255.0
        nearest = np.quantile(np.linalg.norm(pixels - TABLE, axis=2), 0.03, axis=0)
        there = named(scene.caption)
        assert there, scene.caption
        right += nearest[there].mean() < np.delete(nearest, there).mean()
    assert right >= 36


def test_captions_name_shapes_directions_and_words() -> None:
    for index in range(30):
        assert re.search("|".join(scene_elements.SHAPES), source(kinds=["shapes"]).read(index).caption)
        word = re.match(r"the word (\S+) in ", source(kinds=["text"]).read(index).caption)
        assert word and word[1] in SCENE_WORDS
        stripes = source(kinds=["stripes"]).read(index)
        assert re.match("(wide|narrow) (horizontal|vertical|diagonal) ", stripes.caption)


def test_stripes_run_as_their_caption_says() -> None:
    """Along horizontal stripes a row is even, along vertical ones a column."""
    scenes, checked = source(kinds=["stripes"], size=64), 0
    for index in range(60):
        scene = scenes.read(index)
        if "checks" in scene.caption or "diagonal" in scene.caption:
            continue
        grey = scene.hq_HWC.mean(axis=2)
        along_rows, along_columns = grey.std(axis=1).mean(), grey.std(axis=0).mean()
        if max(along_rows, along_columns) > 15:  # two colours of one brightness leave no stripes in grey
            assert (along_rows < along_columns) == ("horizontal" in scene.caption), scene.caption
            checked += 1
    assert checked >= 10


def test_captions_do_not_depend_on_the_size() -> None:
    alone = draw_captions(seed=5, count=20)
    assert alone == [source(size=16).read(index).caption for index in range(20)]


def test_only_the_chosen_kinds_are_drawn() -> None:
    both = source(kinds=["text", "gradient"])
    words = {re.search("word|gradient", both.read(index).caption)[0] for index in range(20)}
    assert words == {"word", "gradient"}


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="unknown kind of scene 'cats'; one of leaves, texture"):
        source(kinds=["cats"]).read(0)
    with pytest.raises(ValueError, match="size=8"):
        source(size=8)
    with pytest.raises(ValueError, match="length=0"):
        source(length=0)
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        scene_elements.shape_mask("blob", 16, centre=(8, 8), radius=4, angle=0.0)


def test_shapes_have_their_area() -> None:
    """Circle, square and bar against their closed forms, in pixels."""
    areas = {"circle": np.pi * 100, "ring": np.pi * (100 - 25), "square": 17.0**2, "bar": 20.0 * 6.0}
    for kind, area in areas.items():
        mask = scene_elements.shape_mask(kind, 64, centre=(31.0, 32.5), radius=10.0, angle=0.3)
        assert mask.sum() == pytest.approx(area, rel=0.03), kind


def test_power_law_fields_have_their_spectrum() -> None:
    field = np.mean(
        [np.abs(np.fft.fft2(scene_elements.power_law(np.random.default_rng(i), 64, 1.5))) ** 2 for i in range(20)],
        axis=0,
    )
    low, high = field[0, 4], field[0, 16]
    assert low / high == pytest.approx(4.0**3, rel=0.8)  # power 1 / f^(2 alpha)
    one = scene_elements.power_law(np.random.default_rng(0), 64, 1.0)
    assert one.mean() == pytest.approx(0, abs=1e-4)
    assert one.std() == pytest.approx(1, abs=1e-3)


def test_one_generator_makes_one_scene() -> None:
    (a, words), (b, same) = (draw_scene(np.random.default_rng(7), size=32) for _ in range(2))
    assert words == same
    assert np.array_equal(a, b)
