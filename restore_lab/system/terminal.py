"""What a terminal is shown: text, and no command to the terminal, whoever wrote it.

Names of files, captions, manifests and records come from others; an escape sequence in them moves the cursor, renames
the window or rewrites what was printed before, and a mark of direction turns a line around. Progress bars write such
sequences themselves, to stderr, so stdout and the messages of the log are what is made visible here.
"""

from __future__ import annotations

import logging
import re
from typing import Any, TextIO

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")  # all but tab and newline


def visible(text: str) -> str:
    r"""The text with control characters and marks of direction spelled out: "\x1b[2J"."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Visible:
    """A stream that shows all text as `visible`; anything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, and give the length of what was given."""
        self.stream.write(visible(text))
        return len(text)

    def flush(self) -> None:
        """Let the stream write what it holds."""
        self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Formatter(logging.Formatter):
    """A log's messages as `visible` (conf/hydra_defaults.yaml)."""

    def format(self, record: logging.LogRecord) -> str:
        """One message."""
        return visible(super().format(record))
