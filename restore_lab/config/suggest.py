"""What a mistyped name was probably meant to be, and what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 40


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like it, of equals the one of the same letters ("spier" is "spire"); None if none is."""
    close = difflib.get_close_matches(name, listed := list(names), n=len(listed) or 1, cutoff=0.5)
    return max(close, key=lambda other: (_alike(name, other), sorted(name) == sorted(other)), default=None)


def _alike(name: str, other: str) -> float:
    return round(difflib.SequenceMatcher(None, other, name).ratio(), 6)


def offer(name: str, names: Iterable[str]) -> str:
    """The end of a message: the nearest name, and all that there are; empty if there are none."""
    listed = list(names)
    if not listed:
        return ""
    close = nearest(name, listed)
    hint = f"did you mean {close!r}? " if close else ""
    more = f", ... ({len(listed)} in all)" if len(listed) > SHOWN else ""
    return f"; {hint}there are: {', '.join(listed[:SHOWN])}{more}"
