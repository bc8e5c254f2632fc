"""Diff-Restorer's parts: the gate's formula, sizes at every compression, the processor's counts and layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from restore_lab.adaptors.injection import ControlDecoder, ControlEncoder, ModulationBlock
from restore_lab.adaptors.prompt_processor import PromptProcessor, mlp
from restore_lab.types import Hint


def hint(*, embedding: int | None = 6, count: int = 2) -> Hint:
    draw = torch.Generator().manual_seed(0)
    code = None if embedding is None else torch.randn(count, embedding, generator=draw)
    return Hint(lq_BCHW=torch.rand(count, 3, 32, 48, generator=draw), degradation_BD=code)


def test_a_modulation_block_equals_equation_3() -> None:
    block = ModulationBlock(8, 16, embedding=6, stride=2)
    x, code = torch.randn(2, 8, 10, 12), torch.randn(2, 6)
    gate = 1 / (1 + torch.exp(-(code @ block.gate.weight.T + block.gate.bias)))
    expected = block.after(block.before(x) * gate[:, :, None, None])
    torch.testing.assert_close(block(x, code), expected)
    assert block(x, code).shape == (2, 16, 5, 6)
    ungated = ModulationBlock(8, 16, embedding=0, stride=1)
    torch.testing.assert_close(ungated(x, None), ungated.after(ungated.before(x)))


@pytest.mark.parametrize("compression", [2, 4, 8])
def test_encoder_and_decoder_fit_any_codec(compression) -> None:
    widths = [8, 8, 16, 16]
    encoder = ControlEncoder(compression=compression, widths=widths, out=5, embedding=6)
    decoder = ControlDecoder(compression=compression, widths=widths)
    assert encoder(hint()).shape == (2, 5, 32 // compression, 48 // compression)
    assert decoder(encoder.features(hint())).shape == (2, 3, 32, 48)
    assert len(encoder.blocks) == 4
    with pytest.raises(ValueError, match="modulated by a degradation embedding, and the hint has none"):
        encoder(hint(embedding=None))
    blind = ControlEncoder(compression=compression, widths=widths, out=5, embedding=0)
    assert blind(hint(embedding=None)).shape == encoder(hint()).shape
    with pytest.raises(ValueError, match="needs 4 blocks at least"):
        ControlEncoder(compression=16, widths=[8, 8], out=5, embedding=0)


def test_an_embedding_changes_only_its_own_image() -> None:
    encoder = ControlEncoder(compression=4, widths=[8, 8, 8, 8], out=5, embedding=6)
    one = hint()
    other = Hint(lq_BCHW=one.lq_BCHW, degradation_BD=torch.stack([one.degradation_BD[0], -one.degradation_BD[1]]))
    with torch.no_grad():
        a, b = encoder(one), encoder(other)
    torch.testing.assert_close(a[0], b[0])
    assert (a[1] - b[1]).abs().max() > 1e-4


def test_the_prompt_processor_has_the_papers_counts() -> None:
    """methods.md C: B_s 768-768-768-768 (1.77 M), B_d 768-512-256 (0.53 M), C 256 -> 8 (2,056)."""
    processor = PromptProcessor(inputs=768, tokens=768, hidden=512, degradation=256, kinds=8)

    def count(part: nn.Module) -> int:
        return sum(p.numel() for p in part.parameters() if p.dim() == 2 or p.shape[0] in (8,))

    assert sum(p.numel() for p in processor.classifier.parameters()) == 2056
    assert count(processor.semantic) == 3 * 768 * 768 and count(processor.degradation) == 768 * 512 + 512 * 256
    seen = processor(torch.randn(3, 768))
    assert seen.tokens_BLD.shape == (3, 1, 768) and seen.degradation_BD.shape == (3, 256)
    assert seen.logits_BN.shape == (3, 8)
    torch.testing.assert_close(seen.logits_BN, processor.classifier(seen.degradation_BD))


def test_the_mlp_has_norm_and_activation_after_all_but_the_last_layer() -> None:
    kinds = [type(layer) for layer in mlp([4, 5, 6, 7])]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.LeakyReLU] * 2 + [nn.Linear]
