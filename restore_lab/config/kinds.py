"""Validation of config values by type annotations; `coerce` checks and converts a value, without torch.

`Annotated[int, Range(1, 100)]` is an integer, `Literal["a", "b"]` a choice, `Sequence[float]` a list, a TypedDict a
mapping with these keys. A class, a Callable or a Tensor stands for a part: a config node with a `_target_`. A value in
another notation (1e5 for an integer, 16 for the name "16") is converted.
"""

from __future__ import annotations

import collections.abc
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, is_typeddict

from restore_lab.config.suggest import nearest

Value = Any  # of a config: None, a number, text, a list, a mapping, or a part
Kind = Any  # an annotation, for which Python has no type
INT64 = 2**63
MAX_LETTERS = 60  # characters of a value in a message
LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
MAPPINGS = (dict, collections.abc.Mapping)
NULL = type(None)


class Mismatch(ValueError):
    """A value that does not fit its annotation; the message names the expected kind.

    Attributes:
        place: path of the error inside the value, such as "[0].low"; empty for the whole value.
        value: the value at that path.
    """

    def __init__(self, text: str, *, place: str = "", value: Value = None) -> None:
        super().__init__(text)
        self.place, self.value = place, value

    def at(self, place: str, value: Value) -> ValueError:
        """The error of a setting: "sampler.start=1.5: expected a number above 0"."""
        wrong = self.value if self.place else value
        return ValueError(f"{place}{self.place}={abbreviate(wrong)}: {self}")


class Part:
    """The annotation of an object that is built from a node with a `_target_`."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` and `below` exclude the bounds.

    Attributes:
        unit: the numbers' unit, for messages.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    unit: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        unit = [f"({self.unit})"] if self.unit else []
        if -math.inf < self.low and self.high < math.inf and not (self.above or self.below):
            return " ".join([f"from {self.low:.15g} to {self.high:.15g}", *unit])
        text = []
        if self.low > -math.inf:
            text.append(f"above {self.low:.15g}" if self.above else f"of at least {self.low:.15g}")
        if self.high < math.inf:
            text.append(f"{'and ' * bool(text)}{'below' if self.below else 'at most'} {self.high:.15g}")
        return " ".join([*text, *unit])


@dataclass(frozen=True)
class Pattern:
    """Text that matches a regular expression; `description` is for messages."""

    text: str
    description: str

    def holds(self, value: str) -> bool:
        """Whether text matches."""
        return re.fullmatch(self.text, value) is not None

    def __str__(self) -> str:
        return self.description


@dataclass(frozen=True)
class MaxLength:
    """A list of at most `count` entries."""

    count: int

    def holds(self, value: Sequence[Value]) -> bool:
        """Whether a list is short enough."""
        return len(value) <= self.count

    def __str__(self) -> str:
        return f"of at most {self.count}"


Count = Annotated[int, Range(1, 10**9)]
CountOrZero = Annotated[int, Range(0, 10**9)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Steps = Annotated[int, Range(1, 10**9, unit="optimiser steps")]
Pixels = Annotated[int, Range(1, 2**16, unit="pixels")]
Seed = Annotated[int, Range(0, 2**32 - 1)]
BatchSize = Annotated[int, Range(1, 2**16, unit="images")]
Workers = Annotated[int, Range(0, 1024, unit="processes that read data")]
Decay = Annotated[float, Range(0, 1, below=True, unit="what the average keeps in a step")]
Quality = Annotated[int, Range(1, 100)]  # of a JPEG file
DType = Literal["float32", "float16", "bfloat16"]
Scale = Literal["tiny", "full"]  # of priors and their settings


def coerce(value: Value, kind: Kind) -> Value:
    """The value, converted to an annotation.

    Args:
        value: None, a number, text, a list or a mapping; anything else counts as a part.
        kind: an annotation.

    Raises:
        Mismatch: with the expected kind.
    """
    if kind is Any or kind is object:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _coerce_any(value, arguments)
    if origin is Annotated:
        return _coerce_annotated(value, arguments)
    if origin is Literal:
        return _coerce_choice(value, arguments)
    if kind in (int, float):
        return _coerce_number(value, kind)
    if kind in (bool, None, NULL):
        return _require(value, kind, isinstance(value, bool) if kind is bool else value is None)
    if kind is str or (isinstance(kind, type) and issubclass(kind, PurePath)):
        return _coerce_text(value, kind)
    if is_typeddict(kind):
        return _coerce_keys(value, kind)
    if isinstance(value, Mapping) and "_target_" in value and (origin or kind) in (*LISTS, *MAPPINGS):
        return value  # a node of a part
    if (origin or kind) in LISTS:
        return _coerce_list(value, kind, arguments)
    if (origin or kind) in MAPPINGS:
        _require(value, kind, isinstance(value, Mapping))
        return (
            {key: _coerce_entry(entry, arguments[1], f".{key}") for key, entry in value.items()} if arguments else value
        )
    plain = value is None or isinstance(value, bool | int | float | str | list | tuple)
    return _require(value, kind, not plain and (not isinstance(value, Mapping) or "_target_" in value))


def _describe(kind: Kind) -> str:
    """An annotation as text: "a whole number of at least 1, or null"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _describe_any(arguments)
    if origin is Annotated:
        base, *more = arguments
        return str(more[0]) if isinstance(more[0], Pattern) else " ".join([_describe(base), *map(str, more)])
    if origin is Literal:
        return " | ".join("null" if one is None else str(one) for one in arguments)
    if is_typeddict(kind):
        return f"a mapping with {', '.join(kind.__annotations__)}"
    if (origin or kind) in LISTS:
        inner = list(dict.fromkeys(_describe(one) for one in arguments if one is not ...))
        count = f"{len(arguments)} of " if origin is tuple and arguments[-1] is not ... else ""
        return f"a list ({count}{', '.join(inner)})" if inner else "a list"
    if (origin or kind) in MAPPINGS:
        return "a mapping"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", None: "null", NULL: "null"}
    if kind in names:
        return names[kind]
    return "a path" if isinstance(kind, type) and issubclass(kind, PurePath) else "a part (a node with _target_)"


def _describe_any(kinds: Sequence[Kind]) -> str:
    named = list(dict.fromkeys(_describe(one) for one in sorted(kinds, key=lambda one: one is NULL)))
    return ", or ".join(filter(None, [", ".join(named[:-1]), named[-1]]))


def abbreviate(value: Value) -> str:
    """A value for a message: null for None, and at most one line."""
    text = "null" if value is None else str(value)
    text = str(value).lower() if isinstance(value, bool) else " ".join(text.split())
    return text if len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]}..."


def _require(value: Value, kind: Kind, fits: bool) -> Value:
    if not fits:
        raise Mismatch(f"expected {_describe(kind)}")
    return value


def _coerce_any(value: Value, kinds: Sequence[Kind]) -> Value:
    """The value as the first kind that takes it unchanged, else the first that takes it."""
    found, wrong = [], []
    for kind in kinds:
        try:
            found.append(coerce(value, kind))
        except Mismatch as error:
            wrong.append((kind, error))
    if found:
        return next((one for one in found if one is value or type(one) is type(value)), found[0])
    for kind, error in wrong:  # the error inside a list or a mapping, or of a single kind, is more specific
        if error.place:
            raise error
        if len(wrong) == 1 + any(one is NULL for one, _ in wrong) and kind is not NULL:
            raise Mismatch(f"{error}{', or null' if len(wrong) > 1 else ''}")
    raise Mismatch(f"expected {_describe_any(kinds)}")


def _coerce_annotated(value: Value, arguments: Sequence[Kind]) -> Value:
    base, *more = arguments
    try:
        fitted = coerce(value, base)
    except Mismatch as error:
        raise Mismatch(f"expected {_describe(Annotated[base, *more])}") from error
    if not all(one.holds(fitted) for one in more):
        raise Mismatch(f"expected {_describe(Annotated[base, *more])}")
    return fitted


def _coerce_choice(value: Value, names: Sequence[Value]) -> Value:
    if not isinstance(value, list | tuple | Mapping):
        for name in names:
            if type(name) is type(value) and name == value:
                return name
        word = str(value).lower() if isinstance(value, bool) else str(value)
        if word in names:
            return word
        close = nearest(word, [name for name in names if isinstance(name, str)])
        listed = ", ".join("null" if name is None else str(name) for name in names)
        raise Mismatch(f"{f'did you mean {close}? ' if close else ''}there are: {listed}")
    raise Mismatch(f"expected one of {', '.join(map(str, names))}")


def _coerce_number(value: Value, kind: type) -> Value:
    number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if number and kind is int:
        number = math.isfinite(value) and value == int(value) and -INT64 < value < INT64
    _require(value, kind, number)
    return int(value) if kind is int else value


def _coerce_text(value: Value, kind: Kind) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    _require(value, kind, isinstance(value, str | int | float | PurePath))
    if isinstance(value, str) and "\0" in value:
        raise Mismatch("expected text without a null character")
    return str(value)


def _coerce_list(value: Value, kind: Kind, arguments: Sequence[Kind]) -> Value:
    _require(value, kind, isinstance(value, list | tuple))
    if not arguments:
        return value
    if get_origin(kind) is tuple and arguments[-1] is not ...:
        if len(value) != len(arguments):
            raise Mismatch(f"expected {_describe(kind)}")
        return [
            _coerce_entry(one, inner, f"[{n}]") for n, (one, inner) in enumerate(zip(value, arguments, strict=True))
        ]
    return [_coerce_entry(one, arguments[0], f"[{number}]") for number, one in enumerate(value)]


def _coerce_keys(value: Value, kind: Kind) -> Value:
    _require(value, kind, isinstance(value, Mapping))
    hints = typing.get_type_hints(kind, include_extras=True)
    optional = {key: get_args(hint)[0] for key, hint in hints.items() if get_origin(hint) is NotRequired}
    kinds = {**hints, **optional}
    for key in value:
        if key not in kinds:
            raise Mismatch(f"no setting {key!r} in it; there are: {', '.join(kinds)}")
    if missing := [key for key in kinds if key not in value and key not in optional]:
        raise Mismatch(f"expected {missing[0]!r} in it")
    return {key: _coerce_entry(entry, kinds[key], f".{key}") for key, entry in value.items()}


def _coerce_entry(value: Value, kind: Kind, place: str) -> Value:
    """`coerce` for an entry of a list or a mapping; the error has its place."""
    try:
        return coerce(value, kind)
    except Mismatch as error:
        raise Mismatch(str(error), place=place + error.place, value=error.value if error.place else value) from error
