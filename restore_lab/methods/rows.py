"""Concatenates, repeats and compares conditions and hints: nests of tensors with one row per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from restore_lab.types import Cond, Hint

C = TypeVar("C", Cond, Hint)


def join(nests: Sequence[C]) -> C:
    """One condition or hint with the rows of all; the LQ is that of the first."""
    first, joined = nests[0], {}
    for field in fields(first):
        value = getattr(first, field.name)
        if value is None or field.name == "lq_BCHW":
            continue
        values = [getattr(nest, field.name) for nest in nests]
        joined[field.name] = torch.cat(values) if isinstance(value, Tensor) else join(values)
    return replace(first, **joined)


def repeat(value: Any, count: int, *, rows: int) -> Any:
    """A nest of mappings, sequences and dataclasses with every tensor of `rows` rows repeated `count` times."""
    if isinstance(value, Tensor):
        has_rows = value.ndim > 0 and len(value) == rows
        return value.repeat(count, *[1] * (value.ndim - 1)) if has_rows else value
    if isinstance(value, Mapping):
        return {key: repeat(entry, count, rows=rows) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(repeat(entry, count, rows=rows) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: repeat(getattr(value, field.name), count, rows=rows) for field in fields(value)}
        return replace(value, **changed)
    return value


def shapes(nest: Cond | Hint) -> list[Any]:
    """The shapes and dtypes of the tensors of a condition or hint, by field."""
    values = [getattr(nest, field.name) for field in fields(nest)]
    return [shapes(v) if isinstance(v, Cond) else None if v is None else (v.shape, v.dtype) for v in values]
