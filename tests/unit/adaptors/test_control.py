"""Control adaptors: zero start, formulas, gradients, frozen middle, the paper's counts, one compiled graph."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from restore_lab.adaptors.fusion.modulation import Modulation
from restore_lab.adaptors.fusion.zero_conv import ZeroConv, zero_conv
from restore_lab.adaptors.hint_net import HintNet
from restore_lab.adaptors.trunk.unet import Trunk, collect_skips
from restore_lab.config.build import build
from restore_lab.config.conf_dir import conf_dir
from restore_lab.types import Cond, Hint
from tests.helpers.configs import composed
from tests.helpers.toy_methods import shake, taps_by_name, toy_adaptor, toy_hint, with_control
from tests.helpers.toy_priors import toy_backbone, toy_inputs

BESIDE = ("dcp", "dra", "dra_natural", "prior_lora")  # these have no fusion
ADAPTORS = sorted(path.stem for path in (conf_dir() / "adaptor").glob("*.yaml") if path.stem not in BESIDE)
FUSIONS = sorted(path.stem for path in (conf_dir() / "adaptor" / "fusion").glob("*.yaml"))
ZERO_FUSIONS = [fusion for fusion in FUSIONS if not fusion.startswith("zero_sft")]  # its group norm acts from the start
SMALL = ("adaptor.hint_widths=[4,4,8]", "adaptor.hint_channels=4")
# An adaptor with LoRA or a stream changes the prior that it is built on, and has no hint network.
OWN = {"instantir": [f"adaptor.stream.{word}" for word in ("hidden=16", "depth=1", "heads=2", "dim_head=8")]}
MILLION = 1e6


@pytest.fixture(scope="module")
def backbones():
    """One random prior of each kind; nothing here changes them."""
    return {kind: toy_backbone(kind) for kind in ("sd", "sdxl", "sd3", "sd35")}


@cache
def config(adaptor: str, fusion: str):
    """The adaptor node of an adaptor with a fusion."""
    return composed("describe", f"adaptor={adaptor}", f"adaptor/fusion={fusion}", *OWN.get(adaptor, SMALL)).adaptor


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "sd35"])
@pytest.mark.parametrize("fusion", ZERO_FUSIONS)
@pytest.mark.parametrize("adaptor", ADAPTORS)
def test_an_untrained_adaptor_changes_no_bit(adaptor, fusion, kind, backbones) -> None:
    backbone = toy_backbone(kind) if adaptor in OWN else backbones[kind]
    if fusion == "modulation_decoder" and backbone.family == "mmdit":
        with pytest.raises(ValueError, match="needs a decoder half"):
            build(config(adaptor, fusion))(backbone, visual=16)
        return
    made = build(config(adaptor, fusion))(backbone, visual=16)
    z, t, cond = toy_inputs(backbone)
    hint = toy_hint(backbone)
    with torch.no_grad():
        plain = backbone(z, t, cond)
        assert torch.equal(with_control(backbone, made, z, t, cond, hint), plain)
        shake(made)
        assert not torch.equal(with_control(backbone, made, z, t, cond, hint), plain)


@pytest.mark.parametrize("decoder", [False, True])
def test_modulation_equals_its_formula(decoder, backbones) -> None:
    """At join n: skip <- (1 + gamma) skip + beta of the n-th last skip's control; with decoder, up <- (1 + g) up."""
    backbone = backbones["sd"]
    fusion = Modulation(backbone, decoder=decoder)
    shake(fusion)
    draw = torch.Generator().manual_seed(0)
    skips = [tap.name for tap in backbone.taps if tap.kind == "encoder"]
    taps = taps_by_name(backbone)
    for n, source in enumerate(reversed(skips)):
        tap, f_con = taps[f"join.{n}"], torch.randn(2, taps[source].channels, 4, 4, generator=draw)
        h = torch.randn(2, tap.channels, 4, 4, generator=draw)
        out, carry = fusion(tap, h, torch.zeros(2, 1), {source: f_con})
        assert carry.keys() == {source}
        gamma, beta = (
            torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], f_con) + conv.bias[:, None, None]
            for conv in (fusion.gamma[f"join_{n}"], fusion.beta[f"join_{n}"])
        )
        up, skip = h[:, : tap.channels - tap.skip], h[:, tap.channels - tap.skip :]
        if decoder:
            conv = fusion.gamma_up[f"join_{n}"]
            up = (1 + torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], f_con) + conv.bias[:, None, None]) * up
        torch.testing.assert_close(out, torch.cat([up, (1 + gamma) * skip + beta], dim=1), atol=1e-5, rtol=1e-5)
    mid = taps["mid"]
    h, f_con = torch.randn(2, 2, mid.channels, 4, 4, generator=draw)
    out, _ = fusion(mid, h, torch.zeros(2, 1), {"mid": f_con})
    torch.testing.assert_close(out, (1 + fusion.gamma["mid"](f_con)) * h + fusion.beta["mid"](f_con))
    assert "mid" not in fusion.gamma_up


def test_zero_conv_is_modulation_without_gamma(backbones) -> None:
    backbone = backbones["sdxl"]
    added, modulated = ZeroConv(backbone), Modulation(backbone, decoder=False)
    shake(added)
    modulated.beta.load_state_dict(added.convs.state_dict())
    draw = torch.Generator().manual_seed(0)
    taps = taps_by_name(backbone)
    assert added.points == modulated.points
    for name, source in ((name, place.control) for name, place in added.points.items()):
        h = torch.randn(2, taps[name].channels, 4, 4, generator=draw)
        carry = {source: torch.randn(2, taps[source].channels, 4, 4, generator=draw)}
        for other in (tap for tap in backbone.taps if tap.name not in added.points):
            assert added(other, h, h, carry)[0] is h
        a, b = added(taps[name], h, h, carry)[0], modulated(taps[name], h, h, carry)[0]
        torch.testing.assert_close(a, b)
        assert not torch.equal(a, h)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_trunk_starts_as_a_copy_of_the_encoder(kind, backbones) -> None:
    """Fed with any hint, its features are those that the prior itself shows at its taps."""
    backbone = backbones[kind]
    trunk = Trunk(backbone, hint_channels=6, middle="trainable")
    z, t, cond = toy_inputs(backbone)
    with torch.no_grad():
        found = trunk(z, t, torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0)), cond)
        kept: list[Tensor] = []

        def watch(tap, h, temb, carry):
            kept.extend(collect_skips(tap, h, temb, ())[1])
            return h, carry

        backbone(z, t, cond, watch)
    assert len(found) == len(kept) == sum(tap.kind in ("encoder", "middle") for tap in backbone.taps)
    for a, b in zip(found.values(), kept, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("middle", ["frozen", "trainable"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_gradients_reach_trainable_parameters_only(kind, middle, backbones) -> None:
    backbone = backbones[kind]
    adaptor = toy_adaptor(fusion=partial(Modulation, decoder=True), middle=middle)(backbone)
    shake(adaptor, size=0.05)
    z, t, cond = toy_inputs(backbone)
    with_control(backbone, adaptor, z, t, cond, toy_hint(backbone)).square().mean().backward()
    dead = [n for n, p in adaptor.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []
    frozen = [n for n, p in adaptor.named_parameters() if not p.requires_grad]
    assert all(p.grad is None for p in adaptor.trunk.mid_block.parameters()) == (middle == "frozen")
    assert all(n.startswith("trunk.mid_block.") for n in frozen) and bool(frozen) == (middle == "frozen")
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_a_frozen_middle_still_passes_gradients_on(backbones) -> None:
    """Were only the middle fused, what comes before it would learn through the frozen copy."""
    backbone = backbones["sd"]
    adaptor = toy_adaptor()(backbone)
    z, t, cond = toy_inputs(backbone)
    adaptor.control(z, t, toy_hint(backbone), cond)["mid"].square().mean().backward()
    assert adaptor.trunk.down_blocks[0].resnets[0].conv1.weight.grad.any()
    assert adaptor.hint.conv_in.weight.grad is not None


@pytest.mark.parametrize("text", ["instruction", "semantic", "none"])
def test_the_trunk_reads_the_tokens_that_text_names(text, backbones) -> None:
    backbone = backbones["sd"]
    adaptor = toy_adaptor(text=text)(backbone)
    z, t, cond = toy_inputs(backbone)
    hint = toy_hint(backbone)
    other = Cond(tokens_BLD=cond.tokens_BLD + 1)
    told = Hint(lq_BCHW=hint.lq_BCHW, instruction_BLD=hint.instruction_BLD + 1)
    with torch.no_grad():
        base = adaptor.control(z, t, hint, cond)["mid"]
        assert torch.equal(base, adaptor.control(z, t, hint, other)["mid"]) == (text != "semantic")
        assert torch.equal(base, adaptor.control(z, t, told, cond)["mid"]) == (text == "semantic")
    if text == "instruction":
        with pytest.raises(ValueError, match="fill prompt/instruction"):
            adaptor.control(z, t, Hint(lq_BCHW=hint.lq_BCHW), cond)


def test_hint_network_sizes_and_errors() -> None:
    image = Hint(lq_BCHW=torch.rand(1, 3, 32, 48))
    assert HintNet(compression=8, widths=[4, 4, 8, 8], out=5)(image).shape == (1, 5, 4, 6)
    assert HintNet(compression=4, widths=[4, 4, 8, 999], out=5)(image).shape == (1, 5, 8, 12)
    with pytest.raises(ValueError, match=r"adaptor.hint_widths=\[4, 8\] has 2 widths; this codec needs 4"):
        HintNet(compression=8, widths=[4, 8], out=5)
    backbone = toy_backbone("sd")
    with pytest.raises(ValueError, match=r"trunk\.middle=warm: there are: frozen, trainable"):
        toy_adaptor(middle="warm")(backbone)
    with pytest.raises(ValueError, match="text=both: there are: instruction, semantic"):
        toy_adaptor(text="both")(backbone)


@pytest.fixture(scope="module")
def counts():
    """Parameters in millions of the full-size SD 1.5 compositions, on the meta device."""
    cfg = composed("describe", "scale=full", "data=procedural", "backbone.path=config:sd15", "backbone.meta=true")
    with torch.device("meta"):
        backbone = build(cfg.backbone)
        found = {"denoiser": size_of(backbone.unet)}
        for fusion in FUSIONS:
            node = composed("describe", "scale=full", "data=procedural", f"adaptor/fusion={fusion}").adaptor
            adaptor = build(node)(backbone)
            found[fusion] = size_of(adaptor)
            found[f"{fusion} trainable"] = sum(p.numel() for p in adaptor.parameters() if p.requires_grad) / MILLION
        found["middle"] = size_of(adaptor.trunk.mid_block)
    assert all(p.is_meta for p in adaptor.parameters())
    return found


def size_of(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / MILLION


def test_spire_has_the_papers_parameter_counts(counts) -> None:
    """SPIRE, supplement H: 1240 M in all, 275 M trainable; our reading gives 1231.56 and 275.00."""
    total, trainable = counts["denoiser"] + counts["modulation"], counts["modulation trainable"]
    assert total == pytest.approx(1231.56, rel=1e-5)
    assert trainable == pytest.approx(275.00, rel=1e-4)
    assert total == pytest.approx(1240, rel=0.01)
    assert trainable == pytest.approx(275, rel=0.01)
    assert counts["modulation"] - trainable == pytest.approx(counts["middle"], abs=1e-6)


def test_spires_cost_relative_to_controlnet_is_table_7s(counts) -> None:
    """Modulating the skips costs 1.03, the decoder's features too 1.06, of the zero convolutions' ControlNet."""
    controlnet = 361.28  # SD 1.5's, hint network and middle included
    assert counts["zero_conv"] == pytest.approx(controlnet, rel=0.004)  # ours feeds the hint in four channels
    skip = 1 + (counts["modulation"] - counts["zero_conv"]) / controlnet
    skip_and_up = 1 + (counts["modulation_decoder"] - counts["zero_conv"]) / controlnet
    assert skip == pytest.approx(1.03, abs=0.005)
    assert skip_and_up == pytest.approx(1.06, abs=0.005)


def test_the_lq_latent_is_read_where_set(backbones) -> None:
    backbone = backbones["sd"]
    z, t, cond = toy_inputs(backbone)
    hint = toy_hint(backbone)
    moved = replace(hint, lq_latent_BCHW=hint.lq_latent_BCHW + 1)
    for reads in (False, True):
        made = build(composed("describe", f"adaptor.lq_latent={str(reads).lower()}", *SMALL).adaptor)(backbone)
        shake(made)
        with torch.no_grad():
            same = torch.equal(*(with_control(backbone, made, z, t, cond, h) for h in (hint, moved)))
        assert same is not reads
    with pytest.raises(ValueError, match="reads the LQ's latent"):
        made.control(z, t, replace(hint, lq_latent_BCHW=None), cond)


# One block a half: enough for every kind of tap but the upsampler's, and quick to trace.
SHORT = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "attention_head_dim": 4,
}


@pytest.mark.parametrize(("kind", "decoder", "backend"), [("sd", True, "aot_eager"), ("sdxl", False, "eager")])
def test_a_compiled_adaptor_is_one_graph_for_all_steps(kind, decoder, backend) -> None:
    """torch.compile takes trunk, fusion and prior as one graph and keeps it when timestep and tensors change."""
    backbone = toy_backbone(kind, **SHORT, **({"transformer_layers_per_block": 1} if kind == "sdxl" else {}))
    adaptor = toy_adaptor(fusion=partial(Modulation, decoder=decoder))(backbone)
    shake(adaptor, size=0.05)

    def step(z: Tensor, t: Tensor, cond: Cond, hint: Hint) -> Tensor:
        return with_control(backbone, adaptor, z, t, cond, hint)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for seed in range(3):
            z, t, cond = toy_inputs(backbone, seed=seed)
            hint = toy_hint(backbone, seed=seed)
            torch.testing.assert_close(compiled(z, t, cond, hint), step(z, t, cond, hint), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_zero_convolution_is_a_convolution_in_either_memory_order(memory) -> None:
    """Of tokens shown as a map it is computed as a product: the same map, in the same order, and the same gradients."""
    conv = zero_conv(6, 4)
    nn.init.normal_(conv.weight, generator=torch.Generator().manual_seed(0))
    map_BCHW = torch.randn(2, 6, 5, 3).to(memory_format=memory).requires_grad_()
    out = conv(map_BCHW)
    expected = nn.functional.conv2d(map_BCHW, conv.weight, conv.bias)
    assert out.is_contiguous(memory_format=memory)
    torch.testing.assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(o.square().sum(), [map_BCHW, conv.weight]) for o in (out, expected))
    torch.testing.assert_close(ours, theirs)
