"""The guidance branches of a step in one call of the model, their rows one below the other. `speed.batched=true|false`.

A trunk that reads no semantic text runs once, and its features' rows are repeated; one that reads it runs once over the
rows of all branches, as the prior does. Branches whose conditions differ in shape, or whose hints differ, go one after
another; so do all from the moment that memory runs out. Shapes: latents (B, C, h, w), for n branches (n B, C, h, w).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from restore_lab.machine.memory import let_go, out_of_memory
from restore_lab.methods.parts import mixed, partway
from restore_lab.methods.restoring import joined
from restore_lab.samplers.guidance import Branch

if TYPE_CHECKING:
    from restore_lab.methods.base import RestorationModule
    from restore_lab.types import Cond

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
    """Whether branches look at one hint, and their conditions are of one shape."""
    first = branches[0]
    return all(b.hint is first.hint and _shapes(b.cond) == _shapes(first.cond) for b in branches)


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


def _shapes(cond: Cond) -> list[Any]:
    values = [getattr(cond, field.name) for field in fields(cond)]
    return [None if value is None else (value.shape, value.dtype) for value in values]


def _together(
    module: RestorationModule, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float
) -> Sequence[Tensor]:
    count, rows, hint = len(branches), len(z_BCHW), branches[0].hint
    cond = joined([branch.cond for branch in branches])
    many_BCHW, many_B = repeated(z_BCHW, count, rows=rows), repeated(t_B, count, rows=rows)
    controls = None
    if _acts(strength):
        if module.adaptor.text == "semantic":
            controls = module.adaptor.control(many_BCHW, many_B, repeated(hint, count, rows=rows), cond)
        else:
            controls = module.adaptor.control(z_BCHW, t_B, hint, branches[0].cond)
            controls = repeated(controls, count, rows=rows)
    strength = repeated(strength, count, rows=rows)
    return _asked(module, many_BCHW, many_B, cond, controls, strength).split(rows)


def _in_turn(
    module: RestorationModule, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float
) -> Sequence[Tensor]:
    found: list[Tensor] = []
    controls, hint = None, None
    for branch in branches:
        changed: bool = module.adaptor.text == "semantic" or branch.hint is not hint
        if _acts(strength) and changed:
            controls, hint = module.adaptor.control(z_BCHW, t_B, branch.hint, branch.cond), branch.hint
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
