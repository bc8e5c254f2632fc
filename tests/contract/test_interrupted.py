"""How a command ends when it is interrupted, or has no terminal, no output or no working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from restore_lab.cli.errors import exit_with_one_line, is_bad_input
from restore_lab.system.faults import Termination
from tests.helpers.checkout import ROOT
from tests.helpers.fault_cases import Bench, checkpoints, goes_on
from tests.helpers.faults import Ended
from tests.helpers.forked import forked

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = f"{sys.executable} -m restore_lab.cli.main"


class Forked:
    """A command that starts in a moment and that nothing is done to."""

    def __init__(self, place: Path, *words: str) -> None:
        self.place, self.words = place, words

    def ended(self) -> Ended:
        done = forked(*self.words, cwd=self.place, paths=(ROOT,))
        return Ended(code=done.returncode, said=done.stdout + done.stderr)


def test_ctrl_c_in_training_leaves_a_checkpoint_and_names_the_step(tmp_path, monkeypatch) -> None:
    """It reaches the process that reads data too; the step at work is finished."""
    bench, place = Bench(tmp_path), tmp_path / "run"
    place.mkdir()
    done = bench.struck(place, how="interrupt")
    assert done.code == 130, done.said
    assert done.last == "restore-lab: interrupted at step 6 of 8; the same command continues"
    assert checkpoints(place)[-1] == "step=6.ckpt"
    monkeypatch.setattr("tests.helpers.fault_cases.Command", Forked)
    goes_on(bench, place)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (f"{COMMAND} --help >&-", 0, ""),
        (f"{COMMAND} --help >&- 2>&- <&-", 0, ""),
        (f"{COMMAND} nothing 2>&-", 2, ""),
        (f"{COMMAND} --help > /dev/full", 3, "what was asked for cannot be printed: No space left on device"),
        (
            f"mkdir gone && cd gone && rmdir ../gone && {COMMAND} describe",
            2,
            "the working directory is gone",
        ),
    ],
)
def test_a_closed_stream_or_lost_working_directory_ends_in_one_line(line, code, said, tmp_path) -> None:
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and len(done.stderr.splitlines()) == bool(said), done.stderr


def test_an_impossible_path_is_bad_input_and_a_full_disk_is_not(tmp_path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for wrong in ("file/below", "a" * 300, "loop", "no/such"):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            (tmp_path / wrong).stat()
        assert is_bad_input(caught.value)
    with pytest.raises(FileExistsError) as caught:
        (tmp_path / "file").mkdir()
    assert is_bad_input(caught.value)
    assert not is_bad_input(OSError(28, "No space left on device", "file"))


def test_an_interruption_ends_in_one_line_with_its_exit_code(capsys) -> None:
    for stop, code, said in (
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("between two steps; x"), 130, "interrupted between two steps; x"),
        (Termination(2, " at step 3 of 8; x"), 130, "interrupted at step 3 of 8; x"),
        (Termination(15, "; x"), 143, "terminated; x"),
    ):
        with pytest.raises(SystemExit) as caught, exit_with_one_line():
            raise stop
        assert caught.value.code == code
        assert capsys.readouterr().err == f"restore-lab: {said}\n"
