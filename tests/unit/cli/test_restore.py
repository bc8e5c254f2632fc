"""`restore-lab restore`: sizes, independence of the folder, bad files, and errors in one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restore_lab.cli import errors
from restore_lab.cli.restore import run
from restore_lab.inference.folder import FolderReport, restore_folder
from restore_lab.inference.restorer import load_method
from tests.helpers.configs import composed, small
from tests.helpers.prior_cache import read_once
from tests.helpers.rounding import same_levels
from tests.helpers.toy_methods import shake

SIZES = {"a": (16, 16), "odd, one": (21, 19), "wide": (5, 40), "r\u00f6d.v2": (33, 18)}


def photo(path: Path, *, size: tuple[int, int] = (20, 24), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def priors_read_once() -> Iterator[None]:
    with read_once():
        yield


@pytest.fixture(scope="module")
def weights(toy_folder, tmp_path_factory) -> Path:
    """An adaptor that does something."""
    folder = tmp_path_factory.mktemp("weights")
    module = load_method(composed("restore", *small(toy_folder), "weights=null", "input=x", "device=cpu"))
    shake(module.adaptor, size=0.05)
    module.export(folder)
    return folder


@pytest.fixture
def restored(toy_folder, weights, tmp_path):
    """Restore a path with some overrides; gives what `restore_folder` gives."""

    def go(place: Path, *words: str, out: str = "out") -> FolderReport:
        told = ("input=x", f"weights={weights}", "device=cpu", "sampler.progress=false")
        places = {"input": str(place), "output": str(tmp_path / out)}
        return restore_folder(composed("restore", *small(toy_folder), *told, *words, **places))

    return go


def images(folder: Path) -> list[str]:
    """The results in a folder, without the summary and the hidden notes next to them."""
    assert (folder / "restored.csv").is_file()
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_odd_sizes_keep_their_size_and_name(restored, tmp_path) -> None:
    for seed, (name, size) in enumerate(SIZES.items()):
        photo(tmp_path / "in" / f"{name}.png", size=size, seed=seed)
    done = restored(tmp_path / "in")
    assert (done.written, done.bad) == (4, [])
    assert images(done.output) == sorted(f"{name}.png" for name in SIZES)
    for name, size in SIZES.items():
        assert pixels(done.output / f"{name}.png").shape == (*size, 3)


def test_no_result_overwrites_another(restored, tmp_path) -> None:
    """Names that differ only in their suffix or after a dot, and one name in two folders."""
    names = ("cat.png", "cat.bmp", "dog.1.png", "dog.2.png", "below/cat.png")
    for seed, name in enumerate(names):
        photo(tmp_path / "in" / name, seed=seed)
    done = restored(tmp_path / "in")
    written = images(done.output)
    assert done.written == len(written) == 5
    assert len({pixels(done.output / p).tobytes() for p in written}) == 5


def test_a_result_does_not_depend_on_other_images(restored, tmp_path) -> None:
    alone = photo(tmp_path / "one" / "cat.png", seed=7)
    for other in range(2):
        photo(tmp_path / "many" / f"other {other}.png", seed=other, size=(16, 16))
    (tmp_path / "many" / "below").mkdir()
    shutil.copy(alone, tmp_path / "many" / "cat.png")
    shutil.copy(alone, tmp_path / "many" / "below" / "cat.png")
    found = restored(alone, out="file").output / "cat.png"
    first = pixels(found)
    many = restored(tmp_path / "many", out="folder").output
    assert same_levels(pixels(many / "cat.png"), first)
    assert same_levels(pixels(many / "below" / "cat.png"), first)
    assert not np.array_equal(pixels(restored(alone, "seed=1", out="seed").output / "cat.png"), first)


def test_caption_weights_and_upscale_change_the_result(restored, tmp_path) -> None:
    image = photo(tmp_path / "cat.png")
    first = pixels(restored(image, out="a").output / "cat.png")
    told = pixels(restored(image, "instruction=Denoise with sigma 0.06; Deblur", out="b").output / "cat.png")
    raw = pixels(restored(image, "weights=null", out="c").output / "cat.png")
    assert not np.array_equal(first, raw)
    assert told.shape == first.shape
    assert pixels(restored(image, "upscale=1.5", out="d").output / "cat.png").shape == (30, 36, 3)


def test_bad_files_are_named_counted_and_skipped(restored, tmp_path, caplog) -> None:
    good = photo(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "text.png").write_text("no image")
    (tmp_path / "in" / "cut.png").write_bytes(good.read_bytes()[:200])
    photo(tmp_path / "in" / "huge.png", size=(40, 60))
    with caplog.at_level("INFO"):
        done = restored(tmp_path / "in", "max_pixels=1000")
    assert done.written == 1
    assert images(done.output) == ["good.png"]
    assert len(done.bad) == 3
    assert all("\n" not in line for line in done.bad)
    for name in ("text.png", "cut.png", "huge"):
        assert sum(name in line for line in done.bad) == 1
        assert sum(f"left out: {line}" in caplog.text for line in done.bad if name in line) == 1
    assert any("60x40 pixels are more than max_pixels=1000" in line for line in done.bad)


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert errors.is_bad_input(caught.value)
    assert "\n" not in errors.flatten(caught.value)
    return errors.flatten(caught.value)


def test_a_folder_without_images_is_refused_before_a_prior_loads(restored, tmp_path) -> None:
    photo(tmp_path / "in" / "huge.png", size=(40, 60))
    (tmp_path / "in" / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="none of 2 images could be restored; the first: huge") as caught:
        restored(tmp_path / "in", "max_pixels=1000", "backbone.path=/nowhere/at/all")
    one_line(caught)
    with pytest.raises(ValueError, match="/not/there: no such folder") as caught:
        restored(Path("/not/there"))
    one_line(caught)


def test_an_image_too_large_is_refused_in_one_line(restored, tmp_path) -> None:
    with pytest.raises(ValueError, match="shrink the image, or raise max_pixels") as caught:
        restored(photo(tmp_path / "cat.png"), "upscale=10", "max_pixels=2000")
    assert "240x200 pixels" in one_line(caught)


def test_missing_weights_or_prior_are_refused_in_one_line(restored, tmp_path) -> None:
    image = photo(tmp_path / "cat.png")
    with pytest.raises(ValueError, match="no such weights; train some with restore-lab train") as caught:
        restored(image, "weights=asset:not_there")
    assert "assets/not_there" in one_line(caught)
    with pytest.raises(ValueError, match="there is no folder /nowhere/at/all") as caught:
        restored(image, "backbone.path=/nowhere/at/all")
    one_line(caught)
    assert not (tmp_path / "out").exists()


def test_restore_prints_the_output_folder(toy_folder, weights, tmp_path, capsys) -> None:
    photo(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "text.png").write_text("no image")
    words = (f"input={tmp_path}/in", f"output={tmp_path}/out", f"weights={weights}", "device=cpu")
    with pytest.raises(ValueError, match=r"1 left out; they are named above and in .*restored\.csv") as caught:
        run(composed("restore", *small(toy_folder), *words, "sampler.progress=false"))
    one_line(caught)
    assert capsys.readouterr().out == f"1 restored into {tmp_path}/out\n"


@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_follows_its_setting(progress) -> None:
    assert composed("restore", "input=x", f"progress={progress}").sampler.progress is progress
