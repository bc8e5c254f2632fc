"""`restore-lab restore` over a folder of odd and hostile files: sound images are restored, bad files named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from restore_lab.cli.errors import flatten
from restore_lab.cli.restore import run
from restore_lab.data.photograph import read_photograph
from restore_lab.inference.files import NOTES_FOLDER as RESTORED
from restore_lab.storage.outputs import OUTPUTS_FOLDER
from tests.helpers import hostile_files
from tests.helpers.configs import composed, small

DEEP = ("deep.png", "deep opacity.png")


@pytest.fixture(scope="module")
def tried(toy_folder, tmp_path_factory) -> tuple[Path, Path, str, object]:
    """The folder, the results, the line at the end, and the config."""
    root = tmp_path_factory.mktemp("hostile")
    hostile_files.make(root / "in")
    told = (f"input={root / 'in'}", f"output={root / 'out'}", "weights=null", "device=cpu", "sampler.progress=false")
    cfg = composed("restore", *small(toy_folder), *told, "sampler.steps=1", "max_pixels=80000")
    with pytest.raises(ValueError, match="left out") as caught:
        run(cfg)
    return root / "in", root / "out", flatten(caught.value), cfg


def rows(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "restored.csv", newline="", encoding="utf-8") as file:
        found = {row["file"]: row for row in csv.DictReader(file)}
    assert not [cell for row in found.values() for cell in row.values() if cell.startswith(("=", "+", "@", "-r"))]
    return found


def test_the_folder_has_sixty_files_or_more() -> None:
    assert len(hostile_files.GOOD) + len(hostile_files.BAD) + len(DEEP) >= 60


def test_every_sound_image_keeps_size_depth_opacity_and_greyness(tried) -> None:
    source, out, _, _ = tried
    for name in (*hostile_files.GOOD, *DEEP):
        row = rows(out)[str(source / name)]
        assert row["status"] == "restored", (name, row["status"])
        before, after = read_photograph(source / name), read_photograph(out / row["output"])
        assert after.rgb_HWC.shape == before.rgb_HWC.shape, name
        assert after.grey == before.grey, name
        assert (after.alpha_HW is None) == (before.alpha_HW is None), name
        assert after.rgb_HWC.dtype == before.rgb_HWC.dtype, name
        assert before.alpha_HW is None or (after.alpha_HW == before.alpha_HW).all(), name
        Image.open(out / row["output"]).verify()


def test_every_bad_file_is_named_with_its_reason_in_one_line(tried) -> None:
    source, out, line, _ = tried
    for name, (_, why) in hostile_files.BAD.items():
        status = rows(out)[str(source / name)]["status"]
        assert Path(name).stem in status and why in status and "\n" not in status, (name, status)
    assert line.startswith(f"{len(hostile_files.BAD)} left out; they are named above and in")


def test_each_image_writes_one_file_of_its_own_name(tried) -> None:
    _, out, _, _ = tried
    written = [path for path in out.rglob("*") if path.is_file() and not {OUTPUTS_FOLDER, RESTORED} & set(path.parts)]
    assert len(written) == len(hostile_files.GOOD) + len(DEEP) + 1  # restored.csv


def test_a_second_run_restores_nothing_and_names_the_bad_files(tried, capsys) -> None:
    source, out, line, cfg = tried
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    with pytest.raises(ValueError, match="left out") as caught:
        run(cfg)
    assert flatten(caught.value) == line
    assert capsys.readouterr().out == f"0 restored into {out}, {len(hostile_files.GOOD) + len(DEEP)} had been\n"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before
    assert source.is_dir()
