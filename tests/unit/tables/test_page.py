"""The page of `restore-lab report`: its content, and that it is self-contained."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from restore_lab.evaluation.records import RECORD, image_file
from restore_lab.storage.artefact import Manifest
from restore_lab.tables.jobs import Plan
from restore_lab.tables.page.browser import Pictures, View, browser, choose, worst_of
from restore_lab.tables.page.curves import read_losses, thin
from restore_lab.tables.page.sources import of_records, of_table
from restore_lab.tables.page.write import render_page, write_report
from tests.helpers.toy_report import HOSTILE, KEYS, N, losses, record, toy_spec, toy_table


def data_of(text: str) -> dict[str, Any]:
    """The page's data, read as a browser would: up to the first end of a script element."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', text, re.DOTALL | re.IGNORECASE)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_page(of_table(*toy_table(tmp_path_factory.mktemp("report"))), images=64, worst=10)


def test_a_page_is_self_contained(made) -> None:
    """No address in it, a policy that forbids all but data: images, and captions that cannot end its data."""
    assert re.findall(r"(?i)https?:|//cdn|@import|url\(|<link rel=\"stylesheet|<script src|<iframe", made) == []
    assert "default-src 'none'; img-src data:;" in made
    # The hostile caption adds no element: these are the page's own.
    assert len(re.findall("<script", made)) == len(re.findall("</script", made)) == 1 + 7
    assert made.count("<!--") == 0 and "$" not in re.findall(r"<title>.*?</title>", made)[0]
    captions = {image["name"]: image["caption"] for image in data_of(made)["blocks"][0]["images"]}
    assert captions[KEYS[3]] == HOSTILE and len(captions) == N


def test_the_table_on_the_page(made) -> None:
    table = data_of(made)["table"]
    assert [column["title"] for column in table["columns"]] == ["PSNR", "GMSD"]
    assert [column["more"] for column in table["columns"]] == [True, False]
    assert [(line["title"], line["kind"], line["labels"]) for line in table["lines"]] == [
        ("LQ", "reference", [""]),
        ("Ours", "ours", ["no"]),
        ("Ours", "ours", ["yes"]),
        ("SwinIR", "system", [""]),
    ]
    assert table["lines"][1]["cells"][0] == {
        "measured": "29.50", "spread": "", "published": "[20.00]", "mark": None, "value": 29.5, "printed": 20.0,
    }  # fmt: skip
    assert table["lines"][3]["cells"][1]["published"] == "[?]"
    assert table["claims"][0].startswith("words help: one seed (psnr ")


def test_pictures_are_embedded_once_and_whole(made, tmp_path) -> None:
    """Two rows' LQs and originals are one file each; what is embedded is the file."""
    data = data_of(made)
    block = data["blocks"][0]
    assert [row["title"] for row in block["rows"]] == ["original", "LQ", "Ours (a)", "Ours (b)"]
    assert [row["method"] for row in block["rows"]] == [False, False, True, True]
    assert len(data["pictures"]) == 4 * N
    first = block["images"][0]
    record(tmp_path / "again", "b")
    for row, name in ((1, "LQ"), (3, "own")):
        uri = data["pictures"][first["views"][row]["picture"]]
        assert uri.startswith("data:image/webp;base64,")
        embedded = base64.b64decode(uri.partition(",")[2])
        assert embedded == image_file(tmp_path / "again", name, KEYS[0]).read_bytes()


def test_an_image_has_its_caption_and_every_rows_values(made) -> None:
    image = data_of(made)["blocks"][0]["images"][5]
    assert image["recipe"] == "blur (sigma=2.43)" and image["caption"] == "scene 5, drawn"
    assert [view["values"] for view in image["views"][1:]] == [[17.0, 0.17], [25.0, 0.25], [35.0, 0.35]]
    assert [view["instruction"] for view in image["views"]] == ["", "", "undo it, a", "undo it, b"]


def test_the_worst_are_the_lowest_or_the_highest() -> None:
    row = {(0, str(i)): View(file=None, values={"m": value}) for i, value in enumerate([3.0, 1.0, 2.0])}
    row[0, "3"] = View(file=None, values={})
    images = list(row)
    assert worst_of(row, "m", more=True, images=images) == [(0, "1"), (0, "2"), (0, "0")]
    assert worst_of(row, "m", more=False, images=images) == [(0, "0"), (0, "2"), (0, "1")]


def test_a_limit_keeps_the_worst_and_spreads_the_rest(tmp_path) -> None:
    """PSNR and GMSD run together, so the worst by one are the best by the other: both ends of the list."""
    source = of_table(*toy_table(tmp_path))
    block = browser(source.blocks[0], Pictures(), limit=2, worst=3)
    assert [image["name"] for image in block["images"]] == [*KEYS[:3], *KEYS[-3:]] and block["total"] == N
    images = [(0, key) for key in KEYS]
    assert choose(images, {images[0]}, 5) == [images[i] for i in (0, 1, 5, 10, 15)]
    assert choose(images, set(), 0) == [] and choose(images, set(), 99) == images


def test_another_lq_is_a_row_of_its_own(tmp_path) -> None:
    """Rows that restored another LQ under the same key are not compared with the first one's in silence."""
    folders = [record(tmp_path / "a", "a"), record(tmp_path / "b", "b", lq=61), record(tmp_path / "c", "a", lq=61)]
    source = of_records(folders)
    names = [f"{folder}: own" for folder in folders]
    assert [line.name for line in source.table.lines] == ["LQ", *names]
    block = browser(source.blocks[0], Pictures(), limit=64, worst=10)
    assert [row["title"] for row in block["rows"]] == ["original", "LQ", f"LQ of {names[1]}", *names]


def test_a_metric_of_sets_appears_only_in_the_table(tmp_path) -> None:
    source = of_records([record(tmp_path / "a", "a")])
    assert [(c.title, c.digits) for _, c in source.table.headings] == [("psnr", 2), ("gmsd", 4), ("tiny_fd", 2)]
    block = browser(source.blocks[0], Pictures(), limit=64, worst=10)
    assert block["metrics"] == [{"name": "psnr", "more": True}, {"name": "gmsd", "more": False}]


def test_values_of_another_protocol_are_omitted(tmp_path) -> None:
    source = of_records([record(tmp_path / "a", "a"), record(tmp_path / "b", "b", border=4)])
    block = browser(source.blocks[0], Pictures(), limit=64, worst=10)
    assert block["images"][0]["views"][-1]["values"] == [None, None]
    assert "border 4" in block["notes"][0] and "left out" in block["notes"][0]


def test_records_include_their_trainings(tmp_path) -> None:
    """By the identities that a record names; an unfinished training is none of them."""
    folders = [record(tmp_path / f"scores-{row}", row) for row in ("a", "b")]
    for identity in ("wa", "wb"):
        losses(tmp_path / f"adaptor-{identity}", start=1.0)
    Manifest(identity="wa", kind="adaptor", code="").write(tmp_path / "adaptor-wa")
    found = of_records(folders).trainings
    assert [(t.stage, t.title) for t in found] == [("adaptor", f"{folders[0]}: own")]


def test_curves_are_read_and_thinned(made, tmp_path) -> None:
    (chart,) = data_of(made)["charts"]
    assert chart["title"] == "adaptor: train/loss"
    assert [line["title"] for line in chart["lines"]] == ["Ours (a)", "Ours (b)"]
    assert chart["lines"][1]["values"][:2] == [2.0, 1.0] and chart["lines"][1]["steps"][:2] == [10, 20]
    assert thin([(i, float(i)) for i in range(1, 7)], most=3) == ([1.5, 3.5, 5.5], [1.5, 3.5, 5.5])
    assert thin([]) == ([], [])
    (tmp_path / "l").write_text('{"step": 1, "x": 2.0}\n{"step": 2, "x": NaN}\n{"st')
    assert read_losses(tmp_path / "l") == {"x": [(1, 2.0)]}


def test_each_seed_is_a_separate_image(tmp_path) -> None:
    """Each seed degrades anew: image 0 of seed 0 and of seed 1 stand side by side."""
    plan, spec = toy_table(tmp_path)
    again = record(tmp_path / "again", "a", lq=61)
    plan.jobs["a1"] = replace(plan.jobs["a"], artefact=replace(plan.jobs["a"].artefact, folder=again))
    plan.scores |= {replace(place, seed=1): "a1" for place in plan.scores if place.row == "a"}
    block = browser(of_table(replace(plan, seeds=2), spec).blocks[0], Pictures(), limit=64, worst=10)
    names = [image["name"] for image in block["images"]]
    assert len(names) == 2 * N and names[0] == f"{KEYS[0]}, seed 0" and names[N] == f"{KEYS[0]}, seed 1"
    assert [row["title"] for row in block["rows"]] == ["original", "LQ", "Ours (a)", "Ours (b)"]
    assert block["images"][N]["views"][3] is None


def test_missing_records_and_pictures_are_named(tmp_path) -> None:
    """Without records: published numbers, and a line that says what makes the rest. Without images: no browser.

    Weights are wanted for what is still to be measured with them alone.
    """
    spec = toy_spec(tmp_path)
    nothing = data_of(render_page(of_table(Plan(specs=[spec], seeds=1), spec), images=64, worst=10))
    assert nothing["charts"] == [] and [block["images"] for block in nothing["blocks"]] == [[]]
    plan, spec = toy_table(tmp_path, images=False)
    assert of_table(plan, spec).missing == ""
    (tmp_path / "scores-b" / RECORD).unlink()
    source = of_table(plan, spec)
    assert source.missing == "2 of 4 artefacts are missing; restore-lab table toy/one scale=tiny --seeds=1 makes them"
    data = data_of(render_page(source, images=64, worst=10))
    assert data["blocks"][0]["images"] == [] and data["pictures"] == [] and data["table"]["lines"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({}, "name a table"),
        ({"table": "spire/table6", "records": ["x"]}, "name a table"),
        ({"records": []}, "name a table"),
        ({"records": ["x"], "output": "."}, r"output=\. is a folder"),
    ],
)
def test_a_mistake_is_refused_in_one_line(words, says) -> None:
    cfg = {"table": None, "records": None, "output": "report.html", "at_scale": "tiny", "images": 1, "worst": 1}
    with pytest.raises(ValueError, match=says):
        write_report(OmegaConf.create({**cfg, **words}))


def test_report_writes_the_page_and_prints_its_size(tmp_path, caplog) -> None:
    record(tmp_path / "a", "a")
    cfg = {"table": None, "records": str(tmp_path / "a"), "output": str(tmp_path / "new" / "r.html")}
    caplog.set_level("INFO")
    written = write_report(OmegaConf.create({**cfg, "images": 5, "worst": 0}))
    assert written == Path(cfg["output"]) and len(data_of(written.read_text())["blocks"][0]["images"]) == 5
    assert f"report: {written} (0." in caplog.text
