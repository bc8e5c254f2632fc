"""Restoring a user's folder: what is kept, refused and never lost; nothing is done twice."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from restore_lab import Restorer
from restore_lab.cli.main import main
from restore_lab.data.photograph import Photograph, read_photograph
from restore_lab.data.photograph_file import write_photograph
from restore_lab.inference.folder import FolderReport, restore_folder
from tests.helpers.configs import composed, small
from tests.helpers.photographs import DATE, SRGB, exif, random_levels
from tests.helpers.prior_cache import read_once
from tests.helpers.rounding import same_levels


@pytest.fixture(scope="module", autouse=True)
def prior_read_once() -> Iterator[None]:
    with read_once():
        yield


@pytest.fixture
def restored(toy_folder, tmp_path):
    """Restore a path with some overrides; gives what `restore_folder` gives."""

    def go(place: Path | str, *words: str) -> FolderReport:
        told = ("weights=null", "device=cpu", "sampler.progress=false", "sampler.steps=1")
        places = {"input": str(place), "output": str(tmp_path / "out")}
        left = {name: where for name, where in places.items() if not any(w.startswith(f"{name}=") for w in words)}
        return restore_folder(composed("restore", "input=x", *small(toy_folder), *told, *words, **left))

    return go


def photo(path: Path, *, seed: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_levels(*size, 3, seed=seed)).save(path)
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "restored.csv").read_text().splitlines()))


def test_depth_opacity_exif_and_profile_are_kept(restored, tmp_path) -> None:
    """Sixteen bits and opacity; a JPEG's EXIF, profile and orientation; a grey picture stays grey."""
    rgb_HWC, alpha_HW = random_levels(18, 20, 3, dtype=np.uint16), random_levels(18, 20, dtype=np.uint16)
    deep = Photograph(rgb_HWC=rgb_HWC, alpha_HW=alpha_HW, profile=SRGB)
    write_photograph(tmp_path / "in/deep.png", deep)
    Image.fromarray(random_levels(16, 24, 3)).save(tmp_path / "in/turned.jpg", exif=exif(6).tobytes(), icc_profile=SRGB)
    Image.fromarray(random_levels(16, 16)).save(tmp_path / "in/grey.tif")
    done = restored(tmp_path / "in", "format=same")
    assert (done.written, done.bad) == (3, [])
    found = read_photograph(tmp_path / "out/deep.png")
    assert found.rgb_HWC.dtype == np.uint16
    assert (found.rgb_HWC % 257).any()  # levels that eight bits do not have
    assert np.array_equal(found.alpha_HW, deep.alpha_HW)
    assert found.profile == SRGB
    turned = Image.open(tmp_path / "out/turned.jpg")
    assert (turned.size, turned.getexif().get(0x0112, 1)) == ((16, 24), 1)
    assert (turned.getexif()[DATE], turned.info["icc_profile"]) == ("2024:05:01 10:00:00", SRGB)
    assert Image.open(tmp_path / "out/grey.tif").mode == "L"


def test_the_same_command_restores_nothing_again(restored, tmp_path) -> None:
    photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/b.png", seed=1)
    assert restored(tmp_path / "in").written == 2
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.png")}
    again = restored(tmp_path / "in", "compare=false", "quality=80")
    assert (again.written, again.skipped) == (0, 2)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    photo(tmp_path / "in/b.png", seed=2)  # another photograph of this name
    assert restored(tmp_path / "in").written == 1
    (tmp_path / "out/a.png").unlink()
    assert restored(tmp_path / "in").written == 1
    assert restored(tmp_path / "in", "seed=1").written == 2
    assert restored(tmp_path / "in", "seed=1", "again=true").written == 2
    assert restored(tmp_path / "in", "seed=1", "format=tiff").written == 2  # other files are wanted
    assert restored(tmp_path / "in", "seed=1", "format=tiff", "compare=true").written == 2
    assert restored(tmp_path / "in", "seed=1", "format=tiff", "compare=true").skipped == 2
    assert restored(tmp_path / "in", "seed=1", "instruction=Deblur").written == 2


def test_failed_images_are_tried_again_and_summarised(restored, tmp_path) -> None:
    photo(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    done = restored(tmp_path / "in")
    assert (done.written, len(done.bad)) == (1, 1)
    assert [(r["file"].rpartition("/")[2], r["status"].partition(": ")[2]) for r in rows(done.output)] == [
        ("a.png", ""),
        ("b.png", "empty file (0 bytes)"),
    ]
    photo(tmp_path / "in/b.png", seed=1)
    assert (restored(tmp_path / "in").written, len(rows(done.output))) == (1, 2)
    assert {r["status"] for r in rows(done.output)} == {"restored"}


def test_a_full_disk_is_one_line_and_costs_one_image(restored, tmp_path, monkeypatch) -> None:
    for seed in range(3):
        photo(tmp_path / f"in/{seed}.png", seed=seed)
    plain, count = os.replace, []

    def full(source: str, target: str) -> None:
        count.append(target)
        if len(count) == 6:  # that the image is ours, the image, what was done; and again: of the second image
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        plain(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="No space left on device; free some; the same command continues from 1"):
        restored(tmp_path / "in")
    monkeypatch.setattr(os, "replace", plain)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    done = restored(tmp_path / "in")
    assert (done.written, done.skipped) == (2, 1)


def test_patterns_select_files_and_others_are_counted(restored, tmp_path, caplog) -> None:
    for name in ("a.png", "b.jpg", "below/c.jpg"):
        photo(tmp_path / "in" / name)
    (tmp_path / "in/raw.NEF").write_bytes(b"x")
    assert restored(tmp_path / "in/*.jpg").written == 1
    assert restored(f"{tmp_path}/in/**/*.jpg").written == 1  # in/b.jpg is done
    assert (tmp_path / "out/below/c.png").is_file()
    assert restored(tmp_path / "in", "recursive=false").written == 1
    assert "1 unsupported .nef photograph" in caplog.text
    with pytest.raises(ValueError, match=r"\*\.gif: no file has such a name; quote a pattern"):
        restored(tmp_path / "in/*.gif")


def test_each_image_may_have_its_caption(restored, tmp_path) -> None:
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        photo(tmp_path / "in" / name, seed=seed)
    table = tmp_path / "words.csv"
    table.write_text('file,caption,instruction\na.png,"a cat, asleep",Denoise with sigma 0.06\nb,,Deblur\n')
    done = restored(tmp_path / "in", f"words={table}", "caption=a dog")
    notes = {
        Path(n["file"]).stem: n
        for n in map(json.loads, (p.read_text() for p in (done.output / ".restored").glob("*.json")))
    }
    assert notes["a"]["words"] == ["a cat, asleep", "Denoise with sigma 0.06"]
    assert (notes["b"]["words"], notes["c"]["words"]) == (["a dog", "Deblur"], ["a dog", None])
    assert notes["c"]["instruction"] == "Remove all degradation"
    table.write_text("file,caption,instruction\na.png,a bird,Denoise with sigma 0.06\nb,,Deblur\n")
    assert restored(tmp_path / "in", f"words={table}", "caption=a dog").written == 1
    for text, why in (
        ("file,caption\nz.png,x\n", "says nothing of these images"),
        ("caption\nx\n", "row 1 names no image"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=why):
            restored(tmp_path / "in", f"words={table}")


def test_several_seeds_write_their_spread_and_a_comparison(restored, tmp_path) -> None:
    photo(tmp_path / "in/a.png")
    done = restored(tmp_path / "in", "seeds=3", "compare=true", "seed=5")
    names = {p.name for p in done.output.glob("*.png")}
    assert names == {"a_seed5.png", "a_seed6.png", "a_seed7.png", "a_uncertainty.png", "a_compare.png"}
    images = np.stack([np.asarray(Image.open(done.output / f"a_seed{n}.png"), np.float64) for n in (5, 6, 7)]) / 255
    spread = images.std(axis=0, ddof=1).mean(axis=2)
    shown = np.asarray(Image.open(done.output / "a_uncertainty.png"), np.float64) / 255 * 0.1
    assert np.abs(shown - spread.clip(0, 0.1)).max() < 0.005
    assert len(rows(done.output)) == 3
    assert float(rows(done.output)[0]["uncertainty"]) == pytest.approx(spread.mean(), abs=0.003)
    assert Image.open(done.output / "a_compare.png").size == (5 * 16 + 4 * 2, 16)


def test_nothing_is_written_over_an_input_or_twice_or_elsewhere(restored, toy_folder, tmp_path) -> None:
    photo(tmp_path / "out/a.png")
    with pytest.raises(ValueError, match=r"would write over .*a\.png; choose another folder"):
        restored(tmp_path / "out")
    for name in ("in/x/a.png", "in/y/a.png"):
        photo(tmp_path / name)
    with pytest.raises(ValueError, match="gives two results one name"):
        restored(tmp_path / "in", "names='{name}'")
    with pytest.raises(ValueError, match="leads out of"):
        restored(tmp_path / "in", "names='../{key}'")
    with pytest.raises(ValueError, match="a name of more than 255 bytes; give a shorter one"):
        restored(tmp_path / "in", f"names='{'n' * 300}/{{key}}'")
    assert restored(tmp_path / "in", "names='{folder}-{name}_restored'").written == 2
    assert (tmp_path / "out/x-a_restored.png").is_file()


def test_outputs_have_the_requested_sizes(restored, tmp_path) -> None:
    photo(tmp_path / "in/a.png", size=(16, 24))
    for words, size in ((("size=32",), (48, 32)), (("size=[20,30]",), (20, 30)), (("upscale=0.5",), (12, 8))):
        restored(tmp_path / "in", *words)
        assert Image.open(tmp_path / "out/a.png").size == size
    for words, why in ((("size=32", "upscale=2"), "give one of them"), (("size=0",), "shorter side")):
        with pytest.raises(ValueError, match=why):
            restored(tmp_path / "in", *words)


def test_restorer_in_python_equals_the_command(restored, toy_folder, tmp_path) -> None:
    file = photo(tmp_path / "in/a.png", size=(18, 22))
    restored(file, "instruction=Denoise with sigma 0.06")
    wanted = np.asarray(Image.open(tmp_path / "out/a.png"))
    restorer = Restorer.load(overrides=[*small(toy_folder), "weights=null", "sampler.steps=1"], device="cpu")
    pixels = np.asarray(Image.open(file))
    for image in (
        file,
        str(file),
        Image.open(file),
        pixels,
        __import__("torch").from_numpy(pixels / 255).permute(2, 0, 1),
    ):
        found = restorer(image, instruction="Denoise with sigma 0.06")
        assert same_levels(found.array if found.lq.levels == 255 else np.asarray(found.image), wanted) or (
            found.lq.levels > 255  # floats have a hash, and so noise, of their own
        )
    first, second = restorer([file, pixels[:16]], caption="a cat")
    assert (first.array.shape, second.array.shape) == ((18, 22, 3), (16, 22, 3))
    assert np.array_equal(np.asarray(Image.open(first.save(tmp_path / "x.png"))), first.array)
    with pytest.raises(ValueError, match="one seed has no spread"):
        first.uncertainty()
    with pytest.raises(ValueError, match="no encoder reads more"):
        restorer(file, caption="a" * 1_000_000)


def test_foreign_files_in_the_output_are_kept(restored, tmp_path) -> None:
    """A photograph with another suffix next to the input; a result that was retouched; the summary."""
    photo(tmp_path / "in/holiday.jpg")
    theirs = photo(tmp_path / "in/holiday.png", seed=1).read_bytes()
    with pytest.raises(ValueError, match=r"holiday\.png: not written by restore-lab, or changed since"):
        restored(tmp_path / "in/holiday.jpg", f"output={tmp_path / 'in'}")
    with pytest.raises(ValueError, match=r"holiday\.png: not written by restore-lab"):
        restored(tmp_path / "in/holiday.jpg", f"output={tmp_path / 'in'}", "again=true", "seed=3")
    assert (tmp_path / "in/holiday.png").read_bytes() == theirs
    assert restored(
        tmp_path / "in/holiday.jpg", f"output={tmp_path / 'in'}", "format=same", "names='{key}_new'"
    ).written
    assert restored(tmp_path / "in/holiday.jpg").written == 1
    photo(tmp_path / "out/holiday.png", seed=2)
    assert restored(tmp_path / "in/holiday.jpg").skipped == 1  # nothing to write
    with pytest.raises(ValueError, match=r"out/holiday\.png: not written by restore-lab"):
        restored(tmp_path / "in/holiday.jpg", "seed=3")
    (tmp_path / "out/holiday.png").unlink()
    assert restored(tmp_path / "in/holiday.jpg", "seed=3").written == 1
    (tmp_path / "out/restored.csv").write_text("my notes")
    with pytest.raises(ValueError, match=r"restored\.csv: not written by restore-lab"):
        restored(tmp_path / "in/holiday.jpg")


def test_equal_stems_make_distinct_files(restored, tmp_path) -> None:
    """Of names alike but for suffix or case, one like another's comparison, a folder called as a result."""
    names = ("a.png", "a.jpg", "a.png.png", "B.png", "b.png", "c.png", "c_compare.jpg", "d.jpg", "d.png/e.png")
    for seed, name in enumerate(names):
        photo(tmp_path / "in" / name, seed=seed)
    done = restored(tmp_path / "in", "compare=true")
    assert (done.written, done.bad) == (9, [])
    written = [p.relative_to(done.output).as_posix() for p in done.output.rglob("[!.]*.png") if p.is_file()]
    assert len({name.casefold() for name in written}) == len(written) == 18
    assert {"c.png", "c_compare.png", "c_compare~2.png", "d~2.png", "d.png/e.png"} <= set(written)
    assert restored(tmp_path / "in", "compare=true").skipped == 9


def test_the_first_frame_of_an_animation_is_restored_and_noted(restored, tmp_path, caplog) -> None:
    photo(tmp_path / "in/a.png")
    frames = [Image.fromarray(random_levels(16, 16, 3, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "in/b.gif", save_all=True, append_images=frames[1:])
    done = restored(tmp_path / "in")
    assert done.frames == {str(tmp_path / "in/b.gif"): 3}
    assert "1 animation or multi-page file: only the first frame is used" in caplog.text
    assert [row["frames"] for row in rows(done.output)] == ["1", "3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Missing mandatory value: input"),
        (("input=null",), "input=null: expected text"),
        (("input=.", "output=null"), "output=null: expected text"),
    ],
)
def test_the_command_needs_an_input(words, said, monkeypatch, capsys) -> None:
    assert OmegaConf.is_missing(Restorer.load(overrides=["method=spire"], device="cpu").cfg, "input")
    monkeypatch.setattr(sys, "argv", ["restore-lab", "restore", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"restore-lab: {said}\n"
