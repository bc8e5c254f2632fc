"""The conditioner: from a batch to the inputs of prior and adaptor, through prompts, text encoders and the LQ encoder.

Shapes: images (B, 3, H, W) in [0, 1], tokens (B, L, D), latents (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from restore_lab.methods.rows import join
from restore_lab.samplers.tiling import TileBatch
from restore_lab.types import Batch, Cond, Hint, Prompt

if TYPE_CHECKING:
    from restore_lab.adaptors.control import Adaptor
    from restore_lab.adaptors.lq_encoder import CodecEncoder, RobustEncoder
    from restore_lab.backbones.base import Backbone
    from restore_lab.prompts.slots import PromptSources
    from restore_lab.samplers.tiling import Tiles

    Size = tuple[int, int]

StageName = Literal["words", "codec", "prior", "none"]  # groups of a method's parts that are needed at the same time


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The inputs of prior and adaptor, besides the noisy latents.

    Attributes:
        cond, null: the conditions of the two guidance branches; `null` is `cond` if both read the same.
        hint: the inputs of the adaptor.
    """

    cond: Cond
    null: Cond
    hint: Hint


class Conditioner:
    """Computes the `Conditions` of a batch. A method with other inputs overrides `cond`, `null` or `prompt_hint`.

    Args:
        backbone: the prior, for its text encoders and codec.
        adaptor: only the inputs that it reads are computed.
        prompts: the prompt slots.
        lq_encoder: encodes the LQ to a latent.
        reads_hq: whether the adaptor's reference is the latent of the original.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        adaptor: Adaptor,
        prompts: PromptSources,
        lq_encoder: CodecEncoder | RobustEncoder,
        reads_hq: bool = False,
    ) -> None:
        self.backbone, self.adaptor, self.prompts = backbone, adaptor, prompts
        self.lq_encoder, self.reads_hq = lq_encoder, reads_hq

    def __call__(
        self,
        batch: Batch,
        prompt: Prompt | None = None,
        *,
        guided: bool = True,
        tiles: Tiles | None = None,
        stage: Callable[[StageName], None] = lambda name: None,
    ) -> Conditions:
        """The conditions of a batch; its sides are multiples of the prior's.

        With tiles, the size conditioning is that of a tile. If each tile has its own prompt, the conditions and the
        hint's prompt features have one row per tile: for each window the rows of all images.

        Args:
            batch: images with their LQ.
            prompt: the prompts; None reads the prompt slots as at test.
            guided: whether `null` is needed; otherwise it is `cond`.
            tiles: the tiles of a large latent.
            stage: called with the group of parts that is needed next, "words" or "codec".
        """
        lq_BCHW = batch.lq_BCHW
        assert lq_BCHW is not None
        stage("words")
        if tiles is None or tiles.settings.words == "image":
            size = image_size(lq_BCHW) if tiles is None else tiles.pixels
            conditions = self._encode(batch, prompt, size, guided=guided)
        else:
            conditions = self._encode_per_tile(batch, tiles, guided=guided)
        stage("codec")
        latents = self.latents(lq_BCHW, hq_BCHW=batch.hq_BCHW)
        return replace(conditions, hint=replace(conditions.hint, lq_BCHW=lq_BCHW, **latents))

    def _encode(self, batch: Batch, prompt: Prompt | None, size: Size, *, guided: bool) -> Conditions:
        """The conditions without the hint's latents."""
        lq_BCHW = batch.lq_BCHW
        assert lq_BCHW is not None
        prompt = self.prompts(batch, training=False) if prompt is None else prompt
        cond = self.cond(prompt, size)
        null = self.null(prompt, size, cond) if guided else cond
        return Conditions(cond=cond, null=null, hint=self.prompt_hint(lq_BCHW, prompt, size))

    def _encode_per_tile(self, batch: Batch, tiles: Tiles, *, guided: bool) -> Conditions:
        """The conditions without the hint's latents, with one row per tile."""
        assert batch.lq_BCHW is not None
        parts: list[Conditions] = []
        for first in range(0, len(tiles.windows), tiles.settings.batch):
            chosen = range(first, min(first + tiles.settings.batch, len(tiles.windows)))
            part = self._encode(crop_tiles(batch, tiles, chosen), None, tiles.pixels, guided=guided)
            parts.append(replace(part, hint=replace(part.hint, lq_BCHW=batch.lq_BCHW)))  # frees the crops
        cond, same = join([part.cond for part in parts]), all(part.cond is part.null for part in parts)
        null = cond if same else join([part.null for part in parts])
        return Conditions(cond=cond, null=null, hint=join([part.hint for part in parts]))

    def cond(self, prompt: Prompt, size: Size) -> Cond:
        """The prior's condition: the semantic prompt and, with a visual stream, the image encoder's features."""
        return self.stream(self.backbone.embed(prompt.semantic, size), prompt.visual_BLD)

    def null(self, prompt: Prompt, size: Size, cond: Cond) -> Cond:
        """The condition of the other guidance branch, the negative prompt; `cond` itself if both read the same."""
        same = prompt.negative == prompt.semantic
        if same and self.adaptor.stream is None:
            return cond
        return self.stream(cond if same else self.backbone.embed(prompt.negative, size), prompt.visual_null_BLD)

    def stream(self, cond: Cond, visual_BND: Tensor | None) -> Cond:
        """The condition with the visual stream's tokens, if the adaptor has a stream."""
        stream = self.adaptor.stream
        if stream is None or visual_BND is None:
            return cond
        return replace(cond, visual_BLD=stream(visual_BND), visual_BND=visual_BND)

    def hint(self, lq_BCHW: Tensor, prompt: Prompt, *, hq_BCHW: Tensor | None = None) -> Hint:
        """The adaptor's inputs: the LQ, features of the prompts, and latents.

        Args:
            lq_BCHW, prompt: degraded images and their prompts.
            hq_BCHW: the originals, if known; a reference may be their latent.
        """
        hint = self.prompt_hint(lq_BCHW, prompt, image_size(lq_BCHW))
        return replace(hint, **self.latents(lq_BCHW, hq_BCHW=hq_BCHW))

    def prompt_hint(self, lq_BCHW: Tensor, prompt: Prompt, size: Size) -> Hint:
        """The hint without latents: the LQ and the encoded prompts."""
        adaptor, backbone = self.adaptor, self.backbone
        instruction, empty = None, None
        if adaptor.text in ("instruction", "none"):
            texts = prompt.instruction if adaptor.text == "instruction" else ("",) * len(lq_BCHW)
            instruction = backbone.embed(texts, size).tokens_BLD
        if adaptor.reference:
            empty = backbone.embed(("",) * len(lq_BCHW), size)
        return Hint(
            lq_BCHW=lq_BCHW,
            instruction_BLD=instruction,
            visual_BND=prompt.visual_BLD,
            visual_null_BND=prompt.visual_null_BLD,
            empty=empty,
        )

    def latents(self, lq_BCHW: Tensor, *, hq_BCHW: Tensor | None) -> dict[str, Tensor | None]:
        """The hint's latents that the adaptor reads; None for the others."""
        adaptor, codec = self.adaptor, self.backbone.codec
        needs_hq = adaptor.reference and self.reads_hq
        return {
            "lq_latent_BCHW": self.lq_encoder(lq_BCHW, codec) if adaptor.lq_latent else None,
            "hq_latent_BCHW": codec.encode(hq_BCHW) if needs_hq and hq_BCHW is not None else None,
        }


def image_size(image_BCHW: Tensor) -> Size:
    """The (height, width) of a batch of images."""
    return image_BCHW.shape[-2], image_BCHW.shape[-1]


def crop_tiles(batch: Batch, tiles: Tiles, chosen: range) -> Batch:
    """The batch of some tiles of a padded batch, with keys from image and position."""
    part, count, scale = TileBatch(tiles, chosen, len(batch)), len(chosen), tiles.compression
    assert batch.lq_BCHW is not None
    positions = [tiles.windows[number] for number in chosen]
    return Batch(
        lq_BCHW=part.crop(batch.lq_BCHW, scale=scale),
        hq_BCHW=None if batch.hq_BCHW is None else part.crop(batch.hq_BCHW, scale=scale),
        caption=batch.caption * count,
        key=tuple(f"{key}@{scale * left},{scale * top}" for top, left in positions for key in batch.key),
        seed=batch.seed * count,
        recipe=batch.recipe * count,
    )
