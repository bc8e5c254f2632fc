"""The reference that an adaptor reads next to the LQ. `adaptor/reference=...` (InstantIR, section 3.2, Table 2a).

preview: one step of the prior with LoRA from z_t to a clean latent, conditioned on the image encoder's features
(`preview`), on nothing (`preview_unconditional`), or on features and prompt (`preview_prompt`), through the consistency
function of its distillation. mean: the denoising mean of Eq. 2, without LoRA. lq, hq: constant latents.
`preview_noised` adds noise of the current level to the preview (section 4.4, "Fresh Noise to Restoration Previews").
Shapes: latents (B, C, h, w), features (B, N, D).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import Share
from restore_lab.config.validate import check_arguments
from restore_lab.objectives.consistency import consistency_function
from restore_lab.random import noise_like, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from restore_lab.adaptors.control import Adaptor
    from restore_lab.backbones.base import Backbone
    from restore_lab.samplers.tiling import Tiles
    from restore_lab.types import Cond, Hint

ReferenceKind = Literal["lq", "hq", "mean", "preview"]


@check_arguments
class Reference:
    """Computes references.

    Args:
        kind: "lq", "hq", "mean" or "preview".
        dcp: condition a preview on the image encoder's features of the LQ; false uses those of a black image.
        prompt: condition a preview on the prompt too; then each guidance branch has a separate preview, from its
            prompt and its features (InstantIR's release).
        fresh_noise: add noise of the current level to the reference.
        blended: share of the training images whose reference is blended with the LQ latent, as AdaRes does in
            sampling; not in the paper.

    """

    def __init__(
        self,
        *,
        kind: ReferenceKind,
        dcp: bool = True,
        prompt: bool = False,
        fresh_noise: bool = False,
        blended: Share = 0.0,
    ) -> None:
        self.kind, self.dcp, self.prompt, self.fresh_noise, self.blended = kind, dcp, prompt, fresh_noise, blended

    @property
    def per_branch(self) -> bool:
        """Whether each guidance branch has a separate reference."""
        return self.kind == "preview" and self.prompt

    def draw_blend(self, seeds: Sequence[int]) -> Tensor:
        """The blend weight per training image, (B,): for a share `blended`, uniform in [0, 2] clamped to 1; else 0."""
        delta_B = (2 * uniform(seeds, "blend")).clamp(max=1.0)
        return delta_B * (uniform(seeds, "blended") < self.blended)

    @torch.no_grad()
    def __call__(
        self,
        backbone: Backbone,
        adaptor: Adaptor,
        z_BCHW: Tensor,
        t_B: Tensor,
        cond: Cond,
        hint: Hint,
        *,
        seeds: Sequence[int],
        tiles: Tiles | None = None,
    ) -> Tensor:
        """The reference at z_t, a clean latent (or a noisy one with `fresh_noise`).

        Args:
            backbone, adaptor: the prior and its adaptor.
            z_BCHW: noisy latents.
            t_B: timesteps.
            cond: the branch's condition.
            hint: the adaptor's inputs.
            seeds: one per image.
            tiles: the tiles of a large latent.

        Raises:
            ValueError: if the hint lacks an input of this kind of reference.
        """
        if tiles is None or self.kind in ("lq", "hq"):
            reference_BCHW = self._clean_latent(backbone, adaptor, z_BCHW, t_B, cond, hint)
        else:
            reference_BCHW = tiles.blend(
                lambda part: self._clean_latent(
                    backbone, adaptor, part.crop(z_BCHW), part.per_tile(t_B), part.cond(cond), part.hint(hint)
                ),
                z_BCHW,
            )
        if not self.fresh_noise:
            return reference_BCHW
        noise_BCHW = noise_like(reference_BCHW, seeds, f"fresh noise at {float(t_B[0]):.3f}")
        return backbone.schedule.add_noise(reference_BCHW, noise_BCHW, t_B)

    def _clean_latent(
        self, backbone: Backbone, adaptor: Adaptor, z_BCHW: Tensor, t_B: Tensor, cond: Cond, hint: Hint
    ) -> Tensor:
        """The reference without fresh noise."""
        if self.kind == "lq":
            return _require(hint.lq_latent_BCHW, "the LQ's latent; set adaptor.lq_latent=true")
        if self.kind == "hq":
            return _require(hint.hq_latent_BCHW, "the original, which only an evaluation has")
        if self.kind == "mean":
            out_BCHW = backbone(z_BCHW, t_B, cond)
            return backbone.schedule.to_x0(out_BCHW, z_BCHW, t_B)  # InstantIR, Eq. 2
        features_BND = hint.visual_BND if self.dcp else hint.visual_null_BND
        if self.prompt:
            return preview(backbone, adaptor, z_BCHW, t_B, cond, cond.visual_BND if self.dcp else features_BND)
        return preview(backbone, adaptor, z_BCHW, t_B, hint.empty or cond, features_BND)


def preview(
    backbone: Backbone, adaptor: Adaptor, z_BCHW: Tensor, t_B: Tensor, cond: Cond, features_BND: Tensor | None
) -> Tensor:
    """Psi(z_t, t, c_lq), a clean latent: one step of the prior with LoRA (InstantIR, Algorithm 1, line 4).

    Args:
        backbone, adaptor: the prior and its adaptor.
        z_BCHW: noisy latents.
        t_B: timesteps.
        cond: the text's condition; its visual tokens are computed here, since LoRA also changes their resampler.
        features_BND: the image encoder's features.
    """
    with nullcontext() if adaptor.lora is None else adaptor.lora.switch(True):
        if adaptor.stream is not None:
            features_BND = _require(features_BND, "what an image encoder sees; set prompt/visual=dino")
            cond = replace(cond, visual_BLD=adaptor.stream(features_BND))
        out_BCHW = backbone(z_BCHW, t_B, cond)
    return consistency_function(out_BCHW, z_BCHW, t_B, schedule=backbone.schedule)


def _require(value: Tensor | None, what: str) -> Tensor:
    """The value, or a ValueError that says what is missing."""
    if value is None:
        raise ValueError(f"this reference needs {what}")
    return value
