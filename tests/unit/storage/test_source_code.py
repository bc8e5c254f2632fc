"""Code of outside packages is part of an identity: an edit makes other weights, and is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from restore_lab.config.build import ALLOWED
from restore_lab.storage import source_code
from restore_lab.storage.artefact import Manifest
from restore_lab.storage.identity import identity

OURS = {"module": {"_target_": "restore_lab.objectives.denoising.Denoising", "t_min": 0.1}}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package of two modules, and a module that stands for itself, on the path of this process."""
    folder = tmp_path / "outside_lab"
    (folder / "inner").mkdir(parents=True)
    for name in ("__init__.py", "loss.py", "inner/__init__.py", "inner/helper.py"):
        (folder / name).write_text("# one\n")
    (folder / "inner/notes.txt").write_text("not code")
    (tmp_path / "outside_module.py").write_text("# one\n")
    monkeypatch.syspath_prepend(tmp_path)
    source_code.hash_files.cache_clear()
    yield folder
    source_code.hash_files.cache_clear()


def edited(file: Path, text: str) -> None:
    """Write a file as an editor does before the next command."""
    file.write_text(text)
    source_code.hash_files.cache_clear()


def settings(target: str) -> dict:
    return {"module": {"objective": {"_target_": target, "weight": 1.0}}, "seed": 0}


def test_linked_code_counts(package, tmp_path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (away / "far.py").write_text("# one\n")
    (package / "linked").symlink_to(away)
    (package / "linked/back").symlink_to(package)
    assert set(source_code.hash_files("outside_lab")) == {
        f"outside_lab/{name}"
        for name in ("__init__.py", "inner/__init__.py", "inner/helper.py", "linked/far.py", "loss.py")
    }
    before = identity(settings("outside_lab.loss.Mine"))
    edited(away / "far.py", "# two\n")
    assert identity(settings("outside_lab.loss.Mine")) != before


def test_an_edit_anywhere_in_a_package_changes_the_identity(package) -> None:
    mine = settings("outside_lab.loss.Mine")
    before = identity(mine)
    assert identity(mine) == before
    edited(package / "inner/notes.txt", "data is not code")
    assert identity(mine) == before
    found = {before}
    for name in ("loss.py", "inner/helper.py", "inner/new.py"):
        edited(package / name, "# two\n")
        found.add(identity(mine))
    assert len(found) == 4
    assert "outside_lab" not in sys.modules  # reading a package is not importing it


def test_a_single_module_counts_by_its_file(package) -> None:
    mine = settings("outside_module.Mine")
    before = identity(mine)
    edited(package.parent / "outside_module.py", "# two\n")
    assert identity(mine) != before
    assert list(source_code.sources_of(mine)) == ["outside_module.py"]


def test_own_and_library_code_does_not_count() -> None:
    assert source_code.sources_of(OURS) == {}
    assert source_code.sources_of(settings("lightning.pytorch.callbacks.EarlyStopping")) == {}
    assert {target.partition(".")[0] for target in ALLOWED} == source_code.LIBRARIES


def test_the_difference_names_the_changed_file(package, tmp_path) -> None:
    mine, run = settings("outside_lab.loss.Mine"), tmp_path / "run"
    run.mkdir()
    Manifest(identity=identity(mine), kind="adaptor", settings=mine).write(run)
    assert Manifest.read(run).changes(mine) == ""
    edited(package / "loss.py", "# two\n")
    assert Manifest.read(run).changes(mine) == " (other sources: outside_lab/loss.py)"
    other = {**mine, "seed": 1}
    assert Manifest.read(run).changes(other) == " (other sources: outside_lab/loss.py; other settings: seed)"
