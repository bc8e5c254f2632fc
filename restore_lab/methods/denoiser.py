"""The denoiser: the prior with its adaptor, evaluated at z_t, in training as in sampling.

    prediction = denoiser(z, t, conditions, seeds=...)                        a training step
    prediction = denoiser(z, t, conditions, seeds=..., guidance=..., ...)     a step of sampling

The guidance branches of a step go through the prior in one call, their rows one below the other (`speed.batched`). A
trunk that reads the same in all branches runs once, and its features' rows are repeated; one that reads a branch's own
words, pooled text or reference runs once over the rows of all branches, as the prior does. Branches whose conditions or
hints differ in shape go one after another; so do all once memory runs out. Shapes: latents (B, C, h, w), for n branches
(n B, C, h, w).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restore_lab.methods.rows import join, repeat, shapes
from restore_lab.samplers.fidelity.base import Prediction, Steer
from restore_lab.samplers.guidance import Branch
from restore_lab.system.memory import empty_cache, out_of_memory
from restore_lab.types import Edit, Tap

if TYPE_CHECKING:
    from restore_lab.adaptors.control import Adaptor
    from restore_lab.backbones.base import Backbone
    from restore_lab.methods.conditioning import Conditions
    from restore_lab.methods.reference import Reference
    from restore_lab.samplers.guidance import ClassifierFree
    from restore_lab.samplers.level import Level
    from restore_lab.samplers.tiling import Tiles
    from restore_lab.types import Cond, Hint

log = logging.getLogger(__name__)
NO_STEER = Steer()


class Denoiser:
    """The prior with its adaptor.

    Args:
        backbone: the prior.
        adaptor: edits the prior's features.
        reference: what an adaptor with a reference reads next to the LQ.

    Attributes:
        batched: whether the guidance branches of a step go through the prior in one call.
    """

    def __init__(self, backbone: Backbone, adaptor: Adaptor, *, reference: Reference) -> None:
        self.backbone, self.adaptor, self.reference = backbone, adaptor, reference
        self.batched = True

    def __call__(
        self,
        z_BCHW: Tensor,
        t_B: Tensor,
        conditions: Conditions,
        *,
        seeds: Sequence[int],
        guidance: ClassifierFree | None = None,
        level: Level | None = None,
        strength: Tensor | float = 1.0,
        steer: Steer = NO_STEER,
        tiles: Tiles | None = None,
        preview: bool = False,
    ) -> Prediction:
        """The prediction at z_t, and the preview that the adaptor took as reference, if it takes one.

        Args:
            z_BCHW, t_B: noisy latents and their timesteps.
            conditions: what prior and adaptor read.
            seeds: one per image.
            guidance: classifier-free guidance; None for the condition only.
            level: where the step stands, for the guidance's scale.
            strength: how far the adaptor's edits go, a number or one per image: 0 is the plain prior, 1 the edits as
                they are.
            steer: how the step's fidelity steers the adaptor.
            tiles: those of a large latent.
            preview: whether the preview is read though no edit reads it.
        """
        strength = strength * steer.strength
        branches: Sequence[Branch] = [Branch(weight=1.0, cond=conditions.cond, hint=conditions.hint)]
        if guidance is not None and level is not None:
            branches = guidance.branches(cond=conditions.cond, null=conditions.null, hint=conditions.hint, level=level)
        found: list[tuple[Hint, Tensor | None]] = [(conditions.hint, None)]
        if _is_active(strength) or preview:
            own = branches if self.reference.per_branch else branches[:1]
            step: dict[str, Any] = {"seeds": seeds, "steer": steer, "tiles": tiles}
            found = [self.add_reference(z_BCHW, t_B, branch.cond, conditions.hint, **step) for branch in own]
        branches = [replace(b, hint=hint) for b, (hint, _) in zip(branches, cycle(found), strict=False)]
        if tiles is None:
            out_BCHW = self.weigh(z_BCHW, t_B, branches, strength=strength)
        else:
            out_BCHW = tiles.blend(
                lambda part: self.weigh(
                    part.crop(z_BCHW), part.per_tile(t_B), part.branches(branches), strength=part.per_tile(strength)
                ),
                z_BCHW,
            )
        return Prediction(out_BCHW=out_BCHW, preview_BCHW=found[0][1])

    def add_reference(
        self,
        z_BCHW: Tensor,
        t_B: Tensor,
        cond: Cond,
        hint: Hint,
        *,
        seeds: Sequence[int],
        steer: Steer = NO_STEER,
        tiles: Tiles | None = None,
    ) -> tuple[Hint, Tensor | None]:
        """The hint with the reference of this step, if the adaptor reads one, and that reference before blending.

        Args:
            z_BCHW, t_B, seeds: where the step stands, and one seed per image.
            cond, hint, tiles: the branch's condition, what the adaptor reads, and the tiles of a large latent.
            steer: moves the reference towards the LQ's latent (InstantIR, Algorithm 1, line 5), or takes that latent.
        """
        if not self.adaptor.reference:
            return hint, None
        if steer.lq_reference:
            return replace(hint, reference_BCHW=hint.lq_latent_BCHW), hint.lq_latent_BCHW
        found_BCHW = self.reference(self.backbone, self.adaptor, z_BCHW, t_B, cond, hint, seeds=seeds, tiles=tiles)
        blend = steer.blend
        blend_B = blend if isinstance(blend, Tensor) else torch.full((len(found_BCHW),), float(blend))
        blended_BCHW = found_BCHW + blend_B.to(found_BCHW)[:, None, None, None] * (hint.lq_latent_BCHW - found_BCHW)
        return replace(hint, reference_BCHW=blended_BCHW), found_BCHW

    def weigh(
        self, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float = 1.0
    ) -> Tensor:
        """The weighted sum of the branches' predictions.

        Raises:
            ValueError: without a branch.
        """
        if not branches:
            raise ValueError("guidance gave no branches")
        found = self.predict(z_BCHW, t_B, branches, strength=strength)
        total_BCHW = branches[0].weight * found[0]
        for branch, out_BCHW in zip(branches[1:], found[1:], strict=True):
            total_BCHW = total_BCHW + branch.weight * out_BCHW
        return total_BCHW

    def predict(
        self, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float = 1.0
    ) -> Sequence[Tensor]:
        """The prediction of each branch, with as few calls of trunk and prior as there can be."""
        with autocast(self.backbone):
            if self.batched and len(branches) > 1 and same_shapes(branches):
                try:
                    return self._predict_together(z_BCHW, t_B, branches, strength=strength)
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                empty_cache()
                self.batched = False
                log.warning("out of memory: guidance branches one after another from here on")
            return self._predict_in_turn(z_BCHW, t_B, branches, strength=strength)

    def _predict_together(
        self, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float
    ) -> Sequence[Tensor]:
        count, rows = len(branches), len(z_BCHW)
        cond = join([branch.cond for branch in branches])
        many_BCHW, many_B = repeat(z_BCHW, count, rows=rows), repeat(t_B, count, rows=rows)
        controls = None
        if _is_active(strength):
            if shares_control(self.adaptor, branches):
                controls = self.adaptor.control(z_BCHW, t_B, branches[0].hint, branches[0].cond)
                controls = repeat(controls, count, rows=rows)
            else:
                hint = stack_hints([branch.hint for branch in branches], rows=rows)
                controls = self.adaptor.control(many_BCHW, many_B, hint, cond)
        strength = repeat(strength, count, rows=rows)
        return self._evaluate(many_BCHW, many_B, cond, controls, strength).split(rows)

    def _predict_in_turn(
        self, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float
    ) -> Sequence[Tensor]:
        found: list[Tensor] = []
        controls, known = None, None
        for branch in branches:
            if _is_active(strength) and (known is None or not shares_control(self.adaptor, [known, branch])):
                controls, known = self.adaptor.control(z_BCHW, t_B, branch.hint, branch.cond), branch
            found.append(self._evaluate(z_BCHW, t_B, branch.cond, controls, strength))
        return found

    def _evaluate(self, z_BCHW: Tensor, t_B: Tensor, cond: Cond, controls: Any, strength: Tensor | float) -> Tensor:
        """The prior's prediction, edited as far as `strength` says."""
        if not _is_active(strength):  # there was no trunk to run, and perhaps no reference for it
            return self.backbone(z_BCHW, t_B, cond)
        whole = isinstance(strength, float | int) and strength == 1.0
        at = self.adaptor.fuse if whole else scale_edit(self.adaptor.fuse, strength)
        return self.backbone(z_BCHW, t_B, cond, at=at, carry=controls)


def same_shapes(branches: Sequence[Branch]) -> bool:
    """Whether the conditions and the hints of branches are of one shape."""
    first = branches[0]
    return all(shapes(b.cond) == shapes(first.cond) and shapes(b.hint) == shapes(first.hint) for b in branches)


def shares_control(adaptor: Any, branches: Sequence[Branch]) -> bool:
    """Whether the adaptor reads the same in all branches: one hint, and one tensor of each of the conditions'."""
    first, *others = branches
    read = adaptor.reads(first.cond)
    return all(
        b.hint is first.hint and all(x is y for x, y in zip(adaptor.reads(b.cond), read, strict=True)) for b in others
    )


def stack_hints(hints: Sequence[Hint], *, rows: int) -> Hint:
    """The hints of branches as one of all their rows."""
    if all(hint is hints[0] for hint in hints):
        return repeat(hints[0], len(hints), rows=rows)
    return replace(join(hints), lq_BCHW=torch.cat([hint.lq_BCHW for hint in hints]))


def scale_edit(edit: Edit, strength: Tensor | float) -> Edit:
    """The edit at a strength: h + strength (edit(h) - h), SUPIR's control scale for any fusion.

    Args:
        edit: the edit.
        strength: a number, or one per image.
    """

    def at(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        edited_BCHW, carry = edit(tap, h_BCHW, temb_BD, carry)
        if edited_BCHW is h_BCHW:
            return h_BCHW, carry
        part = strength if not isinstance(strength, Tensor) else strength.to(h_BCHW)[:, None, None, None]
        return h_BCHW + part * (edited_BCHW - h_BCHW), carry

    return at


def autocast(backbone: Backbone) -> AbstractContextManager[Any]:
    """Autocast to the type of a prior in float16 or bfloat16, where a float32 adaptor meets it; nothing for others."""
    weight = next(backbone.denoiser.parameters())
    if weight.dtype.itemsize >= torch.float32.itemsize or weight.is_meta:
        return nullcontext()
    return torch.autocast(weight.device.type, dtype=weight.dtype)


def _is_active(strength: Tensor | float) -> bool:
    return isinstance(strength, Tensor) or strength != 0.0
