"""Folders of restored images scored, and records explained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restore_lab.cli.evaluate import run
from restore_lab.evaluation.evaluate import evaluate
from restore_lab.evaluation.explain import explain_records
from restore_lab.evaluation.records import Results
from tests.helpers.configs import composed


def image(file: Path, value: int, size: tuple[int, int] = (24, 16)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).save(file)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three restored images that are 10, 20 and 40 of 255 too bright, one in a folder below, another file type."""
    for name, value in (("a", 110), ("b", 120), ("deep/c", 140)):
        image(tmp_path / "mine" / f"{name}.png", value)
        image(tmp_path / "hq" / f"{name}.bmp", 100)
    return tmp_path / "mine", tmp_path / "hq"


def config(folders, tmp_path, *words: str):
    restored, reference = folders
    return composed(
        "evaluate", f"restored={restored}", f"reference={reference}", "metrics=fidelity", f"runs_dir={tmp_path}/runs",
        "progress=false", *words,
    )  # fmt: skip


def score(cfg) -> tuple[Path, Results]:
    done = evaluate(cfg)
    assert done is not None
    return done.folder, done.results


def test_a_folder_gets_the_scores_of_its_images(folders, tmp_path, capsys) -> None:
    run(config(folders, tmp_path, "format=json"))
    found = json.loads(capsys.readouterr().out)
    each = [-20 * math.log10(error / 255) for error in (10, 20, 40)]
    assert set(found["rows"]) == {"mine"} and found["rows"]["mine"]["psnr"]["n"] == 3
    assert found["rows"]["mine"]["psnr"]["mean"] == pytest.approx(sum(each) / 3, abs=1e-3)
    assert found["rows"]["mine"]["psnr"]["protocol"] == "psnr: RGB, 24x16, 8-bit, n=3"
    _, results = score(config(folders, tmp_path))
    assert {i.key: round(i.value or 0, 2) for i in results.images if i.metric == "psnr"} == {
        "a": round(each[0], 2),
        "b": round(each[1], 2),
        "deep/c": round(each[2], 2),
    }


def test_a_record_is_identified_by_images_and_protocol(folders, tmp_path) -> None:
    first, _ = score(config(folders, tmp_path))
    assert score(config(folders, tmp_path))[0] == first
    assert score(config(folders, tmp_path, "protocol=y"))[0] != first
    image(folders[0] / "a.png", 111)
    assert score(config(folders, tmp_path))[0] != first


def test_unpaired_images_are_named(folders, tmp_path) -> None:
    image(folders[0] / "extra.png", 7)
    with pytest.raises(ValueError, match=r"1 of 4 restored images without an original: extra\.png; .*unmatched=skip"):
        score(config(folders, tmp_path))
    (folders[0] / "extra.png").unlink()
    image(folders[0] / "b.png", 7, size=(12, 8))
    with pytest.raises(ValueError, match=r"b\.png and its original have 12x8 and 24x16 pixels"):
        score(config(folders, tmp_path))
    with pytest.raises(ValueError, match=r"restored=/nowhere: no such folder"):
        score(composed("evaluate", "restored=/nowhere", "metrics=fidelity"))


def test_a_missing_image_is_refused_or_skipped(folders, tmp_path, caplog) -> None:
    """Also where the record of the images that are there exists already."""
    (folders[0] / "b.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 originals without a restored image: b\.bmp; .*unmatched=skip"):
        score(config(folders, tmp_path))
    image(folders[0] / "extra.png", 7)
    _, results = score(config(folders, tmp_path, "unmatched=skip"))
    assert results is not None and {one.key for one in results.images} == {"a", "deep/c"}
    assert "without an original: extra.png" in caplog.text and "without a restored image: b.bmp" in caplog.text
    with pytest.raises(ValueError, match="1 of 3 restored images without an original"):
        score(config(folders, tmp_path))


def test_disambiguated_names_find_their_originals(tmp_path) -> None:
    """From a.jpg and a.png come a.jpg.png and a.png.png."""
    for name, value in (("a.jpg", 100), ("a.png", 50)):
        image(tmp_path / "hq" / name, value)
        image(tmp_path / "mine" / f"{name}.png", value)
    _, results = score(config((tmp_path / "mine", tmp_path / "hq"), tmp_path, "metrics=fidelity"))
    assert results is not None and {one.key for one in results.images} == {"a.jpg", "a.png"}


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot place 'x y z'"):
        run(composed("evaluate", "records=[x,y,z]"))
    with pytest.raises(ValueError, match="give both"):
        run(composed("evaluate", "reference=x"))


def test_explain_names_why_two_records_differ(folders, tmp_path, capsys) -> None:
    first, _ = score(config(folders, tmp_path))
    second, _ = score(config(folders, tmp_path, "protocol=y_border4"))
    lines = explain_records(first, second / "record.json")
    assert "protocol of psnr: colour 'rgb' against 'y', border 0 against 4" in lines
    assert "setting protocol.border: 0 against 4" in lines
    (folders[0] / "a.png").unlink()
    third, _ = score(config(folders, tmp_path, "unmatched=skip"))
    assert "images in the first alone: a" in explain_records(first, third)
    assert explain_records(first, first) == ["nothing differs: same protocol, weights, images, seed, settings and code"]
    run(composed("evaluate", "explain=true", f"records=['{first}','{third}']"))
    assert "images in the first alone: a" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--explain compares two records"):
        run(composed("evaluate", "explain=true"))
