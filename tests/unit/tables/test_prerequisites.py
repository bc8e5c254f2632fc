"""What a table makes first: captions and trainings that trainings and evaluations need; shared, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from restore_lab.cli import front
from restore_lab.data.sources.folder import FolderSource
from restore_lab.inference.captioning import caption_folder, plan_captions
from restore_lab.storage.artefact import CAPTIONS, SCORES
from restore_lab.storage.identity import identity
from restore_lab.storage.named import prerequisite_name, prerequisite_path
from restore_lab.tables.jobs import Plan
from restore_lab.tables.table import plan_text
from restore_lab.training.run import plan_training
from tests.helpers.configs import composed
from tests.helpers.toy_captioners import toy_captioner
from tests.helpers.toy_table import NOISE, kinds_of, plan_table

LSDIR = "datasets/LSDIR/train"


def folder_of_photographs(place: Path) -> Path:
    """LSDIR as it is laid out, two images."""
    folder = place / LSDIR / "0001000"
    folder.mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (24, 20), (90 * number, 0, 0)).save(folder / f"{number:07d}.png")
    return place / "datasets"


def captioned(folder: Path, toy_folder: Path, *, elsewhere: bool = False, **changed) -> Plan:
    """Two rows that train on captioned photographs, under one condition; captions by one question."""
    words = ["data=lsdir", "data.source.captions=made:words", f"datasets_dir={folder / 'datasets'}"]
    lines = {"words": ["caption", "data=lsdir", "prompt.semantic.captioner.question='What?'"]}
    rows = {"one": {"train": words}, "two": {"train": [*words, "batch_size=1"]}}
    node = {"rows": rows, "conditions": NOISE, **changed}
    place = folder / "elsewhere" if elsewhere else folder
    return plan_table(place, toy_folder, top={"makes": lines}, without="data.size", **node)


def test_captions_are_made_once_and_trainings_wait_for_them(toy_folder, tmp_path) -> None:
    folder_of_photographs(tmp_path)
    found = captioned(tmp_path, toy_folder)
    assert not found.refusals, found.refusals
    assert kinds_of(found) == ["adaptor"] * 2 + [CAPTIONS] + [SCORES] * 2
    captions = next(job.artefact for job in found.jobs.values() if job.artefact.kind == CAPTIONS)
    waiting = [job for job in found.jobs.values() if captions.identity in job.needs]
    assert [job.artefact.kind for job in waiting] == ["adaptor"] * 2
    assert list(found.jobs).index(captions.identity) == 0
    place = f"data.source.captions='made:{captions.folder}/captions.json'"
    assert all(place in job.words for job in waiting)
    assert "data lsdir: there" in plan_text(found, tmp_path)


def test_planned_artefacts_are_those_the_commands_make(toy_folder, tmp_path) -> None:
    """The captions' own command finds the planned identity, writes table and manifest, and the training's identity is
    the same before and after, and wherever the runs lie."""
    datasets = folder_of_photographs(tmp_path)
    found = captioned(tmp_path, toy_folder)
    job = next(job for job in found.jobs.values() if job.artefact.kind == CAPTIONS)
    words = front.parse(job.words[1:]).overrides
    model = toy_captioner(tmp_path / "llava", "llava")
    small = (f"datasets_dir={datasets}", "prompt.semantic.captioner.max_new_tokens=4")
    assert plan_captions(composed("caption", *words, f"datasets_dir={datasets}")).identity == job.artefact.identity
    cfg = composed("caption", *words, *small, f"prompt.semantic.captioner.model={model}")
    done = caption_folder(cfg)
    assert done.written == 2 and plan_captions(cfg).is_complete()
    assert list(json.loads(done.output.read_text())) == ["0001000/0000001.png", "0001000/0000002.png"]
    before = done.output.stat().st_mtime_ns
    assert caption_folder(cfg).written == 2 and done.output.stat().st_mtime_ns == before
    source = FolderSource(datasets / "LSDIR" / "train", captions=f"made:{done.output}")
    assert source.read(1).caption == " ".join(json.loads(done.output.read_text())["0001000/0000002.png"].split())
    adaptors = [
        {identity for identity, job in plan.jobs.items() if job.artefact.kind == "adaptor"}
        for plan in (found, captioned(tmp_path, toy_folder), captioned(tmp_path, toy_folder, elsewhere=True))
    ]
    assert adaptors[0] == adaptors[1] == adaptors[2]


def test_evaluations_wait_for_a_test_sets_captions(toy_folder, tmp_path) -> None:
    """The rows that name them share one table; a row with another question has its own."""
    photographs = ["eval_data=realphoto60", f"datasets_dir={tmp_path}"]
    rows = {
        "one": {"evaluate": [*photographs, "eval_data.source.captions=made:long"]},
        "two": {"weights": "one", "evaluate": [*photographs, "eval_data.source.captions=made:long", "seed=0"]},
        "short": {"weights": "one", "evaluate": [*photographs, "eval_data.source.captions=made:short"]},
        "lost": {"weights": "one", "evaluate": [*photographs, "eval_data.source.captions=made:nothing"]},
    }
    makes = {
        "long": ["caption", "data=realphoto60"],
        "short": ["caption", "data=realphoto60", "prompt.semantic.captioner.question='In five words?'"],
    }
    found = plan_table(tmp_path, toy_folder, top={"makes": makes}, rows=rows, conditions={"main": {}})
    assert kinds_of(found) == ["adaptor", CAPTIONS, CAPTIONS, SCORES, SCORES]  # two rows are one record
    needs = {place.row: found.jobs[identity].needs for place, identity in found.scores.items()}
    assert needs["one"] == needs["two"] != needs["short"]
    (why,) = found.refusals.values()
    assert why == "eval_data.source.captions=made:nothing: `makes` of the config has no 'nothing'; it has long, short"
    assert f"data realphoto60: MISSING {tmp_path}/RealPhoto60/LQ (restore-lab doctor data=realphoto60)" in plan_text(
        found, tmp_path
    )


def test_a_training_may_start_from_another(toy_folder, tmp_path) -> None:
    """`makes` trains the first, whatever table asks; the second's identity does not depend on where it lies."""
    makes = {"first": ["train", "method=spire", f"backbone.path={toy_folder}", "max_steps=2"]}
    rows = {"on": {"train": ["weights=made:first"]}, "alone": {}}
    found = plan_table(tmp_path, toy_folder, top={"makes": makes}, rows=rows, conditions={"main": {}})
    assert kinds_of(found) == ["adaptor"] * 3 + [SCORES] * 2 and not found.refusals
    second = next(job for job in found.jobs.values() if job.artefact.kind == "adaptor" and job.needs)
    first = found.jobs[second.needs[0]]
    assert f"weights='made:{first.artefact.folder}'" in second.words and first.steps == 2
    words = [word for word in front.parse(second.words[1:]).overrides if not word.startswith("experiment=")]
    assert plan_training(composed("train", *words))[-1].identity == second.artefact.identity
    first.artefact.finish()
    again = plan_table(tmp_path, toy_folder, top={"makes": makes}, rows=rows, conditions={"main": {}})
    assert again.jobs.keys() == found.jobs.keys()


def test_a_prerequisite_counts_by_its_folder_name() -> None:
    one, two = "made:/a/captions-0123456789abcdef/captions.json", "made:runs/captions-0123456789abcdef/captions.json"
    assert prerequisite_name(one) == prerequisite_name(two) == "made:captions-0123456789abcdef/captions.json"
    assert identity({"captions": one}) == identity({"captions": two}) != identity({"captions": "made:captions"})
    assert prerequisite_path(one) == one.removeprefix("made:") and prerequisite_path("photos/a") == "photos/a"
    with pytest.raises(ValueError, match="made:words: is made by restore-lab table"):
        prerequisite_path("made:words")
