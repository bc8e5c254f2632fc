"""Diff-Restorer's visual prompt processor (section III-B, Eq. 2). `prompt/visual=clip` with `method=diff_restorer`.

From a CLIP image embedding P_CLIP: P_S = B_s(P_CLIP), one token that replaces the text; P_D = B_d(P_CLIP), the
degradation embedding that modulates the control; d = C(P_D), the logits of the degradations. B_s has three linear
layers and B_d two, with layer norm and LeakyReLU after all but the last; C has one.
Shapes: (B, E) -> P_S (B, 1, W), P_D (B, D), d (B, N).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

_SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class PromptFeatures:
    """The processor's outputs: semantic token P_S, degradation embedding P_D, and degradation logits d."""

    tokens_BLD: Tensor
    degradation_BD: Tensor
    logits_BN: Tensor


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers, with layer norm and LeakyReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers[:-2])


class PromptProcessor(nn.Module):
    """The semantic branch B_s, the degradation branch B_d and the classifier C.

    Args:
        inputs: width of the image embedding.
        tokens: width of the backbone's text tokens.
        hidden: hidden width of B_d.
        degradation: width of P_D.
        kinds: number of degradation classes.
        semantic: false for no B_s: the image embedding is the token (Table II, "w/o B_s").

    Raises:
        ValueError: without B_s, if the widths of the embedding and the tokens differ.
    """

    def __init__(
        self, *, inputs: int, tokens: int, hidden: int, degradation: int, kinds: int, semantic: bool = True
    ) -> None:
        super().__init__()
        if not semantic and inputs != tokens:
            raise ValueError(
                f"module.processor.semantic=false: CLIP's embedding has {inputs} numbers and the prior's tokens "
                f"{tokens}; without B_s they must be as wide (CLIP ViT-L/14 with SD 1.5)"
            )
        self.semantic = mlp([inputs, tokens, tokens, tokens]) if semantic else nn.Identity()
        self.degradation = mlp([inputs, hidden, degradation])
        self.classifier = nn.Linear(degradation, kinds)

    def forward(self, embedding_BD: Tensor) -> PromptFeatures:
        degradation_BD = self.degradation(embedding_BD)  # Diff-Restorer, Eq. 2: P_D
        return PromptFeatures(
            tokens_BLD=self.semantic(embedding_BD)[:, None],  # Diff-Restorer, Eq. 2: P_S
            degradation_BD=degradation_BD,
            logits_BN=self.classifier(degradation_BD),  # Diff-Restorer, section III-B: the labels' logits d
        )
