"""SPIRE: Semantic Prompt-Driven Image Restoration (Qi et al., ECCV 2024). `method=spire`.

The frozen prior reads the semantic prompt c_s; the trunk reads the degraded image y and the restoration prompt c_r
(Eq. 2, section 3.4). The same controls serve both halves of guidance, because c_r is the same in both. Modes: blind
(`prompt/instruction=blind prompt/semantic=none`), semantic (a caption), quantitative ("Deblur with sigma 3.0").
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from restore_lab.methods.base import RestorationModule
from restore_lab.types import Hint, Prompt


class Spire(RestorationModule):
    """The base wiring with the instruction's tokens in the hint."""

    def hint(self, lq_BCHW: Tensor, prompt: Prompt) -> Hint:
        """The base's hint with the tokens of c_r, from the prior's own frozen text encoder."""
        texts = prompt.instruction if self.adaptor.text == "instruction" else ("",) * len(lq_BCHW)
        instruction = self.backbone.embed(texts, tuple(lq_BCHW.shape[-2:]))
        return replace(super().hint(lq_BCHW, prompt), instruction_BLD=instruction.tokens_BLD)
