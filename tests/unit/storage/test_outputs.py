"""A command overwrites only what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from restore_lab.evaluation.degraded import write_inputs
from restore_lab.inspection import diff
from restore_lab.storage.artefact import Manifest
from restore_lab.storage.outputs import is_own_output, require_free, take_folder, write_output
from restore_lab.storage.walk import walk


def test_own_outputs_are_overwritten_and_foreign_files_refused(tmp_path) -> None:
    file = tmp_path / "deep/a.png"
    write_output(file, b"one")
    write_output(file, b"two")
    assert file.read_bytes() == b"two" and is_own_output(file)
    file.write_bytes(b"retouched")  # theirs from here on
    with pytest.raises(
        ValueError, match=r"a\.png: not written by restore-lab, or changed since, .*; move it, or choose"
    ):
        write_output(file, b"three")
    assert file.read_bytes() == b"retouched"
    file.unlink()
    write_output(file, b"three")
    assert file.read_bytes() == b"three"
    assert walk(tmp_path).files == ("deep/a.png",)  # notes are no data


def test_a_kill_between_note_and_file_keeps_ownership(tmp_path, monkeypatch) -> None:
    from restore_lab.storage import outputs

    file, plain = tmp_path / "a.png", outputs.write_bytes_atomic
    write_output(file, b"one")

    def killed(place, data) -> None:
        if place == file:
            raise KeyboardInterrupt
        plain(place, data)

    monkeypatch.setattr(outputs, "write_bytes_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        write_output(file, b"two")
    monkeypatch.undo()
    assert file.read_bytes() == b"one"
    write_output(file, b"two")
    assert file.read_bytes() == b"two"


def test_links_folders_and_foreign_notes_are_refused(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"one")
    out = tmp_path / "out"
    write_output(out / "a.png", b"one")
    (out / "a.png").unlink()
    for make in (
        lambda: (out / "a.png").symlink_to(precious),  # of the very content that was written here
        lambda: (out / "a.png").symlink_to("nowhere"),
        lambda: (out / "a.png").mkdir(),
    ):
        make()
        with pytest.raises(ValueError, match="not written by restore-lab"):
            write_output(out / "a.png", b"two")
        (out / "a.png").rmdir() if not (out / "a.png").is_symlink() else (out / "a.png").unlink()
    assert precious.read_bytes() == b"one"
    (out / "b.png").write_bytes(b"one")
    for note in (out / ".restore-lab").iterdir():  # another file's, a broken one, a deep one
        for text in (note.read_text(), "{", "[" * 100_000, json.dumps({"file": "b.png", "sha256": 3})):
            (note.parent / note.name).write_text(text)
            assert not is_own_output(out / "b.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/.restore-lab").symlink_to(precious.parent)
    with pytest.raises(ValueError, match="is a link; remove it"):
        write_output(tmp_path / "linked/a.png", b"one")


def test_several_foreign_files_are_counted(tmp_path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for file in files:
        file.touch()
    with pytest.raises(ValueError, match=r"4\.png and 3 more: not written by .*; move them, or choose"):
        require_free(files)


def test_an_output_folder_is_new_empty_or_own(tmp_path) -> None:
    take_folder(tmp_path / "new", setting="run_dir")
    (tmp_path / "new/weights.safetensors").touch()
    take_folder(tmp_path / "new", setting="run_dir")  # the same command continues
    (tmp_path / "whole").mkdir()
    Manifest(identity="0", kind="weights").write(tmp_path / "whole")
    take_folder(tmp_path / "whole", setting="run_dir")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run_dir=.*file is a file; give a folder that is new or empty"):
        take_folder(tmp_path / "file", setting="run_dir")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/weights.safetensors").touch()
    with pytest.raises(ValueError, match=r"output=.*photos holds what no command of ours wrote there \(weights"):
        take_folder(tmp_path / "photos", setting="output")


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder with one file of a person's under every name that a verb could write."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "theirs").write_text("precious")
    return folder


def test_every_writing_verb_refuses_foreign_files(foreign, toy_folder, tmp_path) -> None:
    """What takes a folder as a whole, and what writes single files, by the verbs' own functions."""
    from restore_lab.evaluation.evaluate import evaluate
    from restore_lab.importing.exporting import export
    from restore_lab.inspection.describe import describe
    from restore_lab.prepare.negatives import fill_negatives
    from restore_lab.prepare.pack import pack
    from restore_lab.tables.page.write import write_report
    from restore_lab.tables.table import make_tables
    from restore_lab.training.run import fit
    from tests.helpers.configs import composed, small

    toy, there = small(toy_folder), [f"run_dir={foreign}", f"runs_dir={tmp_path}/runs"]
    file = foreign / "theirs"
    refused = {
        "train": lambda: fit(composed("train", *toy, *there, "max_steps=1", "progress=false")),
        "evaluate": lambda: evaluate(composed("evaluate", *toy, *there, "progress=false")),
        "describe": lambda: describe(composed("describe", *toy, f"run_dir={foreign}", "flops=false")),
        "pack": lambda: pack(composed("data", f"output={foreign}", "make=pack", "samples=1", "progress=false")),
        "negatives": lambda: fill_negatives(composed("data", f"output={foreign}", "count=1", "progress=false")),
        "export": lambda: export(composed("export", "method=spire", f"output={foreign}")),
        "report": lambda: write_report(composed("report", f"output={file}", "records=[x]")),
        "trace": lambda: diff.write_trace({}, file, keys=""),
    }
    for verb, command in refused.items():
        with pytest.raises(ValueError, match=r"not written by restore-lab|no command of ours wrote"):
            command()
        assert file.read_text() == "precious", verb
        assert [path.name for path in foreign.iterdir() if not path.name.startswith(".")] == ["theirs"], verb
    (foreign / "spire_table6.md").write_text("precious")
    with pytest.raises(ValueError, match=r"spire_table6\.md: not written by restore-lab"):
        make_tables(composed("table", "table=[spire/table6]", "make=false", f"output={foreign}"))
    inputs = composed("evaluate", *toy, "eval_first=1", "progress=false")
    write_inputs(inputs, tmp_path / "inputs")
    (found,) = (tmp_path / "inputs").rglob("*.png")
    write_inputs(inputs, tmp_path / "inputs")
    found.write_text("precious")
    with pytest.raises(ValueError, match="not written by restore-lab"):
        write_inputs(inputs, tmp_path / "inputs")
