"""The guidance branches of a step in one call of the model, their rows one below the other. `speed.batched=true|false`.

A trunk that reads the same in all branches runs once, and its features' rows are repeated; one that reads a branch's
own words, pooled text or reference runs once over the rows of all branches, as the prior does. Branches whose
conditions or hints differ in shape go one after another; so do all once memory runs out. Shapes: latents (B, C, h, w),
for n branches (n B, C, h, w).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restore_lab.methods.parts import mixed, partway
from restore_lab.methods.pipeline import joined
from restore_lab.samplers.guidance import Branch
from restore_lab.system.memory import let_go, out_of_memory

if TYPE_CHECKING:
    from restore_lab.methods.module import RestorationModule
    from restore_lab.types import Cond, Hint

log = logging.getLogger(__name__)


def predictions(
    module: RestorationModule,
    z_BCHW: Tensor,
    t_B: Tensor,
    branches: Sequence[Branch],
    *,
    strength: Tensor | float,
) -> Sequence[Tensor]:
    """What the model predicts in each branch; arguments as `RestorationModule.predict` has them."""
    with mixed(module.backbone):
        if module.batched and len(branches) > 1 and alike(branches):
            try:
                return _together(module, z_BCHW, t_B, branches, strength=strength)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            let_go()
            module.batched = False
            log.warning("out of memory: guidance branches one after another from here on")
        return _in_turn(module, z_BCHW, t_B, branches, strength=strength)


def alike(branches: Sequence[Branch]) -> bool:
    """Whether the conditions and the hints of branches are of one shape."""
    first = branches[0]
    return all(_shapes(b.cond) == _shapes(first.cond) and _shapes(b.hint) == _shapes(first.hint) for b in branches)


def shared(adaptor: Any, branches: Sequence[Branch]) -> bool:
    """Whether the adaptor reads the same in all branches: one hint, and one tensor of each of the conditions'."""
    first, *others = branches
    read = adaptor.reads(first.cond)
    return all(
        b.hint is first.hint and all(x is y for x, y in zip(adaptor.reads(b.cond), read, strict=True)) for b in others
    )


def in_rows(hints: Sequence[Hint], *, rows: int) -> Hint:
    """The hints of branches as one of all their rows."""
    if all(hint is hints[0] for hint in hints):
        return repeated(hints[0], len(hints), rows=rows)
    return replace(joined(hints), lq_BCHW=torch.cat([hint.lq_BCHW for hint in hints]))


def repeated(value: Any, count: int, *, rows: int) -> Any:
    """A nest of mappings, sequences and nouns with every tensor of so many rows `count` times over."""
    if isinstance(value, Tensor):
        whole = value.ndim > 0 and len(value) == rows
        return value.repeat(count, *[1] * (value.ndim - 1)) if whole else value
    if isinstance(value, Mapping):
        return {key: repeated(entry, count, rows=rows) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(repeated(entry, count, rows=rows) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        held: Any = value
        return replace(held, **{f.name: repeated(getattr(held, f.name), count, rows=rows) for f in fields(held)})
    return value


def _shapes(noun: Any) -> list[Any]:
    values = [getattr(noun, field.name) for field in fields(noun)]
    return [_shapes(v) if is_dataclass(v) else None if v is None else (v.shape, v.dtype) for v in values]


def _together(
    module: RestorationModule, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float
) -> Sequence[Tensor]:
    count, rows = len(branches), len(z_BCHW)
    cond = joined([branch.cond for branch in branches])
    many_BCHW, many_B = repeated(z_BCHW, count, rows=rows), repeated(t_B, count, rows=rows)
    controls = None
    if _acts(strength):
        if shared(module.adaptor, branches):
            controls = module.adaptor.control(z_BCHW, t_B, branches[0].hint, branches[0].cond)
            controls = repeated(controls, count, rows=rows)
        else:
            hint = in_rows([branch.hint for branch in branches], rows=rows)
            controls = module.adaptor.control(many_BCHW, many_B, hint, cond)
    strength = repeated(strength, count, rows=rows)
    return _asked(module, many_BCHW, many_B, cond, controls, strength).split(rows)


def _in_turn(
    module: RestorationModule, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float
) -> Sequence[Tensor]:
    found: list[Tensor] = []
    controls, known = None, None
    for branch in branches:
        if _acts(strength) and (known is None or not shared(module.adaptor, [known, branch])):
            controls, known = module.adaptor.control(z_BCHW, t_B, branch.hint, branch.cond), branch
        found.append(_asked(module, z_BCHW, t_B, branch.cond, controls, strength))
    return found


def _asked(
    module: RestorationModule, z_BCHW: Tensor, t_B: Tensor, cond: Cond, controls: Any, strength: Tensor | float
) -> Tensor:
    """The prior's prediction, edited as far as `strength` says."""
    if not _acts(strength):  # there was no trunk to run, and perhaps no reference for it
        return module.backbone(z_BCHW, t_B, cond)
    whole = isinstance(strength, float | int) and strength == 1.0
    at = module.adaptor.fuse if whole else partway(module.adaptor.fuse, strength)
    return module.backbone(z_BCHW, t_B, cond, at=at, carry=controls)


def _acts(strength: Tensor | float) -> bool:
    return isinstance(strength, Tensor) or strength != 0.0
