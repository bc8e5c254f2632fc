"""Tables: their files, marked cells, claims, and formats."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from restore_lab.config.conf_dir import conf_dir
from restore_lab.evaluation.plan import Scores
from restore_lab.evaluation.protocol import ColumnLabel
from restore_lab.evaluation.records import Cell, ImageValue, Results, read_record, write_record
from restore_lab.evaluation.statistics import Components
from restore_lab.launch.cost import estimate, rates, shipped_facts
from restore_lab.launch.job import Job
from restore_lab.storage.artefact import Artefact
from restore_lab.tables.file import read_spec, tables
from restore_lab.tables.grid import grid, uneven_rows
from restore_lab.tables.jobs import Plan, ScoresKey
from restore_lab.tables.number import Number, compare_numbers
from restore_lab.tables.numbers import read_numbers
from restore_lab.tables.power import powers, required_images, resolvable_difference
from restore_lab.tables.ranking import marks
from restore_lab.tables.render import RENDERERS, render_table
from restore_lab.tables.spec import Spec, merge

TABLE = {
    "title": "three rows",
    "source": {"paper": "Toy", "place": "Table 1"},
    "columns": {
        "PSNR": {"metric": "psnr", "better": "more"},
        "LPIPS": {"metric": "lpips", "tiny": "gmsd", "better": "less", "digits": 3},
        "CLIPIQA": {"metric": "clipiqa", "tiny": {"metric": "piqe", "better": "less"}, "better": "more"},
    },
    "tiny": {"evaluate": ["photos_crops=4"], "train": ["max_steps=9"]},
    "rows": {
        "a": {"overrides": ["adaptor=spire"], "published": [20.0, 0.3, None]},
        "b": {"overrides": ["adaptor=controlnet"], "train": ["seed=4"], "tiny": {"evaluate": ["photos_crops=1"]}},
        "swinir": {"title": "SwinIR", "system": "swinir", "published": [21.5, 0.4, 0.5]},
    },
    "claims": [{"says": "a beats b", "row": "a", "baseline": "b", "column": "PSNR", "expect": "better"}],
}


def folder(tmp_path: Path, node: dict) -> Path:
    file = tmp_path / "conf" / "experiment" / "toy" / "one.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({"table": node}, sort_keys=False))
    return tmp_path / "conf"


def spec(tmp_path: Path, scale: str = "tiny", **changed) -> Spec:
    return read_spec("toy/one", [folder(tmp_path, {**TABLE, **changed})], scale=scale)


def test_a_row_has_its_overrides_at_a_scale(tmp_path) -> None:
    """Table, then row; a verb's own; a later word for a key replaces an earlier one."""
    table = spec(tmp_path)
    a, b = table.rows["a"], table.rows["b"]
    only = table.conditions["main"]
    assert table.words_of("train", a) == ("max_steps=9", "adaptor=spire")
    assert table.words_of("evaluate", a, only) == ("photos_crops=4", "adaptor=spire")
    assert table.words_of("train", b) == ("max_steps=9", "adaptor=controlnet", "seed=4")
    assert table.words_of("evaluate", b, only) == ("adaptor=controlnet", "photos_crops=1")
    assert spec(tmp_path, "full").words_of("train", a) == ("adaptor=spire",)
    assert merge(["a=1", "b=2", "+a=3"]) == ("b=2", "+a=3")


def test_a_row_may_have_stand_ins_and_published_numbers(tmp_path) -> None:
    tiny, full = spec(tmp_path), spec(tmp_path, "full")
    assert [c.metric for c in tiny.columns.values()] == ["psnr", "gmsd", "piqe"]
    assert [c.metric for c in full.columns.values()] == ["psnr", "lpips", "clipiqa"]
    assert not tiny.columns["CLIPIQA"].metric_higher_is_better and full.columns["CLIPIQA"].metric_higher_is_better
    assert tiny.rows["a"].published == {("main", "PSNR"): 20.0, ("main", "LPIPS"): 0.3, ("main", "CLIPIQA"): None}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rows": {"a": {"wieghts": "own"}}}, "no setting 'wieghts'"),
        ({"rows": {"a": {"weights": "c"}}}, "weights='c' is own, shipped or a row's name"),
        ({"rows": {"a": {"published": [1.0]}}}, "1 published numbers for 3 columns"),
        (
            {"columns": {"PSNR": {"metric": "psnr", "better": "higher"}}},
            r"columns\.PSNR\.better=higher: there are: more, less",
        ),
        ({"conditions": {"main": {"columns": ["FID"]}}}, "no column 'FID'"),
        ({"claims": [{**TABLE["claims"][0], "row": "z"}]}, "there is no 'z'"),
        (
            {"claims": [{**TABLE["claims"][0], "expect": "more"}]},
            r"expect=more: .*there are: better, worse",
        ),
        ({"title": ["a", "b"]}, r"title=\['a', 'b'\]: expected text"),
        ({"rows": ["a"]}, r"rows=\['a'\]: expected a mapping"),
        ({"rows": {"a": {"published": [float("nan")]}}}, r"rows\.a\.published\[0\]=nan: expected a number, or null"),
        ({"rows": {"a": {"published": 3}}}, r"rows\.a\.published=3: expected a list"),
        ({"overrides": 3}, r"overrides=3: expected a list \(text\), or null"),
    ],
)
def test_a_mistake_in_a_table_file_is_refused_in_one_line(changed, says, tmp_path) -> None:
    with pytest.raises(ValueError, match=says):
        spec(tmp_path, **changed)


def test_an_unknown_table_is_refused_with_the_known_ones(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no table 'toy/onne'; did you mean 'toy/one'"):
        read_spec("toy/onne", [folder(tmp_path, TABLE)], scale="tiny")
    with pytest.raises(ValueError, match="scale=huge: there are: tiny, full"):
        read_spec("toy/one", [folder(tmp_path, TABLE)], scale="huge")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", tables([conf_dir()]))
@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_every_table_of_a_paper_can_be_read(name, scale) -> None:
    table = read_spec(name, [conf_dir()], scale=scale)
    assert table.rows and table.source and all(row.system or not row.note.endswith(" ") for row in table.rows.values())


def number(values: list[float], *, seed: int = 0, metric: str = "psnr") -> Number:
    label = ColumnLabel(
        metric=metric, weights="", colour="rgb", border=0, size="8x8", rounding="8bit", count=len(values)
    )
    images = {(seed, str(i)): value for i, value in enumerate(values)}
    return Number(
        mean=float(np.mean(values)), spread=None, n=len(values), seeds=1, label=label, code=("x",), images=images
    )


def test_numbers_are_compared_image_by_image() -> None:
    """A constant difference is certain, however much the images differ; noise is not."""
    images = np.linspace(10, 40, 30)
    base = number(list(images))
    sure = compare_numbers(number(list(images + 0.1)), base)
    assert sure is not None and sure.clear and sure.mean == pytest.approx(0.1) and sure.n == 30
    noise = np.random.default_rng(0).normal(0, 1, 30)
    unsure = compare_numbers(number(list(images + noise - noise.mean() + 0.05)), base)
    assert unsure is not None and not unsure.clear and unsure.low is not None and unsure.high is not None
    half = 2.05 * noise.std(ddof=1) / 30**0.5  # the interval's half width, by Student's t
    assert (unsure.high - unsure.low) / 2 == pytest.approx(half, rel=0.1) and unsure.low < 0.05 < unsure.high
    assert compare_numbers(base, number([1.0], seed=1)) is None


def test_seeds_that_agree_add_no_images() -> None:
    """Two runs with the same values are no more images: the interval stays that of the images."""
    rng = np.random.default_rng(1)
    deltas = rng.normal(0.2, 1, 40)
    once = compare_numbers(number(list(deltas)), number([0.0] * 40))
    both = number(list(deltas)), number(list(deltas), seed=1)
    twice = compare_numbers(
        replace(both[0], images={**both[0].images, **both[1].images}),
        replace(both[0], images={(s, str(i)): 0.0 for s in (0, 1) for i in range(40)}),
    )
    assert once is not None and twice is not None
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high)) and (twice.n, twice.seeds) == (40, 2)


def test_marks_follow_significant_differences(tmp_path) -> None:
    """Best and second where intervals say so; two that cannot be told apart share a mark; all alike: no mark."""
    images = np.linspace(10, 40, 30)
    table = spec(tmp_path, rows={name: {} for name in ("low", "high", "same", "mid")}, claims=[])
    wobble = 0.02 * np.cos(np.arange(30))
    numbers = {
        ("low", "main", "PSNR"): number(list(images)),
        ("high", "main", "PSNR"): number(list(images + 2)),
        ("same", "main", "PSNR"): number(list(images + 2 + wobble - wobble.mean())),
        ("mid", "main", "PSNR"): number(list(images + 1)),
    }
    found = marks(type("M", (), {"spec": table, "numbers": numbers})())
    assert {key[0]: mark for key, mark in found.items()} == {"high": "best", "same": "best", "mid": "second"}
    alike = {key: number(list(images)) for key in numbers}
    assert marks(type("M", (), {"spec": table, "numbers": alike})()) == {}
    less = {(row, c, "LPIPS"): n for (row, c, _), n in numbers.items()}  # there less is better
    assert {key[0]: mark for key, mark in marks(type("M", (), {"spec": table, "numbers": less})()).items()} == {
        "low": "best",
        "mid": "second",
    }


def test_a_row_with_fewer_seeds_is_ranked_by_those_it_has(tmp_path) -> None:
    """The second seed is harder: the row that ran it has the lower mean and is still the better one."""
    table = spec(tmp_path, rows={name: {} for name in ("once", "twice")}, claims=[])
    images = list(np.linspace(10, 40, 30))
    first, hard = number([v + 1 for v in images]), number([v - 5 for v in images], seed=1)
    twice = replace(first, mean=(first.mean + hard.mean) / 2, seeds=2, images={**first.images, **hard.images})
    numbers = {("once", "main", "PSNR"): number(images), ("twice", "main", "PSNR"): twice}
    assert twice.mean < numbers["once", "main", "PSNR"].mean
    measured = type("M", (), {"spec": table, "numbers": numbers})()
    assert {key[0]: mark for key, mark in marks(measured).items()} == {"twice": "best", "once": "second"}
    assert uneven_rows(measured) == ["seeds: once 1, others 2; best, second and claims go by those that rows share"]


IMAGES = np.linspace(10, 40, 30)


def record(place: Path, identity: str, values: dict[str, Sequence[float]], *, count: int | None = None) -> None:
    cells, images = [], []
    for row, found in values.items():
        label = ColumnLabel(
            metric="psnr", weights="", colour="rgb", border=0, size="8x8", rounding="8bit", count=count or len(found)
        )
        cells.append(
            Cell(
                row=row, metric="psnr", mean=float(np.mean(found)), std=None, n=len(found), higher_is_better=True,
                column=label,
            )
        )  # fmt: skip
        images += [ImageValue(row=row, key=str(i), metric="psnr", value=value) for i, value in enumerate(found)]
    results = Results(cells=tuple(cells), images=tuple(images))
    write_record(place, results=results, settings={}, identity=identity, code="abc")


def planned(
    tmp_path: Path, table: Spec, rows: dict[str, Sequence[float]], *, counts: dict[str, int] | None = None
) -> Plan:
    plan = Plan(specs=[table], seeds=1)
    for name, values in rows.items():
        add(plan, tmp_path, name, values, count=(counts or {}).get(name))
    return plan


def add(
    plan: Plan, tmp_path: Path, row: str, values: Sequence[float], *, seed: int = 0, count: int | None = None
) -> None:
    """A row's record of a seed."""
    name = f"{row}-{seed}"
    place = tmp_path / f"scores-{name}"
    record(place, name, {"LQ": [v - 5 for v in values], "own": list(values)}, count=count)
    plan.jobs[name] = Job(artefact=Scores(identity=name, folder=place), words=())
    plan.scores[ScoresKey(table=plan.specs[0].name, row=row, condition="main", seed=seed)] = name


@pytest.mark.parametrize(
    ("shifts", "weights", "count", "word"),
    [
        ([1.0], "own", 30, "one seed"),
        ([1.0, 1.1], "own", 30, "two seeds"),
        ([1.0, 1.1, 0.9], "own", 30, "holds"),
        ([-1.0, -1.1, -0.9], "own", 30, "reversed"),
        ([1.0, 3.0, -0.5], "own", 30, "inconclusive"),  # clear on the images' means over seeds, but not over trainings
        ([1.0], "shipped", 30, "holds"),  # nothing is trained: images speak for themselves
        ([1.0, 1.1, 0.9], "own", 5, "too few images"),
        ([1.0], "shipped", 2, "too few images"),
    ],
)
def test_a_claim_is_judged_by_its_interval(shifts, weights, count, word, tmp_path) -> None:
    table = spec(tmp_path, rows={name: {"weights": weights} for name in "ab"})
    plan = Plan(specs=[table], seeds=len(shifts))
    for seed, shift in enumerate(shifts):
        wobble = 0.1 * np.cos(np.arange(count) + seed)
        add(plan, tmp_path, "a", IMAGES[:count] + shift + wobble, seed=seed)
        add(plan, tmp_path, "b", IMAGES[:count], seed=seed)
    numbers = read_numbers(plan, table)
    assert grid(plan, numbers).claims[0].startswith(f"a beats b: {word} (psnr ")
    marked = {row: mark for (row, _, _), mark in marks(numbers).items()}
    assert bool(marked) == (word not in ("inconclusive", "too few images"))
    assert ("no interval" in grid(plan, numbers).claims[0]) == (word == "too few images")


def test_a_distance_of_sets_has_no_mark_and_supports_no_claim(tmp_path) -> None:
    """It has no values by image, so nothing says how sure the order is."""
    table = spec(tmp_path)
    plan = planned(tmp_path, table, {"a": IMAGES + 1, "b": IMAGES})
    for name in ("a", "b"):
        folder = tmp_path / f"scores-{name}-0"
        found = read_record(folder)
        results = replace(found.results, images=())
        write_record(folder, results=results, settings={}, identity=found.identity, code="abc")
    numbers = read_numbers(plan, table)
    assert marks(numbers) == {}
    assert grid(plan, numbers).claims == ["a beats b: no interval (psnr 26 against 25, a metric of sets)"]


def test_a_claim_is_judged_by_the_seeds_that_both_rows_have(tmp_path) -> None:
    """b's second seed is far better than a's only one; image by image on the first a is ahead."""
    table = spec(tmp_path)
    plan = planned(tmp_path, table, {"a": IMAGES + 1, "b": IMAGES})
    place = tmp_path / "scores-again"
    record(place, "again", {"LQ": [0.0] * 30, "own": [90.0] * 30})
    plan.jobs["again"] = Job(artefact=Scores(identity="again", folder=place), words=())
    plan.scores[ScoresKey(table=table.name, row="b", condition="main", seed=1)] = "again"
    plan = replace(plan, seeds=2)
    says = "psnr +1 [+1, +1], n = 30, 1 seed, images only"
    assert grid(plan, read_numbers(plan, table)).claims == [f"a beats b: one seed ({says})"]


def test_a_table_from_records(tmp_path) -> None:
    table = spec(tmp_path)
    plan = planned(tmp_path, table, {"a": IMAGES + 1, "b": IMAGES})
    found = grid(plan, read_numbers(plan, table))
    assert [line.name for line in found.lines] == ["LQ", "a", "b", "swinir"]
    assert found.claims == ["a beats b: one seed (psnr +1 [+1, +1], n = 30, 1 seed, images only)"]
    assert any("images only; rows that were trained once may stand in another order" in note for note in found.notes)
    text = render_table(found, "markdown")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["", "PSNR +", "LPIPS (gmsd) -", "CLIPIQA (piqe) -"]
    assert rows[2:] == [
        ["LQ", "21.00", "-", "-"],
        ["a", "**26.00** [20.00]", "[0.300]", "[?]"],
        ["b", "*25.00*", "-", "-"],
        ["SwinIR", "[21.50]", "[0.400]", "[0.50]"],
    ]


def test_a_frechet_distance_of_few_images_comes_with_kid(tmp_path) -> None:
    fid = {"FID": {"metric": "fid", "tiny": "tiny_fd", "better": "less"}}
    table = spec(tmp_path, columns=fid, rows={"a": {}}, claims=None)
    plan = planned(tmp_path, table, {"a": [20.0, 30.0]})
    values = {"tiny_fd": (8.0, None), "tiny_kd": (1.5, (0.9, 10644.0))}
    cells = tuple(
        Cell(
            row="own", metric=metric, mean=value, std=None, n=2, higher_is_better=False, interval=interval,
            column=ColumnLabel(metric=metric, weights="", colour="rgb", border=0, size="8x8", rounding="8bit", count=2),
        )
        for metric, (value, interval) in values.items()
    )  # fmt: skip
    write_record(
        tmp_path / "scores-a-0", results=Results(cells=cells, images=()), settings={}, identity="a-0", code="abc"
    )
    found = grid(plan, read_numbers(plan, table))
    assert "FID: few images, so tiny_kd x 1000 beside it: a 1.5 [0.9, 10600]" in found.notes


def test_every_format_has_the_same_numbers(tmp_path) -> None:
    table = spec(tmp_path)
    plan = planned(tmp_path, table, {"a": IMAGES, "b": IMAGES - 10})
    found = grid(plan, read_numbers(plan, table))
    assert r"\textbf{25.00} [20.00]" in render_table(found, "latex") and r"\bottomrule" in render_table(found, "latex")
    assert "<b>25.00</b> [20.00]" in render_table(found, "html")
    lines = list(csv.DictReader(io.StringIO(render_table(found, "csv"))))
    own = next(line for line in lines if line["row"] == "a" and line["column"] == "PSNR")
    assert float(own["measured"]) == pytest.approx(25)
    assert (own["published"], own["mark"], own["n"]) == ("20.0", "best", "30")
    nested = json.loads(render_table(found, "json"))
    cell = next(row for row in nested["rows"] if row["row"] == "a")["cells"][0]
    assert (cell["measured"], cell["published"], cell["metric"]) == (pytest.approx(25), 20.0, "psnr")
    says = "psnr +10 [+10, +10], n = 30, 1 seed, images only"
    assert render_table(found, "claims") == f"- toy/one: a beats b: one seed ({says})\n"
    assert set(RENDERERS) == {"markdown", "latex", "csv", "html", "json", "claims"}
    with pytest.raises(ValueError, match="format='pdf'"):
        render_table(found, "pdf")


def test_a_wide_table_is_split_by_condition(tmp_path) -> None:
    """Of 3 x 3 columns one table, of 4 x 3 four with the condition in the corner, as an only one is; data is whole."""
    titles = ["rain", "snow", "haze", "blur"]
    rows = {"a": {"published": {title: [place, 0.5, 0.25] for place, title in enumerate(titles)}}}
    for count, cut in ((1, True), (3, False), (4, True)):
        conditions = {title: {"title": title} for title in titles[:count]}
        published = {title: rows["a"]["published"][title] for title in conditions}
        table = spec(tmp_path, conditions=conditions, rows={"a": {"published": published}}, claims=None)
        found = grid(planned(tmp_path, table, {}), read_numbers(planned(tmp_path, table, {}), table))
        lines = render_table(found, "markdown").splitlines()
        heads = [line for line, under in pairwise(lines) if under.startswith("| ---")]
        assert (
            len(heads)
            == render_table(found, "latex").count("tabular}") / 2
            == render_table(found, "html").count("<table>")
        )
        if cut:
            assert heads == [f"| {title} | PSNR + | LPIPS (gmsd) - | CLIPIQA (piqe) - |" for title in titles[:count]]
            own = [line for line in lines if line.startswith("| a |")]
            assert own == [f"| a | [{place}.00] | [0.500] | [0.25] |" for place in range(count)]
        else:
            assert len(heads) == 1 and heads[0].startswith("|  | rain: PSNR + |")
        assert len(list(csv.DictReader(io.StringIO(render_table(found, "csv"))))) == 3 * count


def test_numbers_of_another_protocol_never_share_a_column(tmp_path) -> None:
    table = spec(tmp_path)
    plan = planned(tmp_path, table, {"a": [20.0, 30.0], "b": [10.0, 20.0]}, counts={"b": 7})
    found = read_numbers(plan, table)
    assert ("b", "main", "PSNR") not in found.numbers and ("a", "main", "PSNR") in found.numbers
    assert found.problems == [
        "b, PSNR: measured as psnr: RGB, 8x8, 8-bit, n=7, the others as psnr: RGB, 8x8, 8-bit, n=2"
    ]


def test_power_equals_its_closed_form(tmp_path) -> None:
    """2.86 deviations over the root of n; by hand for differences of deviation 1 over 49 images: 0.41 dB."""
    one = Components(seeds=None, images=np.array([1.0]), rest=np.array([0.0]))
    assert resolvable_difference(one, seeds=1, images=49) == pytest.approx((2.0106 + 0.8490) / 7, rel=1e-4)
    assert required_images(one, 0.4086, seeds=1) == 49
    trained = replace(one, seeds=np.array([1.0]))
    assert resolvable_difference(trained, seeds=3, images=10**6) == pytest.approx((4.303 + 1.061) / 3**0.5, rel=1e-3)
    assert required_images(trained, 1.0, seeds=3) is None and required_images(trained, 5.0, seeds=3) == 2
    deltas = np.tile([-1.0, 1.0], 25)[:49]
    deltas = (deltas - deltas.mean()) / deltas.std(ddof=1)
    rows = {name: {"published": found, "weights": "shipped"}
            for name, found in (("a", [20.5, 0.3, None]), ("b", [20.0, 0.2, None]))}  # fmt: skip
    claims = [{**TABLE["claims"][0], "column": column} for column in ("PSNR", "LPIPS", "CLIPIQA")]
    table = spec(tmp_path, rows=rows, claims=claims)
    plan = planned(tmp_path, table, {"a": list(30 + deltas), "b": [30.0] * 49})
    said = powers(read_numbers(plan, table), seeds=1)
    assert said == ["a beats b: published +0.5 psnr; n = 49 images, 1 seed resolve 0.409: enough"]  # others stand in
    rows["a"]["published"][0] = 20.1
    assert powers(read_numbers(plan, spec(tmp_path, rows=rows, claims=claims[:1])), seeds=1) == [
        "a beats b: published +0.1 psnr; n = 49 images, 1 seed resolve 0.409: NOT enough, 787 images would"
    ]
    rows["a"]["weights"] = "own"
    table = spec(tmp_path, rows=rows, claims=claims[:1])
    assert "NOT enough, rows that are trained need 3 seeds" in powers(read_numbers(plan, table), seeds=2)[0]
    assert powers(read_numbers(plan, table), seeds=3)[0].endswith("between trainings nothing is measured yet")
    assert "no spread measured yet" in powers(read_numbers(Plan(specs=[table], seeds=1), table), seeds=1)[0]


def test_cost_estimates_come_from_past_runs() -> None:
    """By the step from jobs like it, else from its kind, else nothing is said."""
    job = Job(
        artefact=Artefact(kind="adaptor", identity="x", folder=Path("x")), words=(), like="adaptor spire", steps=100
    )
    took = [
        {"kind": "adaptor", "like": "adaptor spire", "seconds": 50, "steps": 50, "peak_bytes": 7, "bytes": 3},
        {"kind": "adaptor", "like": "adaptor dra", "seconds": 900, "steps": 100, "peak_bytes": 9, "bytes": 4},
    ]
    assert estimate(job, took).seconds == 100
    assert estimate(replace(job, like="adaptor other"), took).seconds == pytest.approx(100 * (1 + 9) / 2)
    assert estimate(job, []).seconds is None
    elsewhere = [{"kind": "adaptor", "like": job.like, "seconds": 1.0, "steps": 1, "peak_bytes": 1, "bytes": 2}]
    assert not estimate(job, took, elsewhere).other_machine and estimate(job, took, elsewhere).seconds == 100
    assert estimate(job, [], elsewhere).other_machine and estimate(job, [], elsewhere).seconds == job.steps


def test_rates_are_one_line_per_kind_of_job() -> None:
    """Median speed, largest memory, median disk; what ships has the same form, so that estimates can read it."""
    facts = [
        {"like": "a", "kind": "adaptor", "steps": steps, "seconds": seconds, "peak_bytes": peak, "bytes": peak}
        for steps, seconds, peak in ((10, 10.0, 5), (10, 30.0, 9), (20, 20.0, 7))
    ]
    line = {"like": "a", "kind": "adaptor", "steps": 20, "seconds": 20.0, "peak_bytes": 9, "bytes": 7}
    assert rates(facts) == [line]
    assert rates([]) == []
    assert all(fact.keys() == line.keys() and fact["seconds"] > 0 for fact in shipped_facts())
