"""Follows a page of the docs: writes its files, types its commands, compares what they print.

In a page, in order:

- a line "`name`:" or "`name`, ...:" and a block behind it: a file, saved as it stands;
- a block of `bash`, or of `python` without such a line: run in the folder; exported variables stay for what follows;
- a block of `text` right behind it: what it prints, stdout and stderr as a terminal shows them. One that prints
  nothing has none;
- a block without a language: shown, and neither run nor saved;
- a line "Needs `X`" before a block: left out unless X is a path of the checkout, a program or a module that is there.

What is shown has to be all that was printed, but for these: `...` stands for the rest of a line or a part of it, on a
line of its own for any lines; a number with a decimal point may be off by 2 percent or by two of its last digit; the
width of gaps and rules does not count.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.helpers.checkout import ROOT

BLOCK = re.compile(
    r"^(?:(?:`(?P<file>[\w./-]+\.\w+)`(?=[,:])|Needs `(?P<needs>[^`]+)`)[^\n]*:\n\n)?"
    r"```(?P<language>\w*)\n(?P<body>.*?)^```$"
    r"(?:\n\n```text\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
RUN = {"bash": ["bash", "-e"], "python": [sys.executable]}
NUMBER = r"[+-]?\d+\.\d+(?:e[+-]?\d+)?"
PIECES = re.compile(rf"(\.\.\.)|(?<![\w.])({NUMBER})(?![\w.]*\d)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: `file` to save it as or None, what it `needs` or None, and what it prints, or None."""

    language: str
    body: str
    file: str | None
    needs: str | None
    shown: str | None

    @property
    def runs(self) -> bool:
        return self.file is None and self.language in RUN


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order; those that are another's output are with it."""
    return [Block(**match.groupdict()) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def save(folder: Path, block: Block) -> None:
    """Write a block that is a file; names lead nowhere outside the folder."""
    place = (folder / (block.file or "")).resolve()
    assert block.file and place.is_relative_to(folder.resolve()), block.file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(block.body, encoding="utf-8")


def there(needed: str) -> bool:
    """Whether a path of the checkout, a program or a module is there."""
    return (
        (ROOT / needed).exists()
        or shutil.which(needed) is not None
        or (needed.isidentifier() and bool(find_spec(needed)))
    )


class Followed:
    """A folder like a fresh clone, and the variables that its commands exported."""

    def __init__(self, folder: Path) -> None:
        """Copy what git knows of the checkout, or would take, into the folder."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in listed.stdout.decode().split("\0"):
            source, target = ROOT / name, folder / name
            if name and (source.is_symlink() or source.is_file()):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        (folder / ".venv").symlink_to(sys.prefix)
        if (ROOT / ".venv-xla").exists():
            (folder / ".venv-xla").symlink_to((ROOT / ".venv-xla").resolve())
        self.folder, self.exported = folder, folder.with_name(folder.name + ".exported")
        self.exported.touch()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {"PATH": path, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.environment = {**os.environ, **ours}

    def run(self, block: Block, *, timeout: float = 1800) -> tuple[int, str]:
        """Run a block; its exit status, and what a terminal would show of what it printed."""
        script = self.folder.with_name(self.folder.name + "." + block.language)
        body = block.body if block.language == "python" else f"{block.body}export -p > '{self.exported}'\n"
        script.write_text(body, encoding="utf-8")
        command = 'source "$1"; shift; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", command, "bash", str(self.exported), *RUN[block.language], str(script)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        return done.returncode, seen(done.stdout.decode())


def seen(text: str) -> str:
    """What stands on a terminal at the end: of a line that was written over, what was written last."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")).strip("\n")


def difference(shown: str, printed: str) -> str | None:
    """None if the printed text is what is shown, else the first shown line that it does not go on with."""
    wanted, got = _lines(shown), _lines(printed)
    reached = {0}  # how many printed lines may stand for the shown ones so far
    for number, line in enumerate(wanted):
        reached = set(_behind(line, got, reached))
        if not reached:
            before = f" (behind {wanted[number - 1]!r})" if number else ""
            return f"the page shows {line!r}{before}; printed was:\n{printed}"
    if len(got) in reached:
        return None
    return f"more was printed than the page shows, from {got[max(reached)]!r} on:\n{printed}"


def _behind(line: str, got: Sequence[str], reached: set[int]) -> Iterator[int]:
    if line == "...":
        yield from range(min(reached), len(got) + 1)
        return
    for start in reached:
        if start < len(got) and same_line(line, got[start]):
            yield start + 1


def same_line(shown: str, printed: str) -> bool:
    """Whether a printed line is the shown one, by the page's convention."""
    pattern, numbers, end = "", [], 0
    for match in PIECES.finditer(shown):
        pattern += re.escape(shown[end : match.start()]) + (".*" if match[1] else rf"({NUMBER}|[+-]?\d+)")
        end = match.end()
        if match[2]:
            numbers.append(match[2])
    found = re.fullmatch(pattern + re.escape(shown[end:]), printed)
    return found is not None and all(map(_near, numbers, found.groups()))


def _near(shown: str, printed: str) -> bool:
    mantissa, _, exponent = shown.partition("e")
    digit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(shown) - float(printed)) <= max(0.02 * abs(float(shown)), 2.01 * digit)


def _lines(text: str) -> list[str]:
    return [re.sub(r"-{3,}", "---", re.sub(r"\s+", " ", line)).strip() for line in text.strip("\n").split("\n")]
