"""The denoiser: the prior with its adaptor, evaluated at z_t, in training and in sampling.

    prediction = denoiser(z, t, conditions, seeds=...)                        in training
    prediction = denoiser(z, t, conditions, seeds=..., guidance=..., ...)     in sampling

The guidance branches of a step are evaluated in one call of the prior, their rows concatenated (`speed.batched`). A
trunk that reads the same in all branches runs once, and its features are repeated; a trunk that reads a branch's text,
pooled text or reference runs once on the rows of all branches, as the prior does. Branches with conditions or hints of
different shapes are evaluated one after another, and so are all branches after memory has run out.
Shapes: latents (B, C, h, w), of n branches (n B, C, h, w).
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
        reference: computes the reference that an adaptor may read next to the LQ.

    Attributes:
        batched: whether the guidance branches of a step are evaluated in one call of the prior.
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
        """The prediction at z_t and, for an adaptor with a reference, that reference (InstantIR's preview).

        Args:
            z_BCHW, t_B: noisy latents and their timesteps.
            conditions: the inputs of prior and adaptor.
            seeds: one per image.
            guidance: classifier-free guidance; None for the condition only.
            level: the step's noise level, for the guidance scale.
            strength: scale of the adaptor's edits, a number or one per image: 0 is the prior alone, 1 the full edits.
            steer: how the fidelity guidance steers the adaptor in this step.
            tiles: the tiles of a large latent.
            preview: compute the reference even if the adaptor is off.
        """
        strength = strength * steer.strength
        branches: Sequence[Branch] = [Branch(weight=1.0, cond=conditions.cond, hint=conditions.hint)]
        if guidance is not None and level is not None:
            branches = guidance.branches(cond=conditions.cond, null=conditions.null, hint=conditions.hint, level=level)
        references: list[tuple[Hint, Tensor | None]] = [(conditions.hint, None)]
        if _is_active(strength) or preview:
            distinct = branches if self.reference.per_branch else branches[:1]
            references = [
                self.add_reference(z_BCHW, t_B, branch.cond, conditions.hint, seeds=seeds, steer=steer, tiles=tiles)
                for branch in distinct
            ]
        branches = [replace(b, hint=hint) for b, (hint, _) in zip(branches, cycle(references), strict=False)]
        if tiles is None:
            out_BCHW = self.weigh(z_BCHW, t_B, branches, strength=strength)
        else:
            out_BCHW = tiles.blend(
                lambda part: self.weigh(
                    part.crop(z_BCHW), part.per_tile(t_B), part.branches(branches), strength=part.per_tile(strength)
                ),
                z_BCHW,
            )
        return Prediction(out_BCHW=out_BCHW, preview_BCHW=references[0][1])

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
        """The hint with this step's reference, if the adaptor reads one, and the reference before blending.

        Args:
            z_BCHW, t_B: noisy latents and their timesteps.
            cond: the branch's condition.
            hint: the adaptor's inputs.
            seeds: one per image.
            steer: blends the reference with the LQ latent, or replaces it by that.
            tiles: the tiles of a large latent.
        """
        if not self.adaptor.reference:
            return hint, None
        if steer.lq_reference:
            return replace(hint, reference_BCHW=hint.lq_latent_BCHW), hint.lq_latent_BCHW
        assert hint.lq_latent_BCHW is not None  # an adaptor with a reference reads it too
        reference_BCHW = self.reference(self.backbone, self.adaptor, z_BCHW, t_B, cond, hint, seeds=seeds, tiles=tiles)
        blend = steer.blend
        blend_B = blend if isinstance(blend, Tensor) else torch.full((len(reference_BCHW),), float(blend))
        difference_BCHW = hint.lq_latent_BCHW - reference_BCHW
        # InstantIR, Algorithm 1, line 5
        blended_BCHW = reference_BCHW + blend_B.to(reference_BCHW)[:, None, None, None] * difference_BCHW
        return replace(hint, reference_BCHW=blended_BCHW), reference_BCHW

    def weigh(
        self, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float = 1.0
    ) -> Tensor:
        """The weighted sum of the branches' predictions.

        Raises:
            ValueError: for no branches.
        """
        if not branches:
            raise ValueError("guidance gave no branches")
        predictions = self.predict(z_BCHW, t_B, branches, strength=strength)
        total_BCHW = branches[0].weight * predictions[0]
        for branch, out_BCHW in zip(branches[1:], predictions[1:], strict=True):
            total_BCHW = total_BCHW + branch.weight * out_BCHW
        return total_BCHW

    def predict(
        self, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float = 1.0
    ) -> Sequence[Tensor]:
        """The prediction of each branch, with the fewest calls of trunk and prior."""
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
        """The predictions of branches of the same shapes, with one call of trunk and prior."""
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
        """The predictions of branches, one call of the prior each; the trunk runs only if its inputs change."""
        predictions: list[Tensor] = []
        controls, source = None, None  # the trunk's features, and the branch that they are of
        for branch in branches:
            if _is_active(strength) and (source is None or not shares_control(self.adaptor, [source, branch])):
                controls, source = self.adaptor.control(z_BCHW, t_B, branch.hint, branch.cond), branch
            predictions.append(self._evaluate(z_BCHW, t_B, branch.cond, controls, strength))
        return predictions

    def _evaluate(self, z_BCHW: Tensor, t_B: Tensor, cond: Cond, controls: Any, strength: Tensor | float) -> Tensor:
        """The prior's prediction with the adaptor's edits, scaled by `strength`."""
        if not _is_active(strength):  # the trunk did not run
            return self.backbone(z_BCHW, t_B, cond)
        full = isinstance(strength, float | int) and strength == 1.0
        at = self.adaptor.fuse if full else scale_edit(self.adaptor.fuse, strength)
        return self.backbone(z_BCHW, t_B, cond, at=at, carry=controls)


def same_shapes(branches: Sequence[Branch]) -> bool:
    """Whether the conditions and hints of all branches have the same shapes."""
    first = branches[0]
    return all(shapes(b.cond) == shapes(first.cond) and shapes(b.hint) == shapes(first.hint) for b in branches)


def shares_control(adaptor: Adaptor, branches: Sequence[Branch]) -> bool:
    """Whether the adaptor reads the same hint and the same tensors of the condition in all branches."""
    first, *others = branches
    read = adaptor.reads(first.cond)
    return all(
        b.hint is first.hint and all(x is y for x, y in zip(adaptor.reads(b.cond), read, strict=True)) for b in others
    )


def stack_hints(hints: Sequence[Hint], *, rows: int) -> Hint:
    """One hint with the rows of all branches."""
    if all(hint is hints[0] for hint in hints):
        return repeat(hints[0], len(hints), rows=rows)
    return replace(join(hints), lq_BCHW=torch.cat([hint.lq_BCHW for hint in hints]))


def scale_edit(edit: Edit, strength: Tensor | float) -> Edit:
    """The scaled edit h + strength (edit(h) - h): the control scale of SUPIR's release, for any fusion.

    Args:
        edit: the edit.
        strength: a number, or one per image.
    """

    def at(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        edited_BCHW, carry = edit(tap, h_BCHW, temb_BD, carry)
        if edited_BCHW is h_BCHW:
            return h_BCHW, carry
        scale = strength if not isinstance(strength, Tensor) else strength.to(h_BCHW)[:, None, None, None]
        return h_BCHW + scale * (edited_BCHW - h_BCHW), carry

    return at


def autocast(backbone: Backbone) -> AbstractContextManager[Any]:
    """Autocast to the dtype of a prior in float16 or bfloat16, since the adaptor is in float32; else a null context."""
    weight = next(backbone.denoiser.parameters())
    if weight.dtype.itemsize >= torch.float32.itemsize or weight.is_meta:
        return nullcontext()
    return torch.autocast(weight.device.type, dtype=weight.dtype)


def _is_active(strength: Tensor | float) -> bool:
    """Whether the adaptor has any effect."""
    return isinstance(strength, Tensor) or strength != 0.0
