"""The golden net finds changes: figures beyond the tolerance, other counts, files on one side only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.net import COMMITTED, METHODS, STAGES, differences, write


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same figures and counts."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "losses_a.txt", [0.25, -2.0])
        (tmp_path / name / "parameters.txt").write_text("spire tiny_sd total=7\n")
    return tmp_path / "here", tmp_path / "there"


def test_equal_figures_do_not_differ(folders) -> None:
    assert differences(*folders, tolerance=0.0) == []


@pytest.mark.parametrize(("apart", "tolerance", "held"), [(1e-4, 1e-4, True), (1e-3, 1e-4, False), (1e-6, 0.0, False)])
def test_figures_beyond_the_tolerance_differ(folders, apart, tolerance, held) -> None:
    write(folders[0] / "losses_a.txt", [0.25 + apart, -2.0])
    assert (differences(*folders, tolerance=tolerance) == []) is held


def test_not_a_number_differs(folders) -> None:
    write(folders[0] / "losses_a.txt", [float("nan"), -2.0])
    assert len(differences(*folders, tolerance=1e-4)) == 1


def test_parameter_counts_have_no_tolerance(folders) -> None:
    (folders[0] / "parameters.txt").write_text("spire tiny_sd total=8\n")
    assert differences(*folders, tolerance=1.0) == ["parameters.txt: entry 3 is total=8, was total=7"]


def test_missing_files_and_figures_are_named(folders) -> None:
    (folders[1] / "parameters.txt").unlink()
    write(folders[1] / "losses_a.txt", [0.25])
    assert differences(*folders, tolerance=1.0) == [
        "losses_a.txt: entry 2 is -2, was missing",
        "parameters.txt: only in this tree",
    ]


def test_every_method_and_stage_has_committed_figures() -> None:
    names = {f"losses_{run}_{stage}.txt" for run, (_, stages) in STAGES.items() for stage in stages}
    names |= {f"latent_{method}.txt" for method in METHODS} | {"parameters.txt"}
    assert {file.name for file in COMMITTED.glob("*")} == names
