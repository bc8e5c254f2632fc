"""Planning tables: identities equal those of the commands; shared jobs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from restore_lab.cli import front
from restore_lab.config.compose import OVERRIDES_KEY, merge_and_log
from restore_lab.config.config_source import hydra_at
from restore_lab.evaluation.evaluate import plan_evaluation
from restore_lab.evaluation.plan import Scores
from restore_lab.launch.job import Job
from restore_lab.prepare.negatives import plan_negatives
from restore_lab.storage.artefact import DESCRIPTION, IMAGES, SCORES
from restore_lab.tables.file import read_spec
from restore_lab.tables.jobs import Plan
from restore_lab.tables.plan import plan_tables
from restore_lab.tables.table import plan_text
from restore_lab.training.plan import TrainingStage
from restore_lab.training.run import plan_training
from tests.helpers.configs import composed, small
from tests.helpers.toy_table import NOISE, kinds_of, plan_table, write_conf

MEASURING = ("sampler.steps=7", "metrics=offline", "eval_crop=8")


@pytest.fixture(scope="module")
def four(toy_folder, tmp_path_factory) -> Callable[..., Plan]:
    """Plans the table as it stands; what is composed for one test serves all, so nothing may lie in its store."""
    folder = tmp_path_factory.mktemp("four")
    conf = write_conf(folder, toy_folder)
    with hydra_at(conf):
        hydra = GlobalHydra.instance().hydra

    def again(*, seeds: int = 1, systems_dir: Path | None = None) -> Plan:
        store = folder / "runs" / "tables"
        with hydra_at(conf):
            GlobalHydra.instance().hydra = hydra
            return plan_tables(
                [read_spec("toy/four", [conf], scale="tiny")], store=store, seeds=seeds, systems_dir=systems_dir
            )

    return again


@pytest.fixture(scope="module")
def measured_otherwise(toy_folder, tmp_path_factory) -> Plan:
    """The plan of the table's first row, measured in other ways."""
    rows = {f"way_{MEASURING.index(word)}": {"evaluate": [word]} for word in MEASURING}
    return plan_table(tmp_path_factory.mktemp("otherwise"), toy_folder, rows=rows, conditions=NOISE)


def test_two_rows_share_equal_jobs(four) -> None:
    """Two trainings, not four: sampling otherwise trains nothing, borrowed weights neither; two conditions a row."""
    found = four()
    assert kinds_of(found) == ["adaptor"] * 2 + [SCORES] * 8
    assert not found.refusals
    trained = {found.jobs[identity].needs for place, identity in found.scores.items() if place.row != "other"}
    assert len(trained) == 1
    assert len(set(found.scores.values())) == 8
    twice = four(seeds=2)
    assert kinds_of(twice) == ["adaptor"] * 4 + [SCORES] * 16


def test_images_that_a_training_needs_are_made_first(toy_folder, tmp_path) -> None:
    """Two trainings need one folder of images; a row that does not name it does not wait for it."""
    mixed = ["data=mixed", "data@data.sources.main=procedural", "data.sources.negatives.root=made:bad"]
    rows = {"one": {"train": mixed}, "two": {"train": [*mixed, "seed=7"]}, "plain": {}}
    makes = {"bad": ["data", f"backbone.path={toy_folder}", "count=2", "crop=16", "data.size=16"]}
    overrides = [word for word in small(toy_folder) if not word.startswith(("eval_data", "data.size"))]
    more = {"top": {"makes": makes}, "overrides": overrides, "conditions": NOISE}
    found = plan_table(tmp_path, toy_folder, rows=rows, **more)
    assert not found.refusals, found.refusals
    assert kinds_of(found) == ["adaptor"] * 3 + [IMAGES] + [SCORES] * 3
    job = next(job for job in found.jobs.values() if job.artefact.kind == IMAGES)
    images = job.artefact
    waiting = [other for other in found.jobs.values() if images.identity in other.needs]
    assert len(waiting) == 2 and all(any(str(images.folder) in word for word in other.words) for other in waiting)
    assert f"output='{images.folder}'" in job.words and list(found.jobs).index(images.identity) == 0
    cfg = composed("data", *(word for word in front.parse(job.words[1:]).overrides))
    assert plan_negatives(cfg).identity == images.identity


def test_a_system_is_measured_where_its_outputs_are(four, tmp_path) -> None:
    """Outputs for one condition of two, of one draw of the degradations; without outputs nothing is planned."""
    outputs = tmp_path / "systems" / "swinir" / "blur"
    outputs.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(outputs / "camera_0.png")
    found = four(seeds=2, systems_dir=tmp_path / "systems")
    theirs = {place: identity for place, identity in found.scores.items() if place.row == "theirs"}
    assert [(place.condition, place.seed) for place in theirs] == [("blur", 0)]
    job = found.jobs[next(iter(theirs.values()))]
    assert job.needs == () and f"system='{outputs}'" in job.words and "eval_degradation=blur" in job.words
    assert len(kinds_of(found)) == len(kinds_of(four(seeds=2))) + 1


def test_a_row_of_another_scale_is_not_run(toy_folder, tmp_path) -> None:
    rows = {"one": {}, "large": {"title": "a large one", "only": "full", "published": {"noise": [20.0]}}}
    found = plan_table(tmp_path, toy_folder, rows=rows)
    assert {place.row for place in found.scores} == {"one"} and not found.refusals
    assert "a large one: at scale=full alone" in plan_text(found, tmp_path / "runs" / "tables")
    with pytest.raises(ValueError, match=r"rows\.one\.only=half: there are: tiny, full, or null"):
        plan_table(tmp_path, toy_folder, rows={"one": {"only": "half"}})


def test_a_jobs_command_makes_the_planned_artefact(four) -> None:
    """The identities in the plan are those that training and evaluating find by themselves, with any seed."""
    found = four(seeds=2)
    place = next(place for place in found.scores if (place.row, place.seed) == ("one", 1))
    scores = found.jobs[found.scores[place]]
    adaptor = found.jobs[scores.needs[0]]
    assert {word for job in (adaptor, scores) for word in job.words if word.startswith("seed=")} == {"seed=1"}

    def typed(job: Job):
        words = front.parse(job.words[1:]).overrides
        return composed(job.words[0], *(word for word in words if not word.startswith("experiment=")))

    stage = plan_training(typed(adaptor))[-1]
    assert (stage.identity, stage.folder) == (adaptor.artefact.identity, adaptor.artefact.folder)
    adaptor.artefact.finish()
    try:
        record = plan_evaluation(typed(scores))
        assert record == scores.artefact and scores.needs == (stage.identity,)
        assert adaptor.artefact.is_complete() and not scores.artefact.is_complete()
    finally:
        shutil.rmtree(adaptor.artefact.folder)


def test_borrowed_weights_bring_no_overrides(toy_folder, tmp_path) -> None:
    """A row that borrows weights trained without words has words all the same, in the plan and in its command."""
    silent = {"overrides": ["prompt/semantic=none", "prompt/instruction=none"]}
    rows = {"silent": silent, "clip": {"weights": "silent", "evaluate": ["prompt/instruction=none"]}}
    found = plan_table(tmp_path, toy_folder, rows=rows, conditions=NOISE)
    scores = next(found.jobs[found.scores[place]] for place in found.scores if place.row == "clip")
    adaptor = found.jobs[scores.needs[0]]
    extra = {OVERRIDES_KEY: list(front.parse(adaptor.words[1:]).overrides)}
    adaptor.artefact.finish(**extra)
    words = merge_and_log(front.parse(scores.words[1:]).overrides)
    record = plan_evaluation(composed("evaluate", *(word for word in words if not word.startswith("experiment="))))
    assert (record.identity, record.folder) == (scores.artefact.identity, scores.artefact.folder)


def test_weights_are_needed_only_for_missing_scores(four, monkeypatch) -> None:
    found = four(seeds=2)
    there = set(found.scores.values())
    for kind in (Scores, TrainingStage):
        monkeypatch.setattr(kind, "is_complete", lambda artefact: artefact.identity in there)
    assert found.missing() == []
    place = next(place for place in found.scores if (place.row, place.seed) == ("one", 1))
    there.remove(found.scores[place])
    scores = found.jobs[found.scores[place]]
    assert [job.artefact.identity for job in found.missing()] == [*scores.needs, scores.artefact.identity]


def test_the_plan_is_printed(four, tmp_path) -> None:
    text = plan_text(four(), tmp_path / "runs" / "tables")
    assert "10 artefacts, 0 there, 10 missing" in text
    assert "theirs: published numbers (system swinir; see systems_dir)" in text
    assert text.count("nothing like it was run here yet") == 10


def test_counts_of_parameters_need_no_training_and_no_seed(toy_folder, tmp_path) -> None:
    columns = {"Parameters (M)": {"describe": "trainable_millions", "better": "less"}}
    rows = {"one": {}, "other": {"overrides": ["adaptor=controlnet"]}}
    conditions = {"main": {}}
    found = plan_table(tmp_path, toy_folder, seeds=3, columns=columns, rows=rows, conditions=conditions)
    assert kinds_of(found) == [DESCRIPTION] * 2
    assert len(set(found.descriptions.values())) == 2


def test_an_unplannable_row_is_refused_and_the_others_planned(toy_folder, tmp_path) -> None:
    rows = {"one": {}, "lost": {"overrides": ["stage=nowhere"]}}
    found = plan_table(tmp_path, toy_folder, rows=rows)
    assert kinds_of(found) == ["adaptor", SCORES, SCORES]
    assert {place.row for place in found.scores} == {"one"} and {place.row for place in found.refusals} == {"lost"}
    assert all("stage='nowhere' is not known here" in why for why in found.refusals.values())
    assert "cannot be planned: lost, noise: stage='nowhere'" in plan_text(found, tmp_path)


@pytest.mark.parametrize("word", MEASURING)
def test_settings_of_measuring_retrain_nothing(word, four, measured_otherwise) -> None:
    def made(found: Plan, row: str) -> tuple[set[str], set[str]]:
        scores = {identity for place, identity in found.scores.items() if place.row == row}
        return scores, {need for identity in scores for need in found.jobs[identity].needs}

    before, trained = made(four(), "one")
    after, behind = made(measured_otherwise, f"way_{MEASURING.index(word)}")
    assert trained == behind and len(trained) == 1
    assert after and before.isdisjoint(after)
