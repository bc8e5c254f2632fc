"""The conditioner: from a batch to what prior and adaptor read of it, by prompts, text encoders and the LQ encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What prior and adaptor read.

    Attributes:
        cond, null: both halves of the guidance; `null` is `cond` where there is nothing to guide towards.
        hint: what the adaptor reads.
    """

    cond: Cond
    null: Cond
    hint: Hint


class Conditioner:
    """The way of a batch to its `Conditions`. A method that reads something else overrides `cond`, `null` or `prompt_hint`.

    Args:
        backbone: the prior, for its text encoders and codec.
        adaptor: what it reads is prepared, and nothing else.
        prompts: the prompt slots.
        lq_encoder: turns the LQ into a latent.
        reads_hq: whether the adaptor's reference is the original's latent.
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
        stage: Callable[[Any], None] = lambda name: None,
    ) -> Conditions:
        """The conditions of a batch whose sides the prior can take.

        With tiles the size that the prior reads is a tile's; where each tile has words of its own, conditions and what
        the hint holds of words have one row per tile, image after image within a window.

        Args:
            batch: images with their LQ.
            prompt: its words; None asks the prompt slots, as at test.
            guided: whether `null` is needed; false gives `cond` in its place.
            tiles: those of a large latent.
            stage: is called with the group of parts that is needed next, "words" or "codec".
        """
        lq_BCHW: Any = batch.lq_BCHW
        stage("words")
        if tiles is None or tiles.settings.words == "image":
            size = tuple(lq_BCHW.shape[-2:]) if tiles is None else tiles.pixels
            said = self._encode(batch, prompt, size, guided=guided)
        else:
            said = self._encode_per_tile(batch, tiles, guided=guided)
        stage("codec")
        latents = self.latents(lq_BCHW, hq_BCHW=batch.hq_BCHW)
        return replace(said, hint=replace(said.hint, lq_BCHW=lq_BCHW, **latents))

    def _encode(self, batch: Batch, prompt: Prompt | None, size: Size, *, guided: bool) -> Conditions:
        """The conditions without latents: what words and image encoders say."""
        lq_BCHW: Any = batch.lq_BCHW
        prompt = self.prompts(batch, training=False) if prompt is None else prompt
        cond = self.cond(prompt, size)
        null = self.null(prompt, size, cond) if guided else cond
        return Conditions(cond=cond, null=null, hint=self.prompt_hint(lq_BCHW, prompt, size))

    def _encode_per_tile(self, batch: Batch, tiles: Tiles, *, guided: bool) -> Conditions:
        found: list[Conditions] = []
        for first in range(0, len(tiles.windows), tiles.settings.batch):
            chosen = range(first, min(first + tiles.settings.batch, len(tiles.windows)))
            one = self._encode(crop_tiles(batch, tiles, chosen), None, tiles.pixels, guided=guided)
            found.append(replace(one, hint=replace(one.hint, lq_BCHW=batch.lq_BCHW)))  # let the crops go
        cond, same = join([one.cond for one in found]), all(one.cond is one.null for one in found)
        null = cond if same else join([one.null for one in found])
        return Conditions(cond=cond, null=null, hint=join([one.hint for one in found]))

    def cond(self, prompt: Prompt, size: Size) -> Cond:
        """What the prior reads: the semantic text and, with a visual stream, what an image encoder sees."""
        return self.stream(self.backbone.embed(prompt.semantic, size), prompt.visual_BLD)

    def null(self, prompt: Prompt, size: Size, cond: Cond) -> Cond:
        """The other half of guidance; `cond` itself where there is nothing to guide towards."""
        same = prompt.negative == prompt.semantic
        if same and self.adaptor.stream is None:
            return cond
        return self.stream(cond if same else self.backbone.embed(prompt.negative, size), prompt.visual_null_BLD)

    def stream(self, cond: Cond, visual_BND: Tensor | None) -> Cond:
        """The condition with the visual stream's tokens, if there is a stream."""
        stream = self.adaptor.stream
        if stream is None or visual_BND is None:
            return cond
        return replace(cond, visual_BLD=stream(visual_BND), visual_BND=visual_BND)

    def hint(self, lq_BCHW: Tensor, prompt: Prompt, *, hq_BCHW: Tensor | None = None) -> Hint:
        """What the adaptor reads: the LQ, what `prompt_hint` gives, and latents.

        Args:
            lq_BCHW, prompt: degraded images, and the slots' words for them.
            hq_BCHW: the originals, where they are known (a reference may be theirs).
        """
        said = self.prompt_hint(lq_BCHW, prompt, (lq_BCHW.shape[-2], lq_BCHW.shape[-1]))
        return replace(said, **self.latents(lq_BCHW, hq_BCHW=hq_BCHW))

    def prompt_hint(self, lq_BCHW: Tensor, prompt: Prompt, size: Size) -> Hint:
        """The hint without latents: what words and image encoders say."""
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
        """The hint's latents, of those that the adaptor reads."""
        adaptor, codec = self.adaptor, self.backbone.codec
        wants_hq = adaptor.reference and self.reads_hq
        return {
            "lq_latent_BCHW": self.lq_encoder(lq_BCHW, codec) if adaptor.lq_latent else None,
            "hq_latent_BCHW": codec.encode(hq_BCHW) if wants_hq and hq_BCHW is not None else None,
        }


def crop_tiles(batch: Batch, tiles: Tiles, chosen: range) -> Batch:
    """Some tiles of a padded batch as images of their own, named after image and place."""
    part, count, scale = TileBatch(tiles, chosen, len(batch)), len(chosen), tiles.compression
    assert batch.lq_BCHW is not None
    places = [tiles.windows[number] for number in chosen]
    return Batch(
        lq_BCHW=part.crop(batch.lq_BCHW, scale=scale),
        hq_BCHW=None if batch.hq_BCHW is None else part.crop(batch.hq_BCHW, scale=scale),
        caption=batch.caption * count,
        key=tuple(f"{key}@{scale * left},{scale * top}" for top, left in places for key in batch.key),
        seed=batch.seed * count,
        recipe=batch.recipe * count,
    )
