"""An attacker's payload: it leaves a mark where it runs."""

from __future__ import annotations

from pathlib import Path


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def code(mark: Path) -> str:
    """A module that touches a file when it is imported."""
    return f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
