"""The survey of training images before the first step: what is reported and skipped; files with frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from restore_lab.data.datamodule import RestorationDataModule
from restore_lab.data.frames import describe_frames, take_frames
from restore_lab.data.image_io import BadImage, read_header, read_image, write_png
from restore_lab.data.photograph import read_photograph
from restore_lab.data.sources.folder import FolderSource
from restore_lab.data.sources.labelled import LabelledPairs
from restore_lab.data.sources.mixed import MixedSource
from restore_lab.data.sources.paired import PairedSource, SameStem
from restore_lab.data.sources.pooled import PooledSource
from restore_lab.data.sources.shards import ShardsSource
from restore_lab.data.survey import screen
from restore_lab.data.test_crops import EvalCrops
from restore_lab.prepare.pack import write_shard
from restore_lab.types import Picture
from tests.helpers.checkout import ROOT

SIZES = {
    "a": (10, 40),
    "b": (20, 20),
    "c": (30, 50),
    "d": (16, 15),
    "e": (64, 48),
}  # height, width; 16 wanted: a, d out
KEPT = ["b", "c", "e"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """One image of each size, each of a level of its own."""
    for level, (name, size) in enumerate(SIZES.items()):
        write_png(tmp_path / f"set/{name}.png", np.full((*size, 3), level, np.uint8))
    return tmp_path / "set"


def stems(source) -> list[str]:
    return [source.read(index, epoch=0).key.rpartition("/")[2] for index in range(len(source))]


def test_small_images_are_skipped_and_counted(folder, caplog) -> None:
    caplog.set_level("INFO")
    data = RestorationDataModule(train=FolderSource(folder), crop=32, min_size=16, batch_size=3, flip=False)
    data.setup("fit")
    data.setup("fit")  # Lightning may ask twice
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "train: 5 images, 40x10 to 48x64 pixels, median 20x20; 2 left out, below min_size=16; 2 enlarged to crop=32"
    )
    batches = iter(data.train_dataloader())
    seen = [key for _ in range(4) for key in next(batches).key]
    assert sorted(seen) == sorted(KEPT * 4)  # each once an epoch: none stands in for one that is left out
    assert data.bad.lines == []


def test_without_min_size_small_images_are_enlarged_and_counted(folder, caplog) -> None:
    caplog.set_level("INFO")
    assert len(screen(FolderSource(folder), name="train", crop=64, min_size=1)) == 5
    assert caplog.records[-1].getMessage().endswith("median 20x20; 5 enlarged to crop=64")
    assert len(screen(FolderSource(folder), name="train", crop=None, min_size=None)) == 5
    assert caplog.records[-1].getMessage() == "train: 5 images, 40x10 to 48x64 pixels, median 20x20"
    with pytest.raises(
        ValueError, match=r"none of 5 images has a shorter side of min_size=65 .*largest is 48x64\); min_"
    ):
        screen(FolderSource(folder), name="train", crop=65, min_size=65)


def sources(folder: Path) -> dict[str, object]:
    """Every kind of source that reads files."""
    plain = FolderSource(folder)
    write_shard(folder.parent / "tars/0.tar", (plain.read(i) for i in range(len(plain))), images="png", quality=90)
    pairs = PairedSource(lq=folder, hq=folder, rule=SameStem())
    return {
        "folder": plain,
        "pairs": pairs,
        "labelled": LabelledPairs(source=pairs, kind="haze"),
        "shards": ShardsSource(folder.parent / "tars"),
        "windowed": ShardsSource(folder.parent / "tars", window=2),
        "pooled": PooledSource(sources={"x": plain}),
        "mixed": MixedSource(sources={"x": plain}, shares={"x": 1.0}),
        "cuts": EvalCrops(source=plain, first=None, resize=None, crop=None, crops=None),
    }


@pytest.mark.parametrize("kind", ["folder", "pairs", "labelled", "shards", "windowed", "pooled", "mixed", "cuts"])
def test_every_source_reports_its_sizes(folder, kind) -> None:
    found = screen(sources(folder)[kind], name="train", crop=16, min_size=16)
    assert stems(found) == KEPT
    if kind == "windowed":
        assert sorted(found.order(seed=0, epoch=1)) == [0, 1, 2]


def test_a_source_without_sizes_skips_small_images_while_reading() -> None:
    class Own:
        def __len__(self) -> int:
            return 2

        def keys(self) -> list[str]:
            return ["small", "large"]

        def read(self, index: int, *, epoch: int = 0) -> Picture:
            return Picture(hq_HWC=np.zeros((8 + 24 * index, 32, 3), np.uint8), key=self.keys()[index])

    data = RestorationDataModule(train=Own(), crop=16, min_size=16, batch_size=4)
    data.setup("fit")
    assert set(next(iter(data.train_dataloader())).key) == {"large"}
    assert data.bad.lines == ["small: 32x8 pixels, below min_size=16"]


def test_enlarged_test_images_are_counted_and_none_is_skipped(folder, caplog) -> None:
    whole = EvalCrops(source=FolderSource(folder), first=None, resize=None, crop=None, crops=None)
    data = RestorationDataModule(test=whole, eval_crop=16, min_size=16)
    data.setup("test")
    assert "test: 2 of 5 images are enlarged to the crop of 16 pixels" in caplog.text and data.test_count() == 1
    caplog.clear()
    scaled = EvalCrops(source=FolderSource(folder), first=None, resize=32, crop=None, crops=None)
    RestorationDataModule(test=scaled, eval_crop=16).setup("test")
    assert "enlarged" not in caplog.text


def test_every_stage_that_trains_on_crops_has_the_limit() -> None:
    """A data module written out in a config is as careful as train.yaml's."""

    def modules(node):
        if isinstance(node, dict):
            if str(node.get("_target_")).endswith(".RestorationDataModule") and node.get("train"):
                yield node
            for value in node.values():
                yield from modules(value)

    files = [file for name in ("conf", "experiments") for file in (ROOT / name).rglob("*.yaml")]
    found = [node for file in files for node in modules(yaml.safe_load(file.read_text(encoding="utf-8")))]
    assert len(found) >= 7
    assert {node.get("min_size") for node in found} == {"${min_size}"}


def frames(count: int, mode: str = "RGB") -> list[Image.Image]:
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
    return [Image.fromarray(one).convert(mode) for one in noise]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_further_frames_are_reported_by_every_reader(tmp_path, suffix) -> None:
    first, *others = frames(3)
    first.save(tmp_path / f"many{suffix}", save_all=True, append_images=others)
    first.save(tmp_path / f"one{suffix}")
    for read in (read_header, read_image, read_photograph):
        take_frames()
        for name in ("one", "many"):
            read(tmp_path / f"{name}{suffix}")
        assert take_frames() == {str(tmp_path / f"many{suffix}"): 3}, read.__name__
    assert take_frames() == {}


def test_previews_and_broken_frames_are_not_counted(tmp_path) -> None:
    first, second, _ = frames(3)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second], tiffinfo={})
    tiff = (tmp_path / "a.tif").read_bytes()
    first.save(tmp_path / "small.tif", tiffinfo={254: 1})  # says of itself that it is a smaller copy
    assert read_header(tmp_path / "a.tif").frames == 2 and read_header(tmp_path / "small.tif").frames == 1
    first.save(tmp_path / "b.mpo", save_all=True, append_images=[second])
    assert read_header(tmp_path / "b.mpo").frames == 1
    first.save(tmp_path / "c.gif", save_all=True, append_images=[second])
    whole = (tmp_path / "c.gif").read_bytes()
    (tmp_path / "c.gif").write_bytes(whole[: len(whole) - 400])
    assert read_image(tmp_path / "c.gif").shape == (20, 24, 3)
    (tmp_path / "d.tif").write_bytes(tiff[:6])
    with pytest.raises(BadImage, match=r"d\.tif: "):
        read_header(tmp_path / "d.tif")
    take_frames()


def test_frames_in_workers_are_reported_in_one_line(tmp_path, caplog) -> None:
    for number in range(3):
        one, *others = frames(4)
        one.save(tmp_path / f"{number}.gif", save_all=True, append_images=others)
    data = RestorationDataModule(test=FolderSource(tmp_path), workers=2, eval_batch_size=1)
    data.setup("test")
    take_frames()  # of this process
    assert len(list(data.test_dataloader())) == 3
    data.teardown("test")
    assert f"3 animations or multi-page files: only the first frame is used ({tmp_path}/0.gif: 4 frames" in caplog.text
    caplog.set_level("INFO")
    RestorationDataModule(train=FolderSource(tmp_path), crop=8).setup("fit")
    assert "pixels, median 24x20; 3 animations or multi-page files" in caplog.text
    assert describe_frames({}) == ""
