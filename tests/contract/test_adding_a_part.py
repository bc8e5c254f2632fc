"""docs/adding_a_part.md, followed: its files are written as printed, outside the package, and its commands run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from restore_lab.evaluation.records import read_record
from tests.helpers.checkout import ROOT
from tests.helpers.configs import small
from tests.helpers.doc_pages import blocks, save
from tests.helpers.forked import forked

PAGE = blocks(ROOT / "docs/adding_a_part.md")
PARTS = ("prompt/instruction=polite", "adaptor/fusion=shift_only", "sampler/init=shared_noise")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder with what the page says."""
    folder = tmp_path_factory.mktemp("lab")
    for block in PAGE:
        if block.file:
            save(folder, block)
    (folder / "my_lab/__init__.py").touch()
    return folder


def command(lab: Path, verb: str, *words: str, trusted: bool = True) -> subprocess.CompletedProcess[str]:
    trust = ("trusted_packages=[my_lab]",) if trusted else ()
    return forked(verb, "--config-dir", "my_conf", *trust, *words, cwd=lab, paths=(lab, ROOT))


def test_the_page_shows_every_part() -> None:
    named = [block.file for block in PAGE if block.file]
    assert len(named) == len(set(named)) == 16
    assert all(block.file for block in PAGE if block.language == "python")


def test_parts_from_outside_train_restore_and_are_measured(lab, toy_folder) -> None:
    toy = (*small(toy_folder), "max_steps=1", "progress=false", "name=shaky")
    trained = command(lab, "train", "degradation=handheld", *PARTS, *toy, "trainer.accelerator=cpu", "logger=none")
    assert trained.returncode == 0, trained.stderr
    (run,) = (lab / "runs/shaky").glob("adaptor-*")
    words = ("eval_degradation=handheld", "metrics=mine", "name=shaky", f"weights={run}", "device=cpu", "pictures=0")
    done = command(lab, "evaluate", *words, *PARTS, *small(toy_folder), "progress=false", "format=json")
    assert done.returncode == 0, done.stderr
    results = read_record(lab / json.loads(done.stdout)["record"]).results
    assert {"brightness", "psnr"} <= {cell.metric for cell in results.cells}
    told = {image.instruction for image in results.images if image.instruction}
    assert told == {"Please deblur; denoise; dejpeg, thank you"}
    recipes = [json.loads(image.recipe) for image in results.images if image.recipe]
    assert {tuple(step["kind"] for step in recipe["steps"]) for recipe in recipes} == {("blur", "noise", "jpeg")}


def test_a_method_from_outside_trains_and_restores(lab, toy_folder) -> None:
    """One step from the LQ's latent: its own loss and sampler, and nothing of the package changed for it."""
    toy = [word for word in small(toy_folder) if not word.startswith(("sampler.", "adaptor."))]
    words = ("method=onestep", *toy, "progress=false", "name=one")
    trained = command(lab, "train", *words, "max_steps=1", "trainer.accelerator=cpu", "logger=none", "log_every=1")
    assert trained.returncode == 0, trained.stderr
    (run,) = (lab / "runs/one").glob("adaptor-*")
    (line,) = map(json.loads, (run / "losses.jsonl").read_text().splitlines())
    assert line["train/loss"] == pytest.approx(line["train/latent"] + 0.1 * line["train/image"], rel=1e-5)
    done = command(lab, "evaluate", *words, f"weights={run}", "device=cpu", "pictures=0", "format=json")
    assert done.returncode == 0, done.stderr
    results = read_record(lab / json.loads(done.stdout)["record"]).results
    assert {"D(E(LQ))", "one"} <= {cell.row for cell in results.cells}


def test_an_objective_from_outside_trains(lab, toy_folder) -> None:
    toy = (*small(toy_folder), "max_steps=1", "progress=false", "name=huber")
    trained = command(lab, "train", "objective=huber", *toy, "trainer.accelerator=cpu", "logger=none")
    assert trained.returncode == 0, trained.stderr


def test_parts_from_outside_do_not_run_without_trust(lab, toy_folder) -> None:
    (lab / "my_lab/handheld.py").write_text(f"open({str(lab / 'ran')!r}, 'w')\n")
    refused = command(lab, "train", "degradation=handheld", *small(toy_folder), trusted=False)
    assert refused.returncode == 2
    assert "_target_ 'my_lab.handheld.Handheld' is not allowed" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (lab / "ran").exists()
