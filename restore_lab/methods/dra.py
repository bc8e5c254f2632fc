"""DRA (Liang et al. 2025): restoration adapters in a frozen prior, and training with LQ targets.

3.2 adapters: adaptors/restoration_adapter.py, LoRA in adaptors/lora.py. 3.3 LQ targets: `LqTargets` below. 3.3
restoration sampling (Eqs. 1 and 2): samplers/fidelity/rss.py. On SDXL the LQ encoder is SUPIR's (methods/supir.py).
conf/method/dra.yaml selects the parts, conf/method/dra/stages.yaml the encoder's stage.

"The LQ image can serve as the model's training target, while the input prompts are set to degradation descriptors such
as 'low quality', 'low resolution' and specific applied degradations like 'compressed'" (section 3.3). At test these
words are the negative prompt. The paper does not give the share of such images; ours is `module.lq_targets.share=0.1`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from restore_lab.config.kinds import Share
from restore_lab.config.validate import check_arguments
from restore_lab.degradation.vocabulary import degradation_word
from restore_lab.methods.module import RestorationModule
from restore_lab.random import uniform

if TYPE_CHECKING:
    from restore_lab.types import Batch, Prompt, Recipe

_QUALITY_WORDS = "low quality"


class DRA(RestorationModule):
    """Adapters after the prior's blocks, which read the LQ latent, and LoRA in the prior."""


@check_arguments
class LqTargets:
    """Replaces the target of some images of a batch by their LQ, and their prompt by its degradations.

    Args:
        share: probability per image, in [0, 1].
    """

    def __init__(self, *, share: Share) -> None:
        self.share = float(share)

    def __call__(self, batch: Batch, prompt: Prompt) -> tuple[Batch, Prompt]:
        """The batch and its prompts, with LQ targets for random images, drawn by their seeds."""
        if batch.hq_BCHW is None or batch.lq_BCHW is None:
            return batch, prompt
        chosen_B = uniform(batch.seed, "lq target") < self.share
        semantic = tuple(
            describe_degradation(recipe) if chosen else text
            for chosen, recipe, text in zip(chosen_B.tolist(), batch.recipe, prompt.semantic, strict=True)
        )
        mask = chosen_B.to(batch.hq_BCHW.device)[:, None, None, None]
        hq_BCHW = torch.where(mask, batch.lq_BCHW, batch.hq_BCHW)
        return replace(batch, hq_BCHW=hq_BCHW), replace(prompt, semantic=semantic)


def describe_degradation(recipe: Recipe | None) -> str:
    """The degradation descriptors of an image: "low quality, low resolution, compressed"."""
    steps = () if recipe is None else recipe.steps
    return ", ".join(dict.fromkeys([_QUALITY_WORDS, *filter(None, map(degradation_word, steps))]))
