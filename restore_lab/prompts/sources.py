"""The prompt slots put together: a batch in, a `Prompt` out. `prompt=spire` fills them as the paper does.

semantic -> what the frozen prior reads; negative -> the null half of classifier-free guidance; instruction -> what the
adaptor's trunk reads. In training, texts are dropped to the empty string sample by sample from the sample's own seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from restore_lab.random import uniform
from restore_lab.types import Prompt

if TYPE_CHECKING:
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
    """

    def __init__(self, *, semantic: float, instruction: float, together: float = 0.0) -> None:
        for name, p in (("semantic", semantic), ("instruction", instruction), ("together", together)):
            if not 0.0 <= p <= 1.0:
                raise ValueError(f"prompt.dropout.{name}={p} is a probability; give a number from 0 to 1")
        self.semantic, self.instruction, self.together = semantic, instruction, together

    def __call__(self, texts: tuple[str, ...], batch: Batch, *, slot: str) -> tuple[str, ...]:
        """The texts of a slot ("semantic" or "instruction") with some emptied."""
        p = self.semantic if slot == "semantic" else self.instruction
        own, shared = (uniform(batch.seed, f"dropout {name}").tolist() for name in (slot, "together"))
        return tuple("" if a < p or b < self.together else text for a, b, text in zip(own, shared, texts, strict=True))


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

    def __call__(self, batch: Batch, *, training: bool) -> Prompt:
        """The words for a batch: in training with dropout, at test with the positive words behind them."""
        semantic, instruction = self.semantic(batch), self.instruction(batch)
        if not training:
            semantic = tuple(" ".join(filter(None, (text, self.positive))) for text in semantic)
        else:
            semantic = self.dropout(semantic, batch, slot="semantic")
            instruction = self.dropout(instruction, batch, slot="instruction")
        seen_BLD = None if self.visual is None or batch.lq_BCHW is None else self.visual(batch.lq_BCHW)
        negative = (self.negative,) * len(batch)
        return Prompt(semantic=semantic, negative=negative, instruction=instruction, visual_BLD=seen_BLD)
