"""What an adaptor with a reference reads next to the LQ. `adaptor/reference=...` (InstantIR, section 3.2, Table 2a).

preview: the prior in one step, with LoRA on, from z_t and what the image encoder sees, without words (`preview`), with
neither (`preview_unconditional`), or with the words too (`preview_prompt`); mean: the denoising mean of Eq. 2, LoRA
off; lq, hq: latents that stay. A preview goes through the consistency boundary that it was distilled with.
`preview_noised` adds noise of the current level to it (section 4.4, "Fresh Noise to Restoration Previews").
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from restore_lab.objectives.consistency import consistency_function
from restore_lab.random import noise_like, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from restore_lab.adaptors.control import Adaptor
    from restore_lab.backbones.base import Backbone
    from restore_lab.samplers.tiling import Tiles
    from restore_lab.types import Cond, Hint

KINDS = ("lq", "hq", "mean", "preview")


class Reference:
    """A source of references.

    Args:
        kind: "lq", "hq", "mean" or "preview".
        dcp: show a preview what the image encoder sees in the LQ; false shows it what it sees in a black image.
        prompt: tell a preview the words; each guidance branch then has a preview of its own, from its own words and
            what the image encoder sees for it (InstantIR's release).
        fresh_noise: noise the reference to the current level.
        blended: share of the images in training whose reference moves towards the LQ's latent, so that the adaptor
            knows what AdaRes will show it; the paper says nothing of it.

    Raises:
        ValueError: for an unknown kind or a share outside [0, 1].
    """

    def __init__(
        self,
        *,
        kind: Literal["lq", "hq", "mean", "preview"],
        dcp: bool = True,
        prompt: bool = False,
        fresh_noise: bool = False,
        blended: float = 0.0,
    ) -> None:
        if not 0.0 <= blended <= 1.0:
            raise ValueError(f"adaptor_reference.blended={blended} is a share of the images; give a number from 0 to 1")
        if kind not in KINDS:
            raise ValueError(f"adaptor_reference.kind={kind!r} is not known; one of {', '.join(KINDS)}")
        self.kind, self.dcp, self.prompt, self.fresh_noise, self.blended = kind, dcp, prompt, fresh_noise, blended

    @property
    def per_branch(self) -> bool:
        """Whether each branch of the guidance has a reference of its own."""
        return self.kind == "preview" and self.prompt

    def draw_blend(self, seeds: Sequence[int]) -> Tensor:
        """How far each training image's reference moves to the LQ's latent: delta uniform in [0, 2], cut to 1."""
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
            hint: what the adaptor may look at.
            seeds: one per image.
            tiles: of a large latent.

        Raises:
            ValueError: if what the kind needs is not there.
        """
        if tiles is None or self.kind in ("lq", "hq"):
            found_BCHW = self._clean_latent(backbone, adaptor, z_BCHW, t_B, cond, hint)
        else:
            found_BCHW = tiles.blend(
                lambda part: self._clean_latent(
                    backbone, adaptor, part.crop(z_BCHW), part.per_tile(t_B), part.cond(cond), part.hint(hint)
                ),
                z_BCHW,
            )
        if not self.fresh_noise:
            return found_BCHW
        noise_BCHW = noise_like(found_BCHW, seeds, f"fresh noise at {float(t_B[0]):.3f}")
        return backbone.schedule.add_noise(found_BCHW, noise_BCHW, t_B)

    def _clean_latent(
        self, backbone: Backbone, adaptor: Adaptor, z_BCHW: Tensor, t_B: Tensor, cond: Cond, hint: Hint
    ) -> Tensor:
        if self.kind == "lq":
            return _require(hint.lq_latent_BCHW, "the LQ's latent; set adaptor.lq_latent=true")
        if self.kind == "hq":
            return _require(hint.hq_latent_BCHW, "the original, which only an evaluation has")
        if self.kind == "mean":
            out_BCHW = backbone(z_BCHW, t_B, cond)
            return backbone.schedule.to_x0(out_BCHW, z_BCHW, t_B)
        seen_BND = hint.visual_BND if self.dcp else hint.visual_null_BND
        if self.prompt:
            return preview(backbone, adaptor, z_BCHW, t_B, cond, cond.visual_BND if self.dcp else seen_BND)
        return preview(backbone, adaptor, z_BCHW, t_B, hint.empty or cond, seen_BND)


def preview(
    backbone: Backbone, adaptor: Adaptor, z_BCHW: Tensor, t_B: Tensor, cond: Cond, seen_BND: Tensor | None
) -> Tensor:
    """Psi(z_t, t, c_lq): one step of the prior with LoRA on, to a clean latent.

    Args:
        backbone, adaptor: the prior and its adaptor.
        z_BCHW: noisy latents.
        t_B: timesteps.
        cond: words; the visual tokens are made here, since LoRA reaches their resampler too.
        seen_BND: what the image encoder sees.
    """
    with nullcontext() if adaptor.lora is None else adaptor.lora.switch(True):
        if adaptor.stream is not None:
            seen_BND = _require(seen_BND, "what an image encoder sees; set prompt/visual=dino")
            cond = replace(cond, visual_BLD=adaptor.stream(seen_BND))
        out_BCHW = backbone(z_BCHW, t_B, cond)
    return consistency_function(out_BCHW, z_BCHW, t_B, schedule=backbone.schedule)


def _require(value: Tensor | None, what: str) -> Tensor:
    if value is None:
        raise ValueError(f"this reference needs {what}")
    return value
