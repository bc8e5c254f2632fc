"""Folders of images, and the captions next to them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from restore_lab.data.image_io import BadImage, write_png
from restore_lab.data.sources.folder import FolderSource


def put(root: Path, *names: str) -> Path:
    """Images of one grey level each: 0, 1, 2, ... in the order named."""
    for level, name in enumerate(names):
        write_png(root / name, np.full((6, 8, 3), level, np.uint8))
    return root


def captions(source: FolderSource) -> dict[str, str]:
    return {(picture := source.read(index)).key: picture.caption for index in range(len(source))}


def test_a_folder_has_sorted_keys_and_skips_other_files(tmp_path: Path) -> None:
    put(tmp_path, "b.PNG", "a b.png", "été/東.png", "__MACOSX/x.png", ".hidden/y.png", ".z.png")
    (tmp_path / "notes.md").write_text("no image")
    source = FolderSource(tmp_path)
    assert source.keys() == ["a b", "b", "été/東"]
    assert [int(source.read(index).hq_HWC[0, 0, 0]) for index in range(3)] == [1, 0, 2]
    assert FolderSource(tmp_path, recursive=False).keys() == ["a b", "b"]


def test_colliding_keys_keep_their_suffix(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "a.jpg", "c.png")
    assert FolderSource(tmp_path).keys() == ["a.jpg", "a.png", "c"]


def test_a_single_file_has_its_stem_as_key_and_the_given_role(tmp_path: Path) -> None:
    put(tmp_path, "my photo, 1.png", "other.png")
    source = FolderSource(tmp_path / "my photo, 1.png", role="lq")
    picture = source.read(0)
    assert source.keys() == ["my photo, 1"] and picture.hq_HWC is None and picture.lq_HWC.shape == (6, 8, 3)
    with pytest.raises(ValueError, match="role=good: there are: hq, lq"):
        FolderSource(tmp_path, role="good")


def test_missing_and_empty_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no image files in or below it"):
        FolderSource(tmp_path)


def test_damaged_file_is_named_when_read(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    write_png(tmp_path / "a.png", np.random.Generator(np.random.PCG64(0)).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    source = FolderSource(tmp_path)
    assert len(source) == 2 and source.read(1).key == "b"
    with pytest.raises(BadImage, match=r"a\.png: "):
        source.read(0)


def test_a_text_next_to_an_image_is_its_caption(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "a.txt").write_text("\ufeffa cat's\n nap ", encoding="utf-8")
    (tmp_path / "b.png.txt").write_text("a dog")
    assert captions(FolderSource(tmp_path)) == {"a": "a cat's nap", "b": "a dog", "c": ""}
    assert set(captions(FolderSource(tmp_path, captions=None)).values()) == {""}


RECORDS = [{"file_name": "sub/a.png", "text": "first"}, {"file_name": "b", "text": "second"}]


@pytest.mark.parametrize("kind", ["object", "records", "jsonl", "parquet"])
def test_caption_tables_are_read(tmp_path: Path, kind: str) -> None:
    root = put(tmp_path / "set", "sub/a.png", "b.png", "c.png")
    if kind == "object":
        (root / "captions.json").write_text(json.dumps({"sub/a.png": "first", "b": "second"}))
    elif kind == "records":
        (root / "metadata.json").write_text(json.dumps(RECORDS))
    elif kind == "jsonl":
        (root.parent / "set.jsonl").write_text("\n".join(json.dumps(record) for record in RECORDS) + "\n\n")
    else:
        parquet.write_table(pa.Table.from_pylist([{**r, "image_bytes": b"x"} for r in RECORDS]), root / "set.parquet")
    assert captions(FolderSource(root)) == {"sub/a": "first", "b": "second", "c": ""}


def test_a_text_file_wins_over_the_table_and_ambiguous_names_have_no_caption(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "a.txt").write_text("beside")
    table = {"a": "table", "/far/away/b.png": "far b", "x/c.png": "one", "y/c.png": "two"}
    (tmp_path / "captions.json").write_text(json.dumps(table))
    assert captions(FolderSource(tmp_path)) == {"a": "beside", "b": "far b", "c": ""}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.json", "{oops", "captions.json: not a readable json caption table"),
        ("captions.json", "3", "expected an object or a list, got int"),
        ("captions.jsonl", '{"file": "a.png"}', "has none of the fields caption, text"),
        ("captions.parquet", "not parquet", "captions.parquet: not a readable parquet caption table"),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    put(tmp_path, "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        FolderSource(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_explicit_table_must_exist_and_match_the_images(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    with pytest.raises(ValueError, match="no such caption table"):
        FolderSource(tmp_path, captions=tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"zebra": "stripes"}')
    with pytest.raises(ValueError, match=r"names none of the images in .* \(it has zebra\)"):
        FolderSource(tmp_path, captions=tmp_path / "other.json")
