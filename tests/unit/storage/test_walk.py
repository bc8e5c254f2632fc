"""The one walk over folders: links, loops, order, skipped paths; distinct keys."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restore_lab.data.sources.folder import fold, keys_of, list_images, unique_names
from restore_lab.data.sources.shards import list_tars
from restore_lab.storage.identity import fingerprint, identity
from restore_lab.storage.walk import MAX_PATHS, describe_skipped, match, walk
from tests.helpers.checkout import PACKAGE


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def linked(tmp_path) -> Path:
    """A folder with one file of its own, and others that only links lead to."""
    root = put(tmp_path / "root", "own/1.png", ".hidden/x.png", "__MACOSX/x.png")
    far = put(tmp_path / "far", "2.png", "deep/3.png")
    (root / "linked").symlink_to(far)
    (root / "again").symlink_to(far)  # a name of its own: reference/noise15 and reference/noise25 may be one folder
    (root / "4.png").symlink_to(far / "2.png")
    (far / "deep/back").symlink_to(root)
    (root / "own/self").symlink_to(".")
    (root / "dead.png").symlink_to("nowhere.png")
    (root / "ring.png").symlink_to("ring.png")
    os.mkfifo(root / "pipe.png")
    return root


def test_links_are_followed_except_loops_and_others_are_counted(linked) -> None:
    found = walk(linked)
    assert found.files == ("4.png", "again/2.png", "again/deep/3.png", "linked/2.png", "linked/deep/3.png", "own/1.png")
    assert found.skipped == {
        "hidden": 2,
        "link that leads back": 3,
        "link without target": 2,
        "special file": 1,
    }
    assert describe_skipped(found.skipped) == "2 hidden, 3 links that lead back, 2 links without target, 1 special file"
    assert walk(linked, depth=1).files == ("4.png",)
    assert walk(linked, depth=2).files == ("4.png", "again/2.png", "linked/2.png", "own/1.png")


def test_every_reader_uses_walk(linked) -> None:
    """Images of a folder and of a pattern, tars, and the fingerprint of a folder that a run was trained on."""
    assert tuple(list_images(linked).names) == walk(linked).files
    assert list_images(linked / "**/*.png").names == list(walk(linked).files)
    assert list_images(linked / "*/[23].png").names == ["again/2.png", "linked/2.png"]
    assert list_images(linked, recursive=False).names == ["4.png"]
    put(linked.parent / "far", "deep/t.tar")
    assert [tar.relative_to(linked).as_posix() for tar in list_tars(linked)] == [
        "again/deep/t.tar",
        "linked/deep/t.tar",
    ]
    before, pattern = fingerprint(linked), identity({"root": str(linked / "*/2.png")})
    (linked.parent / "far/2.png").write_text("another picture")
    assert fingerprint(linked) != before
    assert identity({"root": str(linked / "*/2.png")}) != pattern


def test_crossing_links_are_refused_in_one_line(tmp_path) -> None:
    """Eight folders, each with links to all others: more ways than could be listed."""
    for here in range(8):
        for there in range(8):
            if here != there:
                (tmp_path / f"{here}").mkdir(exist_ok=True)
                (tmp_path / f"{here}/{there}").symlink_to(tmp_path / f"{there}")
    with pytest.raises(ValueError, match=f"in over {MAX_PATHS} ways"):
        walk(tmp_path)


def test_an_unreadable_folder_is_counted(tmp_path, monkeypatch) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    plain = os.scandir

    def refused(place):
        if str(place).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(place))
        return plain(place)

    monkeypatch.setattr(os, "scandir", refused)
    assert (walk(tmp_path).files, walk(tmp_path).skipped) == (("a/1.png",), {"unreadable folder": 1})
    with pytest.raises(PermissionError):
        walk(tmp_path / "b")


def test_patterns_match_files(tmp_path) -> None:
    put(tmp_path, "a.png", "b/a.png", "b/c/a.png", "b/c/x.jpg", "d[1].png")
    fits = {
        "*.png": ["a.png", "d[1].png"],
        "**/a.png": ["a.png", "b/a.png", "b/c/a.png"],
        "b/**": ["a.png", "c/a.png", "c/x.jpg"],
        "**/c/*": ["b/c/a.png", "b/c/x.jpg"],
        "*/*/?.jpg": ["b/c/x.jpg"],
        "nowhere/*.png": [],
    }
    assert {pattern: list(match(tmp_path / pattern)[1].files) for pattern in fits} == fits
    assert list_images(tmp_path / "d[1].png").names == ["d[1].png"]  # a file of this very name


def test_skipped_paths_are_described_in_one_line(tmp_path, caplog) -> None:
    put(tmp_path, "a.png", "a.txt", "notes.md", "table.csv", "b.HEIC")
    (tmp_path / "dead.png").symlink_to("nowhere")
    list_images(tmp_path).report()
    left = "2 files that are no images, 1 link without target, 1 unsupported .heic photograph"
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}: 1 images; passed over: {left}"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/x.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"no image files in or below it; looked for .*; passed over: 1 link without"):
        list_images(tmp_path / "empty")


# Names with dots, folders, case, and letters of several forms; few letters, so that they meet.
PART = st.text(alphabet="aAé.~2_\u0301ß\udcff", min_size=1, max_size=4).filter(
    lambda part: not part.startswith(".") and part.strip(".")
)
NAME = st.builds(
    lambda folders, stem, suffix: "/".join([*folders, stem]) + suffix,
    st.lists(PART, max_size=2),
    PART,
    st.sampled_from(["", ".png", ".jpg", ".PNG", ".png.png"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(NAME, max_size=8))
def test_keys_are_distinct_on_any_file_system(names) -> None:
    keys = keys_of(names)
    assert len({fold(key) for key in keys}) == len(names)
    if len(set(names)) == len(names):  # their order plays no role
        assert keys_of(names[::-1]) == keys[::-1]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(NAME, max_size=6), st.lists(st.sampled_from([".png", ".jpg", "_a.png", "~2.png"]), min_size=1, unique=True)
)
def test_file_names_are_distinct_on_any_file_system(names, endings) -> None:
    """And none is a folder that another needs."""
    folders = {str(folder) for name in names for folder in Path(name).parents}
    files = [f"{name}{ending}" for name in unique_names(names, endings=endings, folders=folders) for ending in endings]
    assert len({fold(file) for file in files}) == len(files)
    assert not {fold(file) for file in files} & {fold(folder) for folder in folders}


def test_usual_names_have_plain_keys() -> None:
    assert keys_of(["a.png", "b/a.png", "c.jpg"]) == ["a", "b/a", "c"]
    assert keys_of(["a.png", "a.jpg", "a.png.png"]) == ["a.png", "a.jpg", "a.png.png"]
    assert keys_of(["A.png", "a.png"]) == ["A.png", "a.png~2"]
    composed_, apart = unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")
    assert sorted(keys_of([composed_, apart])) == sorted([apart, f"{composed_}~2"])


def test_no_other_module_walks_folders() -> None:
    """A reader of its own would follow other links and count nothing. The second reads a folder of ours."""
    own = {"storage/walk.py", "launch/job.py"}
    package = PACKAGE
    walks = re.compile(r"\.rglob\(|os\.walk\(|os\.fwalk\(|recursive=True\)|\.walk\(\)|glob\(\"\*\*")
    found = {file.relative_to(package).as_posix() for file in package.rglob("*.py") if walks.search(file.read_text())}
    assert found - own - {"tables/file.py"} == set()  # the last lists the package's own tables
