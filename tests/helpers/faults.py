"""Faults done to real commands, and their results: `python -m tests.helpers.faults > docs/results/faults.md`.

Each case of fault_cases.py does a fault to a command, mends it, gives the same command again, checks what is there, and
returns a row; test_faults.py runs the same cases.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.checkout import ROOT

PATIENCE = 600  # seconds; a command that takes longer hangs


class CannotMount(Exception):
    """This machine does not allow mounting a small disk."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that ended: its exit code (negative: the signal), and what it said."""

    code: int
    said: str

    @property
    def last(self) -> str:
        """The line in which it ended; a traceback is none."""
        assert "Traceback" not in self.said, self.said
        lines = [line for line in self.said.splitlines() if line.startswith("restore-lab: ")]
        return lines[-1] if lines else ""


class Command:
    """`restore-lab WORDS` at work, in a group of its own, as a shell would start it.

    Args:
        place: for what it says.
        words: its words.
    """

    def __init__(self, place: Path, *words: str) -> None:
        self.file = place / f"said-{time.monotonic_ns()}"
        with open(self.file, "wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "restore_lab.cli.main", *words],
                stdout=said,
                stderr=said,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                process_group=0,
            )

    def when(self, condition: Callable[[], bool], what: Callable[[], object]) -> Ended:
        """Do something to it as soon as something holds, and wait for its end."""
        while self.process.poll() is None and not condition():
            time.sleep(0.002)
        assert self.process.poll() is None, self.file.read_text()
        what()
        return self.ended()

    def ended(self) -> Ended:
        """Wait for its end."""
        try:
            self.process.wait(timeout=PATIENCE)
        finally:
            self.process.kill()
        return Ended(code=self.process.returncode, said=self.file.read_text(errors="replace"))


@contextlib.contextmanager
def disk(place: Path, *, megabytes: int = 48) -> Iterator[Path]:
    """A small disk of its own.

    Raises:
        CannotMount: if nobody may mount here.
    """
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotMount("no mount here") from error
    if done.returncode:
        raise CannotMount(done.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    where: str
    fault: str
    happened: str
    lost: str


def page(rows: list[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "# Faults, and what they cost",
        "",
        "Written by `python -m tests.helpers.faults > docs/results/faults.md`, which does each of these to a real",
        "command on the toy models, mends the fault, and gives the same command again; `tests/slow/test_faults.py`",
        "runs the same cases. Disks are small (tmpfs), filled at work; what is read-only is mounted so. A lost GPU is",
        'torch\'s own error, raised in a step. "The same" means: weights, losses, pictures or entries equal those of a',
        "run that nothing was done to, byte for byte.",
        "",
        "Exit codes: 2 bad input, 3 the machine gave way (mend it, and the same command continues), 143 terminated.",
        "",
        "| where | fault | what happened | what was lost |",
        "|---|---|---|---|",
        *(f"| {row.where} | {row.fault} | {row.happened.replace('|', '/')} | {row.lost} |" for row in rows),
        "",
        "Nothing that had been reported as done was lost in any of them.",
        "",
        "Tables killed at random moments: `tests/contract/test_tables_killed.py`; captions and encodings:",
        "`test_killed_ahead.py`; DDP: `test_killed_ddp.py`; shards in mid-epoch: `test_shards_trained.py`.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run all cases and print the page; a case that fails is told on stderr, and the page is not printed."""
    from tests.helpers.fault_cases import CASES, Bench

    with tempfile.TemporaryDirectory() as folder:
        bench, rows, failed = Bench(Path(folder)), [], []
        for case in CASES:
            place = Path(folder) / case.__name__
            place.mkdir()
            try:
                rows.append(case(bench, place))
                print(rows[-1], file=sys.stderr, flush=True)
            except CannotMount as error:
                rows.append(Row(where="", fault=case.__name__, happened=f"not run: {error}", lost=""))
            except AssertionError:
                failed.append(case.__name__)
                print(f"{case.__name__}: {traceback.format_exc()}", file=sys.stderr, flush=True)
            shutil.rmtree(place, ignore_errors=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    print(page(rows))


if __name__ == "__main__":
    main()
