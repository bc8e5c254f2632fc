"""Conditions, hints and what they hold as nests of tensors with a row per image: joined, repeated, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def join(nouns: Sequence[Any]) -> Any:
    """Conditions, or hints, as one of all their rows; the first one's LQ."""
    first, new = nouns[0], {}
    for field in fields(first):
        value = getattr(first, field.name)
        if value is None or field.name == "lq_BCHW":
            continue
        values = [getattr(noun, field.name) for noun in nouns]
        new[field.name] = torch.cat(values) if isinstance(value, Tensor) else join(values)
    return replace(first, **new)


def repeat(value: Any, count: int, *, rows: int) -> Any:
    """A nest of mappings, sequences and nouns with every tensor of so many rows `count` times over."""
    if isinstance(value, Tensor):
        whole = value.ndim > 0 and len(value) == rows
        return value.repeat(count, *[1] * (value.ndim - 1)) if whole else value
    if isinstance(value, Mapping):
        return {key: repeat(entry, count, rows=rows) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(repeat(entry, count, rows=rows) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        held: Any = value
        return replace(held, **{f.name: repeat(getattr(held, f.name), count, rows=rows) for f in fields(held)})
    return value


def shapes(noun: Any) -> list[Any]:
    """The shapes and types of a noun's tensors, field by field."""
    values = [getattr(noun, field.name) for field in fields(noun)]
    return [shapes(v) if is_dataclass(v) else None if v is None else (v.shape, v.dtype) for v in values]
