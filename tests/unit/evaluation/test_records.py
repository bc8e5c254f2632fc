"""Records: round trip, completeness, rendering."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from restore_lab.evaluation.protocol import ColumnLabel
from restore_lab.evaluation.records import Cell, ImageValue, Record, Results, read_record, render_results, write_record

COLUMN = ColumnLabel(metric="psnr", weights="", colour="rgb", border=0, size="64x64", rounding="8bit", count=2)
PIQE = replace(COLUMN, metric="piqe", weights="pyiqa 0.1.16")


def cell(row: str, mean: float, column: ColumnLabel = COLUMN) -> Cell:
    better = column.metric == "psnr"
    return Cell(
        row=row, metric=column.metric, mean=mean, std=0.5, n=column.count, higher_is_better=better, column=column
    )


RESULTS = Results(
    cells=(
        cell("spire", 24.125),
        cell("spire", 40.5, PIQE),
        cell("D(E(HQ))", 30.0),
        cell("LQ", 20.5),
        cell("LQ", 9.75, PIQE),
    ),
    images=(
        ImageValue(row="LQ", key="a cat_0", metric="psnr", value=20.0, caption="a cat, asleep", instruction="Deblur"),
        ImageValue(row="LQ", key="b", metric="psnr", value=None, recipe='{"pipeline": "sr4"}'),
    ),
    notes=("lpips: alexnet.pth is missing; put it into /x",),
)


def written(folder: Path) -> Path:
    return write_record(
        folder, results=RESULTS, settings={"steps": 50, "s": {"x": [1.5]}}, identity="ab12", code="v1+changes"
    )


def test_a_record_round_trips(tmp_path: Path) -> None:
    path = written(tmp_path / "new folder")
    expected = Record(results=RESULTS, identity="ab12", code="v1+changes", settings={"steps": 50, "s": {"x": [1.5]}})
    assert read_record(path.parent) == expected
    assert sorted(file.name for file in path.parent.iterdir()) == ["per_image.parquet", "record.json"]


def test_record_files_are_self_describing(tmp_path: Path) -> None:
    path = written(tmp_path)
    first = json.loads(path.read_text())["cells"][0]
    assert (first["row"], first["metric"], first["mean"], first["n"]) == ("spire", "psnr", 24.125, 2)
    assert first["column"] == {
        "metric": "psnr", "weights": "", "colour": "rgb", "border": 0, "size": "64x64", "rounding": "8bit", "count": 2,
    }  # fmt: skip
    table = pq.read_table(tmp_path / "per_image.parquet")
    assert table.column_names == ["row", "key", "metric", "caption", "instruction", "recipe", "value"]
    assert table["value"].to_pylist() == [20.0, None]


def test_no_record_and_broken_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run restore-lab evaluate first"):
        read_record(tmp_path)
    path = written(tmp_path)
    whole = path.read_text()
    path.write_text(whole[:-40])
    with pytest.raises(ValueError, match=r"record\.json is not a record"):
        read_record(tmp_path)
    path.write_text(whole.replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        read_record(tmp_path)
    path.write_text(whole.replace('"border": 0', '"border": 4'))
    with pytest.raises(ValueError, match="column was edited"):
        read_record(tmp_path)


def test_mixed_files_of_two_records_are_refused(tmp_path: Path) -> None:
    """A run killed between the two files leaves a new table next to an old summary."""
    old = written(tmp_path).read_text()
    other = replace(RESULTS, images=RESULTS.images[:1])
    write_record(tmp_path, results=other, settings={}, identity="cd34", code="v2")
    (tmp_path / "record.json").write_text(old)
    with pytest.raises(ValueError, match=r"not the one that its record\.json was written with"):
        read_record(tmp_path)
    (tmp_path / "per_image.parquet").unlink()
    with pytest.raises(ValueError, match="is missing beside"):
        read_record(tmp_path)


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_record(
            tmp_path, results=Results(cells=(cell("LQ", float("nan")),), images=()), settings={}, identity="", code=""
        )
    assert not (tmp_path / "record.json").exists()


def test_a_record_is_rendered_as_a_table() -> None:
    assert render_results(RESULTS).splitlines() == [
        "|          |       psnr + |       piqe - |",
        "|----------|-------------:|-------------:|",
        "| LQ       | 20.50 (0.50) |  9.75 (0.50) |",
        "| D(E(HQ)) | 30.00 (0.50) |              |",
        "| spire    | 24.12 (0.50) | 40.50 (0.50) |",
        "",
        "psnr +  psnr: RGB, 64x64, 8-bit, n=2",
        "piqe -  piqe: RGB, 64x64, 8-bit, n=2, pyiqa 0.1.16",
        "note: lpips: alexnet.pth is missing; put it into /x",
    ]


def test_other_protocols_never_share_a_column() -> None:
    other = replace(COLUMN, count=3)
    lines = render_results(Results(cells=(cell("LQ", 20.0), cell("m", 25.0, other)), images=())).splitlines()
    assert lines[0].split("|")[2:4] == ["    psnr[1] + ", "    psnr[2] + "]
    assert [part.strip() for part in lines[3].split("|")[1:4]] == ["m", "", "25.00 (0.50)"]
    assert lines[-1].endswith("n=3")


def test_reading_leaves_no_threads_behind(tmp_path: Path) -> None:
    """A thread of pyarrow's that still holds something of Python's at the end aborts the finished command."""
    file = written(tmp_path).parent / "per_image.parquet"
    script = f"""
import os
from pathlib import Path
import pyarrow.parquet
from restore_lab.data import parquet
file = Path({str(file)!r})
before = set(os.listdir("/proc/self/task"))
assert len(parquet.rows(file)) == len(parquet.rows(file.read_bytes())) > 0
assert parquet.rows(file, columns=("key", "absent"))[0].keys() == {{"key"}}
print(len(set(os.listdir("/proc/self/task")) - before))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0"]
