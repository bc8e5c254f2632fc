"""Pairing rules and their pairs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from restore_lab.data.image_io import write_png
from restore_lab.data.sources.paired import PairedSource, PairManifest, RegexStem, SameStem, SuffixStem


def put(root: Path, *names: str, level: int, size: tuple[int, int] = (8, 6)) -> Path:
    for name in names:
        write_png(root / name, np.full((*size, 3), level, np.uint8))
    return root


def pairs(rule, lq: list[str], hq: list[str]) -> list[tuple[str, str | None]]:
    return [(pair.lq, pair.hq) for pair in rule(lq, hq)]


def test_same_stem_ignores_the_suffix_and_keeps_the_folder() -> None:
    found = pairs(SameStem(), ["a/1.jpg", "b/1.jpg", "2.png"], ["a/1.png", "b/1.webp", "3.png"])
    assert found == [("a/1.jpg", "a/1.png"), ("b/1.jpg", "b/1.webp"), ("2.png", None)]


def test_regex_pairs_reside_names() -> None:
    rule = RegexStem("_[0-9.]+_[0-9.]+$", replacement="")
    found = pairs(rule, ["0364_0.85_0.12.jpg", "0364_0.9_0.2.jpg", "0366_1_0.08.jpg"], ["0364.png", "0366.png"])
    assert found == [
        ("0364_0.85_0.12.jpg", "0364.png"),
        ("0364_0.9_0.2.jpg", "0364.png"),
        ("0366_1_0.08.jpg", "0366.png"),
    ]
    with pytest.raises(ValueError, match="not a regular expression"):
        RegexStem("(", replacement="")


def test_suffix_pairs_raindrop_in_one_folder() -> None:
    names = ["0_clean.png", "0_rain.png", "1_clean.png", "1_rain.png"]
    assert pairs(SuffixStem(lq="_rain", hq="_clean"), names, names) == [
        ("0_rain.png", "0_clean.png"),
        ("1_rain.png", "1_clean.png"),
    ]


def test_two_hq_of_one_stem_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.jpg: 2 HQ files fit \(1.png, 1.webp\)"):
        SameStem()(["1.jpg"], ["1.png", "1.webp"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_manifest_pairs_files(tmp_path: Path, suffix: str) -> None:
    rows = [{"lq": "x 1.png", "hq": "y, 1.png", "caption": "a cat, asleep"}, {"lq": "x2.png", "hq": "", "caption": ""}]
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "csv":
        path.write_text('lq,hq,caption\nx 1.png,"y, 1.png","a cat, asleep"\nx2.png,,\n')
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    assert pairs(PairManifest(path), [], []) == [("x 1.png", "y, 1.png"), ("x2.png", None)]
    put(tmp_path / "lq", "x 1.png", "x2.png", level=1)
    put(tmp_path / "hq", "y, 1.png", level=9)
    source = PairedSource(lq=tmp_path / "lq", hq=tmp_path / "hq", rule=PairManifest(path))
    picture = source.read(0)
    assert len(source) == 1 and picture.caption == "a cat, asleep" and picture.hq_HWC[0, 0, 0] == 9


def test_wrong_manifests_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    with pytest.raises(ValueError, match=r"pairs\.csv: not a readable manifest"):
        PairManifest(path)([], [])
    path.write_text("low,high\na,b\n")
    with pytest.raises(ValueError, match="row 1 has no lq"):
        PairManifest(path)([], [])
    path.write_text("lq,hq\n")
    with pytest.raises(ValueError, match="lists no pairs"):
        PairManifest(path)([], [])


def test_many_lq_share_a_hq_and_are_resized_to_it(tmp_path: Path) -> None:
    lq = put(tmp_path / "hazy", "7_0.8_0.1.png", "7_0.9_0.2.png", level=50, size=(4, 3))
    hq = put(tmp_path / "clear", "7.png", level=200)
    (hq / "7.txt").write_text("a street")
    source = PairedSource(lq=lq, hq=hq, rule=RegexStem("_.*$", replacement=""))
    assert source.keys() == ["7_0.8_0.1", "7_0.9_0.2"]
    for index in range(2):
        picture = source.read(index)
        assert picture.hq_HWC.shape == picture.lq_HWC.shape == (8, 6, 3)
        assert picture.lq_HWC[0, 0, 0] == 50 and picture.hq_HWC[0, 0, 0] == 200 and picture.caption == "a street"


def test_an_lq_without_hq_is_skipped_kept_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lq = put(tmp_path / "lq", "1.png", "2.png", level=1)
    hq = put(tmp_path / "hq", "1.png", level=2)
    (lq / "2.txt").write_text("beside the LQ")
    with caplog.at_level(logging.WARNING):
        assert PairedSource(lq=lq, hq=hq, rule=SameStem()).keys() == ["1"]
    assert "1 of 2 LQ left out for want of a HQ: 2.png (looked for 2)" in caplog.text
    kept = PairedSource(lq=lq, hq=hq, rule=SameStem(), unmatched="keep")
    assert kept.keys() == ["1", "2"] and kept.read(1).hq_HWC is None and kept.read(1).caption == "beside the LQ"
    with pytest.raises(ValueError, match="1 LQ without a HQ"):
        PairedSource(lq=lq, hq=hq, rule=SameStem(), unmatched="error")
    alone = PairedSource(lq=lq, hq=None, rule=SameStem())
    assert len(alone) == 2 and alone.read(1).hq_HWC is None and alone.read(1).lq_HWC[0, 0, 0] == 1


def test_no_pairs_at_all_is_refused_with_the_unmatched_names(tmp_path: Path) -> None:
    lq = put(tmp_path / "lq", *(f"{n}_rain.png" for n in range(8)), level=1)
    hq = put(tmp_path / "hq", "0_clean.png", level=2)
    with pytest.raises(ValueError, match="check the rule") as caught:
        PairedSource(lq=lq, hq=hq, rule=SameStem())
    text = str(caught.value)
    assert "8 LQ without a HQ" in text and "0_rain.png (looked for 0_rain)" in text and "and 3 more" in text
    assert "the HQ folder has 0_clean.png" in text and "\n" not in text
