"""ZeroSFT against its formula, the trimmed trunk, SUPIR's counts at full size."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from restore_lab.adaptors.control import ControlAdaptor
from restore_lab.adaptors.fusion.zero_sft import ZeroSFT
from restore_lab.adaptors.trunk.unet import Trunk
from restore_lab.config.build import build
from tests.helpers.configs import composed
from tests.helpers.toy_methods import shake, taps_by_name, toy_hint, with_control
from tests.helpers.toy_priors import toy_backbone, toy_inputs

MILLION = 1e6


@pytest.fixture(scope="module")
def backbone():
    return toy_backbone("sdxl")


def supir(backbone, *, attention: bool = False, depth="half") -> ControlAdaptor:
    torch.manual_seed(0)
    return ControlAdaptor(
        backbone,
        trunk=partial(Trunk, middle="trainable", depth=depth, feed="add"),
        fusion=partial(ZeroSFT, hidden=8, attention=attention),
        text="semantic",
        hint_widths=None,
        hint_channels=None,
        lq_latent=True,
    )


def conv(x, module: nn.Conv2d):
    return F.conv2d(x, module.weight, module.bias, padding=module.padding)


@pytest.mark.parametrize("trained", [False, True])
def test_a_connector_equals_its_formula(trained, backbone) -> None:
    """[X_f, X_s + Z(X_c)], normed, times 1 + gamma, plus beta; untrained, only the group norm."""
    fusion = ZeroSFT(backbone, hidden=8, attention=False)
    if trained:
        shake(fusion)
    draw = torch.Generator().manual_seed(0)
    for name, tap in taps_by_name(backbone).items():
        if tap.kind not in ("join", "middle"):
            continue
        module = fusion.connectors[name.replace(".", "_")]
        source = taps_by_name(backbone)[fusion.points[name].control]
        assert source.stride == tap.stride
        h = torch.randn(2, tap.channels, 4, 4, generator=draw)
        c = torch.randn(2, source.channels, 4, 4, generator=draw)
        found, carry = fusion(tap, h, None, {source.name: c})
        assert list(carry) == [source.name]
        width = tap.skip or tap.channels
        joined = h.clone()
        joined[:, -width:] += conv(c, module.zero)
        groups = module.norm.num_groups
        grouped = joined.reshape(2, groups, -1)
        normed = (grouped - grouped.mean(2, keepdim=True)) / (
            grouped.var(2, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        normed = normed.reshape(h.shape) * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]
        a = F.silu(conv(c, module.shared[0]))
        expected = normed * (1 + conv(a, module.gamma)) + conv(a, module.beta)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        if not trained:
            torch.testing.assert_close(found, normed, atol=1e-4, rtol=1e-4)
            assert (found - h).abs().max() > 1e-2  # not the identity at the start


def test_other_taps_pass_and_attention_sits_before_upsamplers(backbone) -> None:
    plain, release = (ZeroSFT(backbone, hidden=8, attention=attention) for attention in (False, True))
    taps = taps_by_name(backbone)
    kinds = lambda fusion: {taps[name].kind for name in fusion.points}  # noqa: E731
    assert kinds(plain) == {"join", "middle"} and kinds(release) == {"join", "middle", "upsample"}
    for name in set(release.points) - set(plain.points):
        before = [tap.name for tap in backbone.taps[: backbone.taps.index(taps[name])] if tap.kind == "join"][-1]
        assert release.points[name].control == release.points[before].control  # fed like the join before it
        h = torch.randn(1, taps[name].channels, 4, 4)
        c = torch.randn(1, taps[release.points[name].control].channels, 4, 4)
        assert release(taps[name], h, None, {release.points[name].control: c})[0].shape == h.shape
    h = torch.randn(1, taps["down.0"].channels, 4, 4)
    assert plain(taps["down.0"], h, None, {})[0] is h


def test_the_trunk_keeps_the_first_half_of_attention_layers(backbone) -> None:
    """The toy's attentions have 1 and 2 layers, its middle 2: one of each is left, and it is the prior's first."""
    trunk = supir(backbone).trunk
    assert [len(b.attentions[0].transformer_blocks) for b in trunk.down_blocks[1:]] == [1, 1]
    assert len(trunk.mid_block.attentions[0].transformer_blocks) == 1
    kept = trunk.down_blocks[2].attentions[0].transformer_blocks[0].state_dict()
    whole = backbone.unet.down_blocks[2].attentions[0].transformer_blocks
    assert all(torch.equal(value, whole[0].state_dict()[name]) for name, value in kept.items())
    assert len(whole) == 2  # the prior keeps its own
    with pytest.raises(
        ValueError, match=r"depth=\[3, 1, 1\] does not fit this backbone, whose attentions have \[1, 2, 2\]"
    ):
        supir(backbone, depth=[3, 1, 1])


def test_the_trunk_starts_blind_to_the_lq_and_learns(backbone) -> None:
    """The hint's convolution is zero; every trainable part of the adaptor gets a gradient once connectors are open."""
    adaptor = supir(backbone, attention=True)
    z, t, cond = toy_inputs(backbone)
    hints = [toy_hint(backbone, seed=seed) for seed in (3, 4)]
    with torch.no_grad():
        one, other = (with_control(backbone, adaptor, z, t, cond, hint) for hint in hints)
    assert torch.equal(one, other)
    shake(adaptor, size=0.05)
    with_control(backbone, adaptor, z, t, cond, hints[0]).square().mean().backward()
    silent = [
        name for name, p in adaptor.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert silent == []
    assert all(p.grad is None for p in backbone.parameters())


def test_a_trunk_that_reads_no_lq_is_refused(backbone) -> None:
    with pytest.raises(ValueError, match="sees nothing of the LQ"):
        ControlAdaptor(
            backbone,
            trunk=partial(Trunk, middle="trainable"),
            fusion=partial(ZeroSFT, hidden=8, attention=False),
            text="semantic",
            hint_widths=None,
            hint_channels=None,
            lq_latent=False,
        )


@pytest.mark.parametrize(
    ("words", "millions"),
    [
        ((), 702.03 + 48.65),  # the paper: half, no attentions
        (("adaptor.fusion.attention=true",), 756.8),
        (("adaptor.fusion.attention=true", "adaptor.trunk.depth=whole"), 1298.2),  # the release
        (("adaptor.fusion.attention=true", "adaptor.trunk.depth=[1,4,4]"), 652.6),  # its yaml's commented line
        (("adaptor/fusion=zero_conv",), 702.03 + 6.56),  # the ablation
    ],
)
def test_supir_on_sdxl_has_the_papers_parameter_counts(words, millions) -> None:
    sdxl = ("scale=full", "backbone=sdxl", "backbone.path=config:sdxl", "backbone.meta=true")
    cfg = composed("describe", *sdxl, "adaptor=supir", *words)
    backbone = build(cfg.backbone)
    assert sum(p.numel() for p in backbone.unet.parameters()) == 2_567_463_684
    with torch.device("meta"):
        adaptor = build(cfg.adaptor)(backbone)
    assert sum(p.numel() for p in adaptor.parameters()) / MILLION == pytest.approx(millions, abs=0.1)
    assert all(p.requires_grad for p in adaptor.parameters())
