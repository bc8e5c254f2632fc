"""Where a table's numbers come from: prompt sets, codecs, descriptions, facts of jobs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from restore_lab.config.kinds import Scale
from restore_lab.evaluation.plan import Scores
from restore_lab.evaluation.protocol import ColumnLabel
from restore_lab.evaluation.records import Cell, ImageValue, Results, write_record
from restore_lab.launch.job import Job
from restore_lab.storage.artefact import DESCRIPTION, Artefact
from restore_lab.tables.described import description_column
from restore_lab.tables.file import read_spec
from restore_lab.tables.jobs import Plan, ScoresKey
from restore_lab.tables.number import Number, compare_numbers, shared_values
from restore_lab.tables.numbers import read_numbers
from restore_lab.tables.spec import Spec

LABEL = ColumnLabel(metric="psnr", weights="", colour="rgb", border=0, size="8x8", rounding="8bit", count=2)


def spec(tmp_path: Path, rows: dict, columns: dict, *, conditions: dict | None = None, scale: Scale = "tiny") -> Spec:
    file = tmp_path / "conf" / "experiment" / "toy" / "one.yaml"
    file.parent.mkdir(parents=True)
    node = {"title": "toy", "source": {"paper": "Toy"}, "columns": columns, "rows": rows}
    node |= {"conditions": conditions} if conditions else {}
    file.write_text(yaml.safe_dump({"table": node}, sort_keys=False))
    return read_spec("toy/one", [tmp_path / "conf"], scale=scale)


def record(plan: Plan, place: Path, identity: str, means: dict[str, float], *, prior: str) -> None:
    cells = [Cell(row=row, metric="psnr", mean=mean, std=None, n=2, higher_is_better=True, column=LABEL)
             for row, mean in means.items()]  # fmt: skip
    images = [ImageValue(row=row, key=key, metric="psnr", value=mean) for row, mean in means.items() for key in "ab"]
    settings = {"module": {"backbone": {"path": prior}}}
    results = Results(cells=tuple(cells), images=tuple(images))
    write_record(place, results=results, settings=settings, identity=identity, code="x")
    plan.jobs[identity] = Job(artefact=Scores(identity=identity, folder=place), words=())


PSNR = {"PSNR": {"metric": "psnr", "better": "more"}}


def test_rows_that_differ_in_the_variant_share_a_record(tmp_path) -> None:
    table = spec(tmp_path, {"first": {}, "weak": {"prompt_set": "weak"}, "strong": {"prompt_set": "strong"}}, PSNR)
    plan = Plan(specs=[table], seeds=1)
    record(plan, tmp_path / "r", "r", {"LQ": 10.0, "weak": 20.0, "strong": 30.0}, prior="asset:tiny_sd")
    plan.scores = {ScoresKey(table=table.name, row=row, condition="main", seed=0): "r" for row in table.rows}
    numbers = read_numbers(plan, table).numbers
    assert {row: number.mean for (row, _, _), number in numbers.items()} == {
        "first": 20.0, "weak": 20.0, "strong": 30.0, "LQ": 10.0,
    }  # fmt: skip


def test_each_codec_has_its_rows(tmp_path) -> None:
    """Two priors with one codec share its rows; a third has other rows; all share the LQ."""
    table = spec(tmp_path, {"sd": {}, "sdxl": {}, "sd3": {}}, PSNR)
    plan = Plan(specs=[table], seeds=1)
    for row, decoded in (("sd", 25.0), ("sdxl", 25.0), ("sd3", 26.0)):
        means = {"LQ": 10.0, "D(E(LQ))": 11.0, "D(E(HQ))": decoded, "own": 20.0}
        record(plan, tmp_path / row, row, means, prior=f"some/where/tiny_{row}")
        plan.scores[ScoresKey(table=table.name, row=row, condition="main", seed=0)] = row
    found = read_numbers(plan, table)
    expected = ["LQ", "D(E(LQ)), tiny_sd", "D(E(LQ)), tiny_sd3", "D(E(HQ)), tiny_sd", "D(E(HQ)), tiny_sd3"]
    assert list(found.references) == expected
    assert found.numbers["D(E(HQ)), tiny_sd3", "main", "PSNR"].mean == 26.0
    for place in [place for place in plan.scores if place.row == "sd3"]:
        del plan.scores[place]
    assert list(read_numbers(plan, table).references) == ["LQ", "D(E(LQ))", "D(E(HQ))"]


def test_columns_of_counts_and_of_what_training_took(tmp_path) -> None:
    """By hand from a description and from a job's facts; a row without either has no number."""
    columns = {
        name: {"describe": name, "better": "less"}
        for name in ("trainable_millions", "relative_adaptor", "step_gflops", "minutes_per_100_steps", "peak_gigabytes")
    }
    table = spec(tmp_path, {"a": {}, "b": {}, "none": {}}, columns)
    plan = Plan(specs=[table], seeds=1)
    for row, count in (("a", 2_000_000), ("b", 5_000_000)):
        folder = tmp_path / "store" / f"description-{row}"
        folder.mkdir(parents=True)
        facts = {"trainable_parameters": count, "parameters": {"adaptor.trunk": count, "codec": 7}}
        (folder / "description.json").write_text(json.dumps({**facts, "flops_per_step": 3 * count}))
        (folder / "manifest.json").write_text("{}")
        plan.jobs[f"d{row}"] = Job(artefact=Complete(kind=DESCRIPTION, identity=f"d{row}", folder=folder), words=())
        plan.descriptions["toy/one", row] = f"d{row}"
    plan.jobs["t"] = Job(
        artefact=Complete(kind="adaptor", identity="t", folder=tmp_path / "store" / "adaptor-t"), words=(), steps=50
    )
    plan.trainings["toy/one", "a"] = "t"
    (tmp_path / "store" / "jobs").mkdir()
    took = {"seconds": 90.0, "steps": 50, "peak_bytes": 3_000_000_000, "rc": 0}
    (tmp_path / "store" / "jobs" / "t.json").write_text(json.dumps(took))
    assert description_column(plan, table, None) == {}
    assert description_column(plan, table, "trainable_millions") == {"a": 2.0, "b": 5.0}
    assert description_column(plan, table, "relative_adaptor") == {"a": 1.0, "b": 2.5}
    assert description_column(plan, table, "step_gflops") == pytest.approx({"a": 0.006, "b": 0.015})
    assert description_column(plan, table, "minutes_per_100_steps") == {"a": 3.0}
    assert description_column(plan, table, "peak_gigabytes") == {"a": 3.0}


class Complete(Artefact):
    """An artefact that is there."""

    def is_complete(self) -> bool:
        return True


def test_only_values_that_all_rows_have_are_compared() -> None:
    """The seeds that all have, and the images that all have with each of them."""
    values = [{(0, "a"): 1.0, (1, "a"): 3.0, (0, "b"): 5.0}, {(0, "a"): 2.0, (1, "a"): 2.0, (0, "c"): 9.0}]
    numbers = [Number(mean=0, spread=None, n=0, seeds=1, label=None, code=(), images=images) for images in values]
    found = shared_values(numbers)
    assert found is not None and found.tolist() == [[[1.0], [3.0]], [[2.0], [2.0]]]
    assert shared_values([numbers[0], replace(numbers[0], images={})]) is None


def numbered(plan: Plan, place: Path, identity: str, values: dict[str, float], fid: float) -> None:
    """A record of one method's row: PSNR of some images, FID of the set."""
    mean = sum(values.values()) / len(values)
    labels = [replace(LABEL, metric=name, count=len(values), size=identity[1:]) for name in ("psnr", "fid")]
    cells = [Cell(row="own", metric=label.metric, mean=value, std=None, n=len(values), higher_is_better=True,
                  column=label) for label, value in zip(labels, (mean, fid), strict=True)]  # fmt: skip
    images = [ImageValue(row="own", key=key, metric="psnr", value=value) for key, value in values.items()]
    results = Results(cells=tuple(cells), images=tuple(images))
    write_record(place, results=results, settings={}, identity=identity, code="x")
    plan.jobs[identity] = Job(artefact=Scores(identity=identity, folder=place), words=())


MEAN = {
    "average": {"title": "average", "full": {"mean": ["few", "many"]}},
    "few": {"only": "full", "evaluate": ["eval_first=2"]},
    "many": {"only": "full"},
}


def test_a_condition_that_is_the_mean_of_others(tmp_path) -> None:
    """By hand: each condition counts as much, images are compared so too, and a row that lacks one has none."""
    columns = {**PSNR, "FID": {"metric": "fid", "better": "less"}}
    rows = {"a": {"published": [1.0, 2.0]}, "b": {}, "c": {}}
    table = spec(tmp_path, rows, columns, conditions=MEAN, scale="full")
    plan = Plan(specs=[table], seeds=1)
    few, many = {"x": 10.0, "y": 20.0}, dict.fromkeys("uvwxyz", 40.0)
    for row, shift in (("a", 0.0), ("b", 3.0)):
        numbered(plan, tmp_path / f"{row}1", f"{row}1", {k: v + shift for k, v in few.items()}, 5.0)
        numbered(plan, tmp_path / f"{row}2", f"{row}2", {k: v + 2 * shift for k, v in many.items()}, 7.0)
        plan.scores[ScoresKey(table=table.name, row=row, condition="few", seed=0)] = f"{row}1"
        plan.scores[ScoresKey(table=table.name, row=row, condition="many", seed=0)] = f"{row}2"
    plan.scores[ScoresKey(table=table.name, row="c", condition="few", seed=0)] = "a1"
    found = read_numbers(plan, table).numbers
    a, b = (found[row, "average", "PSNR"] for row in "ab")
    assert (a.mean, b.mean, a.n, found["a", "average", "FID"].mean) == (27.5, 32.0, 8, 6.0)
    assert ("c", "average", "PSNR") not in found and a.label is not None and a.label.count == 8
    values, difference = shared_values([a]), compare_numbers(b, a)
    assert a.label.size == "mixed" and values is not None and values.mean() == pytest.approx(27.5)
    assert difference is not None and difference.mean == pytest.approx(4.5)
    assert (difference.n, difference.photographs) == (8, 6)  # x and y are measured under both
    assert (difference.low, difference.high) == pytest.approx((4.5, 4.5))  # what conditions differ by is no spread
    assert table.rows["a"].published["average", "FID"] == 2.0


def test_a_condition_of_one_scale_is_absent_at_the_other(tmp_path) -> None:
    rows = {"a": {"published": {"average": [1.0], "few": [3.0]}}}
    tiny = spec(tmp_path / "tiny", rows, PSNR, conditions=MEAN)
    assert list(tiny.conditions) == ["average"] and not tiny.conditions["average"].mean
    assert tiny.rows["a"].published == {("average", "PSNR"): 1.0}
    full = spec(tmp_path / "full", rows, PSNR, conditions=MEAN, scale="full")
    assert full.conditions["average"].mean == ("few", "many") and full.rows["a"].published["few", "PSNR"] == 3.0
    with pytest.raises(ValueError, match="condition average: mean of 'few', which measures nothing"):
        spec(tmp_path / "odd", rows, PSNR, conditions={"average": {"mean": ["few"]}, "few": {"only": "full"}})
