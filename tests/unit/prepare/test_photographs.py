"""Free photographs from packages: the manifest, tiles, captions, and packages with other content."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restore_lab.prepare import photographs as free


def _photograph(**settings) -> free.DebianPhotograph:
    return free.DebianPhotograph(
        package="p", file="usr/share/a/b.jpg", author="A", licence="CC0", sha256="0", caption="all", **settings
    )


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_manifest_names_each_photograph_once_with_its_licence() -> None:
    listed = free.photographs()
    assert len({p.key for p in listed}) == len({p.sha256 for p in listed}) == len(listed) > 50
    assert all(p.author and p.caption and p.licence.startswith(("CC", "GPL", "LGPL")) for p in listed)
    for p in listed:
        for (left, top, right, bottom), caption in p.parts:
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1
            assert caption


def test_the_six_held_out_photographs_share_no_author_with_others() -> None:
    authors = Counter(p.author for p in free.photographs())
    held = [p for p in free.photographs() if p.held]
    assert len(held) == 6
    assert all(authors[p.author] == 1 for p in held)


def test_tiles_cover_a_photograph_at_every_side_that_shrinks_it() -> None:
    tiles = list(free.tiles(_photograph(), _noise(600, 900)))
    sides = Counter(tile.key.split("-")[2] for tile in tiles)
    assert sides == {"288": 4, "448": 6}  # 288x432 in 2x2 tiles of 256, 448x672 in 2x3; 704 would not shrink it
    assert all(tile.image_HWC.shape == (256, 256, 3) for tile in tiles)


def test_a_tile_without_detail_is_left_out() -> None:
    image_HWC = _noise(600, 900)
    image_HWC[:, :360] = 128
    keys = [tile.key for tile in free.tiles(_photograph(), image_HWC)]
    assert len(keys) == 10 - 2  # the left column at 448x672, where 268 columns are flat


def test_a_small_tile_has_the_caption_of_its_part() -> None:
    photograph = _photograph(parts=(((0, 0, 0.5, 1), "left"), ((0.9, 0.9, 1, 1), "corner")))
    captions = {tile.key.split("-", 2)[2]: tile.caption for tile in free.tiles(photograph, _noise(600, 900))}
    assert captions["288-000"] == "all"  # a tile of 256 is most of 288x432
    assert [captions[f"448-{number:03d}"] for number in range(6)] == ["left", "left", "all", "left", "left", "all"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="makes a Debian package")
def test_packages_become_tiles_with_captions_and_credits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = _packages(tmp_path)
    monkeypatch.setattr(free, "photographs", lambda: listed)
    count = free.fetch(tmp_path / "out", packages=tmp_path / "debs")
    assert count == {"train": 4, "val": 4}
    records = [json.loads(line) for line in (tmp_path / "out/train/captions.jsonl").read_text().splitlines()]
    assert {record["caption"] for record in records} == {"all"}
    assert all((tmp_path / "out/train" / record["file_name"]).is_file() for record in records)
    assert "| A | CC0 |" in (tmp_path / "out/CREDITS.md").read_text()
    assert not list((tmp_path / "out").glob(".*"))
    assert free.fetch(tmp_path / "out", packages=tmp_path / "nowhere") == count  # complete: nothing is read again


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="makes a Debian package")
def test_a_package_with_another_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = _packages(tmp_path, sha256="0")
    monkeypatch.setattr(free, "photographs", lambda: listed)
    with pytest.raises(ValueError, match=r"^pack-train: usr/share/a/train.png is missing or is not the listed"):
        free.fetch(tmp_path / "out", packages=tmp_path / "debs")
    assert not (tmp_path / "out/train").exists()


def test_without_apt_get_one_line_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="apt-get is missing here; on a Debian machine") as caught:
        free.fetch(tmp_path)
    assert "\n" not in str(caught.value)


def _packages(folder: Path, **changes) -> tuple[free.DebianPhotograph, ...]:
    """Two packages with a photograph each, and the manifest of them."""
    listed = []
    (folder / "debs").mkdir()
    for half in ("train", "val"):
        tree = folder / half
        file = tree / f"usr/share/a/{half}.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(_noise(400, 500)).save(file)
        (tree / "DEBIAN").mkdir()
        about = f"Package: pack-{half}\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: photograph\n"
        (tree / "DEBIAN/control").write_text(about)
        command = ["dpkg-deb", "--build", "-Znone", str(tree), str(folder / "debs" / f"pack-{half}_1_all.deb")]
        subprocess.run(command, check=True, capture_output=True)
        facts = {"package": f"pack-{half}", "file": f"usr/share/a/{half}.png", "sha256": free.hash_of(file)}
        facts |= {"author": "A", "licence": "CC0", "caption": "all", "held": half == "val"}
        listed.append(free.DebianPhotograph(**{**facts, **changes}))
    return tuple(listed)
