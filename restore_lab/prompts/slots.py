"""The prompt slots put together: a batch in, a `Prompt` out. `prompt=spire` fills them as the paper does.

semantic -> what the frozen prior reads; negative -> the null half of classifier-free guidance; instruction -> what the
adaptor's trunk reads. In training, texts are dropped to the empty string sample by sample from the sample's own seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from restore_lab.random import uniform
from restore_lab.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from restore_lab.prompts.visual import ClipVision, DinoVision
    from restore_lab.types import Batch


class TextSource(Protocol):
    """One text an image."""

    def __call__(self, batch: Batch) -> tuple[str, ...]: ...


class Dropout:
    """Each slot's text is emptied by its own coin (SPIRE: semantic 0.1, instruction never), or all by one.

    Args:
        semantic: probability for the semantic slot.
        instruction: probability for the instruction slot.
        together: probability that all slots are emptied, by a coin of its own.
        visual: probability for the visual slot, whose image is then black (InstantIR).
    """

    def __init__(self, *, semantic: float, instruction: float, together: float = 0.0, visual: float = 0.0) -> None:
        named = {"semantic": semantic, "instruction": instruction, "together": together, "visual": visual}
        for name, p in named.items():
            if not 0.0 <= p <= 1.0:
                raise ValueError(f"prompt.dropout.{name}={p} is a probability; give a number from 0 to 1")
        self.p = {"semantic": semantic, "instruction": instruction, "visual": visual}
        self.together = together

    def __call__(self, texts: tuple[str, ...], batch: Batch, *, slot: str) -> tuple[str, ...]:
        """The texts of a slot ("semantic" or "instruction") with some emptied."""
        return tuple("" if out else text for out, text in zip(self.dropped(batch, slot=slot), texts, strict=True))

    def dropped(self, batch: Batch, *, slot: str) -> list[bool]:
        """Whether a slot is dropped, an image at a time."""
        own, shared = (uniform(batch.seed, f"dropout {name}").tolist() for name in (slot, "together"))
        return [a < self.p[slot] or b < self.together for a, b in zip(own, shared, strict=True)]


class PromptSources:
    """All slots.

    Args:
        semantic, instruction: text sources.
        dropout: applied in training.
        positive: said behind every semantic text at test (quality words); empty for SPIRE.
        negative: the text of the null half of guidance; empty for SPIRE.
        visual: an image encoder that looks at the LQ (Diff-Restorer); null for none.
    """

    def __init__(
        self,
        *,
        semantic: TextSource,
        instruction: TextSource,
        dropout: Dropout,
        positive: str,
        negative: str,
        visual: ClipVision | DinoVision | None = None,
    ) -> None:
        self.semantic, self.instruction, self.dropout = semantic, instruction, dropout
        self.positive, self.negative, self.visual = positive, negative, visual
        self._black: dict[tuple, Tensor] = {}  # what the encoder sees in a black image, by shape, dtype and device

    def __call__(self, batch: Batch, *, training: bool) -> Prompt:
        """The words for a batch: in training with dropout, at test with the positive words behind them."""
        semantic, instruction = self.semantic(batch), self.instruction(batch)
        if not training:
            semantic = tuple(" ".join(filter(None, (text, self.positive))) for text in semantic)
        else:
            semantic = self.dropout(semantic, batch, slot="semantic")
            instruction = self.dropout(instruction, batch, slot="instruction")
        seen_BLD, null_BLD = self._seen(batch, training=training)
        return Prompt(
            semantic=semantic,
            negative=(self.negative,) * len(batch),
            instruction=instruction,
            visual_BLD=seen_BLD,
            visual_null_BLD=null_BLD,
        )

    def _seen(self, batch: Batch, *, training: bool) -> tuple[Tensor | None, Tensor | None]:
        """What the image encoder sees in each LQ, in training with dropout, and in a black image."""
        import torch

        if self.visual is None or batch.lq_BCHW is None:
            return None, None
        seen_BLD = self.visual(batch.lq_BCHW)
        black_BCHW = torch.zeros_like(batch.lq_BCHW[:1])
        known = (black_BCHW.shape, black_BCHW.dtype, black_BCHW.device)
        if known not in self._black:
            self._black[known] = self.visual(black_BCHW)
        null_BLD = self._black[known].expand_as(seen_BLD)
        if training:
            out_B = torch.tensor(self.dropout.dropped(batch, slot="visual"), device=seen_BLD.device)
            seen_BLD = torch.where(out_B[:, None, None], null_BLD, seen_BLD)
        return seen_BLD, null_BLD
