"""The photographs of scikit-image: they load offline, and crops are at their places."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml

from restore_lab.data.sources.photos import PHOTOS, PhotosSource, crop_grid
from tests.helpers.checkout import CONF

YAML = CONF / "data" / "photos.yaml"


def test_every_photograph_loads_with_a_distinct_caption() -> None:
    imported_before = "skimage" in sys.modules
    source = PhotosSource(list(PHOTOS), size=64, crops=0, crop=None)
    pictures = [source.read(index) for index in range(len(source))]
    assert source.keys() == list(PHOTOS) == [picture.key for picture in pictures]
    assert len({picture.caption for picture in pictures}) == len(PHOTOS) and all(p.caption for p in pictures)
    assert {min(picture.hq_HWC.shape[:2]) for picture in pictures} == {64}
    assert min(picture.hq_HWC.std() for picture in pictures) > 5
    assert ("skimage" in sys.modules) == imported_before


def test_the_default_list_gives_one_crop_each() -> None:
    conf = yaml.safe_load(YAML.read_text())
    source = PhotosSource(conf["names"], size=256, crops=1, crop=64)
    assert len(source) == len(conf["names"]) == 14
    assert source.keys()[0] == "astronaut_0" and source.read(0).hq_HWC.shape == (64, 64, 3)


def test_crops_are_pieces_of_the_photograph() -> None:
    whole = PhotosSource(["chelsea"], size=96, crops=0, crop=None).read(0).hq_HWC
    source = PhotosSource(["coffee", "chelsea"], size=96, crops=4, crop=32)
    assert source.keys()[4:] == ["chelsea_0", "chelsea_1", "chelsea_2", "chelsea_3"]
    assert np.array_equal(source.read(4).hq_HWC, whole[:32, :32])
    assert np.array_equal(source.read(7).hq_HWC, whole[-32:, -32:])


def test_crop_grid_gives_the_corners_of_crops() -> None:
    assert crop_grid(100, 150, crop=50, count=1) == [(25, 50)]
    assert crop_grid(100, 150, crop=50, count=2) == [(25, 0), (25, 100)]
    assert crop_grid(150, 100, crop=50, count=2) == [(0, 25), (100, 25)]
    assert crop_grid(100, 150, crop=50, count=5) == [(0, 0), (0, 50), (0, 100), (50, 0), (50, 50)]


def test_small_photographs_are_not_enlarged() -> None:
    picture = PhotosSource(["text"], size=256, crops=0, crop=None).read(0)
    assert picture.hq_HWC.shape == (172, 448, 3)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown \['lena'\]; there are astronaut"):
        PhotosSource(["lena"], size=64, crops=0, crop=None)
    with pytest.raises(ValueError, match="crop=128 is larger than size=64"):
        PhotosSource(["coffee"], size=64, crops=1, crop=128)
    with pytest.raises(ValueError, match="crops=1 needs the side of a crop"):
        PhotosSource(["coffee"], size=64, crops=1, crop=None)
    with pytest.raises(ValueError, match="smaller than crop=300; lower crop"):
        PhotosSource(["text"], size=None, crops=1, crop=300).read(0)
