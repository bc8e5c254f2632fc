"""Suggestions for a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_NAMES = 40


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar name, ties going to an anagram ("spier" is "spire"); None if none is similar."""
    close = difflib.get_close_matches(name, listed := list(names), n=len(listed) or 1, cutoff=0.5)
    return max(close, key=lambda other: (_similarity(name, other), sorted(name) == sorted(other)), default=None)


def _similarity(name: str, other: str) -> float:
    return round(difflib.SequenceMatcher(None, other, name).ratio(), 6)


def offer(name: str, names: Iterable[str]) -> str:
    """The end of an error message: the nearest name and all names; "" if there are none."""
    listed = list(names)
    if not listed:
        return ""
    close = nearest(name, listed)
    hint = f"did you mean {close!r}? " if close else ""
    more = f", ... ({len(listed)} in all)" if len(listed) > MAX_NAMES else ""
    return f"; {hint}there are: {', '.join(listed[:MAX_NAMES])}{more}"
