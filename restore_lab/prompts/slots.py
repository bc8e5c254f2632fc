"""All prompt slots: from a batch to a `Prompt`. `prompt=spire` fills them as the paper does.

semantic -> text condition of the frozen prior; negative -> unconditional branch of classifier-free guidance;
instruction -> text condition of the adaptor's trunk. In training each sample's texts are dropped
(dropout.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from restore_lab.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from restore_lab.prompts.dropout import Dropout
    from restore_lab.prompts.visual import ClipVision, DinoVision
    from restore_lab.types import Batch


class TextSource(Protocol):
    """Maps a batch to one text per image."""

    def __call__(self, batch: Batch) -> tuple[str, ...]: ...


class PromptSources:
    """The sources of all slots.

    Args:
        semantic, instruction: text sources.
        dropout: applied in training.
        positive: quality words appended to every semantic text at test; empty for SPIRE.
        negative: negative prompt of the guidance; empty for SPIRE.
        visual: an image encoder of the LQ (Diff-Restorer, InstantIR); null for none.
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
        self._black: dict[tuple, Tensor] = {}  # features of a black image by shape, dtype and device

    def __call__(self, batch: Batch, *, training: bool) -> Prompt:
        """The prompt for a batch: in training with dropout, at test with the positive words appended."""
        semantic, instruction = self.semantic(batch), self.instruction(batch)
        if not training:
            semantic = tuple(" ".join(filter(None, (text, self.positive))) for text in semantic)
        else:
            semantic = self.dropout(semantic, batch, slot="semantic")
            instruction = self.dropout(instruction, batch, slot="instruction")
        visual_BLD, null_BLD = self._visual(batch, training=training)
        return Prompt(
            semantic=semantic,
            negative=(self.negative,) * len(batch),
            instruction=instruction,
            visual_BLD=visual_BLD,
            visual_null_BLD=null_BLD,
        )

    def _visual(self, batch: Batch, *, training: bool) -> tuple[Tensor | None, Tensor | None]:
        """The encoder's features of each LQ, in training with dropout, and of a black image."""
        import torch

        if self.visual is None or batch.lq_BCHW is None:
            return None, None
        features_BLD = self.visual(batch.lq_BCHW)
        black_BCHW = torch.zeros_like(batch.lq_BCHW[:1])
        key = (black_BCHW.shape, black_BCHW.dtype, black_BCHW.device)
        if key not in self._black:
            self._black[key] = self.visual(black_BCHW)
        null_BLD = self._black[key].expand_as(features_BLD)
        if training:
            drop_B = torch.tensor(self.dropout.mask(batch, slot="visual"), device=features_BLD.device)
            features_BLD = torch.where(drop_B[:, None, None], null_BLD, features_BLD)
        return features_BLD, null_BLD
