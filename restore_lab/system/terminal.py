"""Terminal output with control characters escaped.

File names, captions, manifests and records are untrusted: an escape sequence in them can move the cursor, rename the
window or rewrite earlier output, and a bidirectional control can reverse a line. Progress bars write such sequences to
stderr on purpose, so only stdout and log messages are escaped.
"""

from __future__ import annotations

import logging
import re
from typing import Any, TextIO

CONTROL_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)  # all but tab and newline


def escape_control(text: str) -> str:
    r"""The text with control and bidirectional characters escaped: "\x1b[2J"."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class EscapedStream:
    """A text stream that escapes with `escape_control` and delegates everything else."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write escaped text; the length is that of the text given."""
        self.stream.write(escape_control(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Formatter(logging.Formatter):
    """A logging formatter that escapes with `escape_control` (conf/hydra_defaults.yaml)."""

    def format(self, record: logging.LogRecord) -> str:
        """One formatted and escaped message."""
        return escape_control(super().format(record))
