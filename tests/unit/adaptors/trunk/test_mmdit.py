"""The MM-DiT's trunk against the prior's features and diffusers' ControlNet; where its controls are added."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import SD3ControlNetModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from restore_lab.adaptors.control import ControlAdaptor
from restore_lab.adaptors.fusion.base import Controls, encoder_controls, fusion_points
from restore_lab.adaptors.fusion.modulation import Modulation
from restore_lab.adaptors.fusion.sft import SFT
from restore_lab.adaptors.fusion.zero_conv import ZeroConv
from restore_lab.adaptors.fusion.zero_sft import ZeroSFT
from restore_lab.adaptors.trunk.build import trunk
from restore_lab.adaptors.trunk.mmdit import MMDiTTrunk
from restore_lab.methods.speed import checkpoint_blocks
from restore_lab.types import Cond, Hint, Tap
from tests.helpers.toy_methods import shake
from tests.helpers.toy_priors import toy_backbone, toy_inputs

KINDS = ("sd3", "sd35")
WIDTH = 16
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def backbones():
    """One random prior of each kind; nothing here changes them."""
    return {kind: toy_backbone(kind) for kind in KINDS}


def made(backbone: Any, **options: Any) -> MMDiTTrunk:
    """A trunk with four channels of hint, the same for the same options."""
    torch.manual_seed(0)
    found = trunk(backbone, **{"hint_channels": 4, "middle": "trainable", **options})
    assert isinstance(found, MMDiTTrunk)
    return found


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shown_by_the_prior(backbone: Any, z: Tensor, t: Tensor, cond: Cond) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    backbone(z, t, cond, lambda tap, h, temb, carry: (kept.setdefault(tap.name, h), carry))
    return kept


@pytest.mark.parametrize("depth", ["whole", "half", 1])
@pytest.mark.parametrize("feed", ["add", "concat"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_trunk_starts_as_a_copy_of_the_first_blocks(kind, feed, depth, backbones) -> None:
    """With any hint, its features equal those of the prior after its blocks."""
    backbone = backbones[kind]
    z, t, cond = toy_inputs(backbone, size=(6, 10))
    module = made(backbone, feed=feed, depth=depth, hint_channels=6)
    with torch.no_grad():
        found = module(z, t, some(2, 6, 6, 10), cond)
        kept = shown_by_the_prior(backbone, z, t, cond)
        names = [f"block.{i}" for i in range({"whole": 3, "half": 2, 1: 1}[depth])]
        assert list(found) == list(module.controls.channels) == names
        assert set(module.controls.channels.values()) == {WIDTH}
        for name in names:
            torch.testing.assert_close(found[name], kept[name], **TOLERANCE)
        shake(module, size=0.05)
        hints = [module(z, t, some(2, 6, 6, 10, seed=seed), cond)[names[-1]] for seed in range(2)]
        assert (hints[0] - hints[1]).abs().max() > 1e-3  # the hint's weights are there, and were zero


def test_the_trunk_is_a_copy(backbones) -> None:
    backbone = backbones["sd35"]
    own = {p.data_ptr() for p in backbone.parameters()}
    for options in ({"feed": "add"}, {"feed": "concat"}, {"feed": "spatial"}, {"feed": "add", "text": False}):
        module = made(backbone, **options)
        assert not own & {p.data_ptr() for p in module.parameters()}
    assert not any(p.requires_grad for p in backbone.parameters())


def supir(backbone: Any, *, fusion: Any = ZeroConv, text: str = "semantic", **options: Any) -> ControlAdaptor:
    """The LQ's latent added after the first layer; all weights random."""
    torch.manual_seed(0)
    adaptor = ControlAdaptor(
        backbone,
        trunk=partial(trunk, **{"middle": "trainable", "feed": "add", **options}),
        fusion=fusion,
        text=text,
        hint_widths=None,
        hint_channels=None,
        lq_latent=True,
    )
    shake(adaptor, size=0.1)
    return adaptor


def seen(z: Tensor, *, seed: int = 5) -> Hint:
    """A hint whose latents are random."""
    return Hint(
        lq_BCHW=torch.zeros(len(z), 3, 8, 8),
        lq_latent_BCHW=some(*z.shape, seed=seed),
        reference_BCHW=some(*z.shape, seed=seed + 1),
    )


def controlnet_of(backbone: Any, adaptor: ControlAdaptor, *, blocks: int) -> SD3ControlNetModel:
    """diffusers' ControlNet with the adaptor's weights."""
    config = {name: value for name, value in backbone.transformer.config.items() if not name.startswith("_")}
    theirs = SD3ControlNetModel(**{**config, "num_layers": blocks}, extra_conditioning_channels=0)
    ours = adaptor.trunk
    for name in ("pos_embed", "time_text_embed", "context_embedder", "transformer_blocks"):
        getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
    theirs.pos_embed_input.proj.load_state_dict(ours.hint_proj.state_dict())
    for n, linear in enumerate(theirs.controlnet_blocks):
        conv = adaptor.fusion.convs[f"block_{n}"]
        linear.load_state_dict({"weight": conv.weight[:, :, 0, 0], "bias": conv.bias})
    return theirs.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_convolutions_equal_diffusers_controlnet(kind, backbones) -> None:
    """Two of four blocks copied: blocks 0 and 1 hear the first control, block 2 the second, block 3 none."""
    backbone = backbones[kind]
    adaptor = supir(backbone, depth=2)
    theirs = controlnet_of(backbone, adaptor, blocks=2)
    z, t, cond = toy_inputs(backbone, size=(6, 10))
    hint = seen(z)
    told = {"encoder_hidden_states": cond.tokens_BLD, "pooled_projections": cond.pooled_BD, "timestep": t}
    with torch.no_grad():
        residuals = theirs(z, controlnet_cond=hint.lq_latent_BCHW, **told).controlnet_block_samples
        expected = backbone.transformer(z, **told, block_controlnet_hidden_states=residuals).sample
        found = backbone(z, t, cond, adaptor.fuse, adaptor.control(z, t, hint, cond))
        torch.testing.assert_close(found, expected, **TOLERANCE)
        assert (found - backbone(z, t, cond)).abs().max() > 1e-2


def standing(blocks: int) -> SimpleNamespace:
    """As much of a backbone as is asked where controls are heard."""
    names = ["patch", *(f"block.{i}" for i in range(blocks))]
    taps = tuple(Tap(name=name, kind="block", channels=WIDTH, stride=2) for name in names)
    return SimpleNamespace(family="mmdit", taps=taps)


def heard(blocks: int, controls: int) -> list[int]:
    """The control that each block but the last hears."""
    channels = {f"block.{i}": WIDTH for i in range(controls)}
    places = fusion_points(standing(blocks), Controls(channels=channels))
    assert [place.tap.name for place in places] == [f"block.{i}" for i in range(blocks - 1)]
    assert all(place.key == place.control.replace(".", "_") and place.width == WIDTH for place in places)
    return [int(place.control.partition(".")[2]) for place in places]


@pytest.mark.parametrize("blocks", [2, 4, 6, 24, 38])
def test_controls_are_added_where_diffusers_adds_them(blocks) -> None:
    for controls in (k for k in range(1, blocks) if blocks % k == 0):
        assert heard(blocks, controls) == [int(i / (blocks / controls)) for i in range(blocks - 1)]
    assert heard(blocks, blocks - 1) == list(range(blocks - 1))


@pytest.mark.parametrize("blocks", [2, 3, 4, 7, 24, 38])
def test_every_control_is_added_in_order(blocks) -> None:
    for controls in range(1, blocks):
        found = heard(blocks, controls)
        assert found == sorted(found)
        assert set(found) == set(range(controls))


@pytest.mark.parametrize("depth", ["whole", "half"])
def test_every_copied_block_and_no_other_is_read_by_the_prior(depth, backbones) -> None:
    backbone = backbones["sd3"]
    adaptor = supir(backbone, depth=depth)
    if depth == "whole":
        assert adaptor.trunk.controls == encoder_controls(backbone)
    z, t, cond = toy_inputs(backbone)
    with torch.no_grad():
        controls = adaptor.control(z, t, seen(z), cond)
        base = backbone(z, t, cond, adaptor.fuse, controls)
        for name in controls:
            less = {**controls, name: torch.zeros_like(controls[name])}
            assert (backbone(z, t, cond, adaptor.fuse, less) - base).abs().max() > 1e-4, name


def dead(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("feed", ["add", "concat", "spatial"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_all_but_the_last_copys_text(kind, feed, backbones) -> None:
    """Nobody reads the text that leaves the last copied block: its queries, way out and feed-forward learn nothing."""
    backbone = backbones[kind]
    adaptor = supir(backbone, feed=feed, depth=2)
    z, t, cond = toy_inputs(backbone)
    backbone(z, t, cond, adaptor.fuse, adaptor.control(z, t, seen(z), cond)).square().mean().backward()
    last = "trunk.transformer_blocks.1."
    unread = [last + name for name in ("attn.add_q_proj", "attn.to_add_out", "ff_context", "attn.norm_added_q")]
    found = dead(adaptor)
    assert {name for name in dict(adaptor.named_parameters()) if name.startswith(tuple(unread))} == set(found)
    assert found
    assert all(p.grad.isfinite().all() for p in adaptor.parameters() if p.grad is not None)
    assert all(p.grad is None for p in backbone.parameters())


def test_every_trainable_parameter_gets_a_gradient(backbones) -> None:
    """Or DistributedDataParallel waits for it: "Expected to have finished reduction in the prior iteration"."""
    backbone = backbones["sd3"]
    adaptor = supir(backbone, depth=2)
    z, t, cond = toy_inputs(backbone)
    backbone(z, t, cond, adaptor.fuse, adaptor.control(z, t, seen(z), cond)).square().mean().backward()
    assert [name for name, p in adaptor.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_without_text_the_copies_are_the_joint_blocks_image_half(kind, backbones) -> None:
    backbone = backbones[kind]
    module = made(backbone, text=False, feed="add")
    assert module.context_embedder is None
    names = [name for name, _ in module.transformer_blocks.named_parameters()]
    assert not [name for name in names if "context" in name or "add" in name or "attn2" in name]
    for ours, theirs in zip(module.transformer_blocks, backbone.transformer.transformer_blocks[:3], strict=True):
        own, found = dict(ours.named_parameters()), dict(theirs.named_parameters())
        image = {n for n in found if "context" not in n and "add" not in n and "attn2" not in n}
        assert set(own) == image
        for name, value in own.items():
            if name.startswith("norm1.linear"):
                assert len(value) == 6 * WIDTH
                assert torch.equal(value, found[name][: 6 * WIDTH])
            else:
                assert torch.equal(value, found[name])
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_without_text_the_features_are_those_of_joint_blocks_that_read_no_token(kind, backbones) -> None:
    """Joint blocks over a text of no tokens, the second attention (SD3.5) shut off."""
    backbone = backbones[kind]
    z, t, cond = toy_inputs(backbone, size=(6, 10))
    module = made(backbone, text=False, feed="add")
    joint = copy.deepcopy(backbone.transformer)
    with torch.no_grad():
        h, ctx = joint.pos_embed(z), torch.zeros(2, 0, WIDTH)
        temb = joint.time_text_embed(t, cond.pooled_BD)
        expected = {}
        for i, block in enumerate(joint.transformer_blocks[:3]):
            if block.attn2 is not None:
                for p in block.attn2.to_out[0].parameters():
                    p.zero_()
            ctx, h = block(hidden_states=h, encoder_hidden_states=ctx, temb=temb)
            expected[f"block.{i}"] = h.transpose(1, 2).reshape(2, WIDTH, 3, 5)
        found = module(z, t, some(2, 4, 6, 10), cond)
        other = module(z, t, some(2, 4, 6, 10), Cond(tokens_BLD=cond.tokens_BLD + 1, pooled_BD=cond.pooled_BD))
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **TOLERANCE)
        assert torch.equal(found[name], other[name])


@pytest.mark.parametrize("kind", KINDS)
def test_spatial_features_are_the_priors_of_both_latents_in_one(kind, backbones) -> None:
    """At the start the prior itself, shown the LQ above the reference, has these features; the reference's come first.

    z is not read.
    """
    backbone = backbones[kind]
    z, t, cond = toy_inputs(backbone, size=(6, 10))
    lq, reference = some(2, 4, 6, 10, seed=1), some(2, 4, 6, 10, seed=2)
    module = made(backbone, feed="spatial", depth="half")
    assert module.controls == Controls(channels={"block.0": 2 * WIDTH, "block.1": 2 * WIDTH}, halves=2)
    with torch.no_grad():
        for above, below in ((lq, reference), (reference, lq)):
            found = module(z, t, above, cond, below)
            kept = shown_by_the_prior(backbone, torch.cat([above, below], dim=2), t, cond)
            assert list(found) == ["block.0", "block.1"]
            for name, value in found.items():
                assert value.shape == (2, 2 * WIDTH, 3, 5)
                torch.testing.assert_close(value[:, :WIDTH], kept[name][:, :, 3:], **TOLERANCE)
                torch.testing.assert_close(value[:, WIDTH:], kept[name][:, :, :3], **TOLERANCE)
        other = module(z + 1, t, reference, cond, lq)
        assert all(torch.equal(value, other[name]) for name, value in found.items())
    with pytest.raises(ValueError, match="there is none; use method=instantir") as caught:
        module(z, t, lq, cond)
    assert "\n" not in str(caught.value)


def test_each_half_is_its_own_image_and_meets_the_other_in_the_blocks(backbones) -> None:
    """With all gates shut a block passes its patches on: what either image changes stays in its half, behind a first
    layer of its own; with the gates as they are it reaches both.
    """
    backbone = backbones["sd3"]
    z, t, cond = toy_inputs(backbone)
    lq, reference, moved = (some(2, 4, 8, 8, seed=seed) for seed in (1, 2, 3))
    module = made(backbone, feed="spatial", depth=1)
    shake(module, size=0.05)

    def changed(*args: Tensor) -> tuple[bool, bool]:
        """Whether the reference's half, and the LQ's, differ from the base's."""
        found = module(z, t, args[0], cond, args[1])["block.0"]
        return tuple(not torch.equal(a, b) for a, b in zip(found.chunk(2, dim=1), base.chunk(2, dim=1), strict=True))

    with torch.no_grad():
        base = module(z, t, lq, cond, reference)["block.0"]
        assert changed(lq, moved) == changed(moved, reference) == (True, True)
        for p in module.transformer_blocks[0].norm1.linear.parameters():
            p.zero_()
        base = module(z, t, lq, cond, reference)["block.0"]
        assert changed(lq, moved) == (True, False)
        assert changed(moved, reference) == (False, True)
        for p in module.reference_proj.parameters():
            p.zero_()
        assert changed(lq, reference) == (True, False)


def test_sft_reads_the_halves_in_that_order(backbones) -> None:
    """h + Z((1 + alpha(h_lq)) h_reference + beta(h_lq)) after each block with a control."""
    backbone = backbones["sd3"]
    controls = made(backbone, feed="spatial", depth=2).controls
    fusion = SFT(backbone, hidden=8, controls=controls)
    shake(fusion)
    carry = {name: some(2, 2 * WIDTH, 3, 5, seed=n) for n, name in enumerate(controls.channels)}
    hears = {"block.0": "block.0", "block.1": "block.0", "block.2": "block.1"}
    for tap in backbone.taps:
        h = some(2, WIDTH, 3, 5, seed=9)
        found, kept = fusion(tap, h, None, carry)
        assert kept is carry
        if tap.name not in hears:
            assert found is h
            continue
        module, control = fusion.connectors[hears[tap.name].replace(".", "_")], carry[hears[tap.name]]
        reference, lq = control[:, :WIDTH], control[:, WIDTH:]
        a = F.silu(conv(lq, module.shared[0]))
        added = conv((1 + conv(a, module.alpha)) * reference + conv(a, module.beta), module.zero)
        torch.testing.assert_close(found, h + added, **TOLERANCE)


@pytest.mark.parametrize(("depth", "blocks"), [("whole", 3), ("half", 2), (1, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("text", [True, False])
def test_depth_sets_the_number_of_copied_blocks(depth, blocks, text, backbones) -> None:
    module = made(backbones["sd35"], depth=depth, text=text, feed="concat")
    assert len(module.transformer_blocks) == blocks
    assert list(module.controls.channels) == [f"block.{i}" for i in range(blocks)]


@pytest.mark.parametrize("depth", [0, 4, -1, [1, 2]])
def test_a_bad_depth_is_refused_in_one_line(depth, backbones) -> None:
    with pytest.raises(ValueError, match="give whole, half, or a number of blocks from 1 to 3") as caught:
        made(backbones["sd3"], depth=depth)
    assert str(caught.value).startswith(f"adaptor.trunk.depth={depth!r}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [1.5, "most", None])
def test_what_is_no_depth_is_refused(depth, backbones) -> None:
    with pytest.raises(ValueError, match=r"trunk\.depth=.*: expected whole | half, a whole number"):
        made(backbones["sd3"], depth=depth)


UNIFORM = [("concat", True), ("spatial", True), ("add", True), ("concat", False)]


@pytest.mark.parametrize(("feed", "text"), UNIFORM)
def test_the_trunk_has_the_priors_dtype(feed, text) -> None:
    backbone = toy_backbone("sd35").to(torch.bfloat16)
    module = made(backbone, feed=feed, text=text, depth=1)
    z, t, cond = toy_inputs(backbone)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module(z, t, z, cond, z)["block.0"].isfinite().all()


def test_a_bad_feed_or_missing_pooled_text_is_refused(backbones) -> None:
    with pytest.raises(ValueError, match=r"trunk\.feed=below: there are: concat, add, spatial"):
        made(backbones["sd3"], feed="below")
    z, t, cond = toy_inputs(backbones["sd3"])
    with pytest.raises(ValueError, match="needs pooled text"):
        made(backbones["sd3"])(z, t, z, Cond(tokens_BLD=cond.tokens_BLD))


def gradients(backbone: Any, *, text: str, saving: bool = False) -> tuple[list[Tensor], int]:
    """Of everything trainable and the latent, by way of the prior; and how often the first copied block ran."""
    adaptor = supir(backbone, depth=2, text=text)
    if saving:
        for host in (backbone.transformer, adaptor.trunk):
            checkpoint_blocks(host, partial(checkpoint, use_reentrant=False))
    runs: list[int] = []
    adaptor.trunk.transformer_blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    z, t, cond = toy_inputs(backbone)
    hint = seen(z)
    z.requires_grad_(True)
    out = backbone(z, t, cond, adaptor.fuse, adaptor.control(z, t, hint, cond))
    out.square().mean().backward()
    grads = [torch.zeros(1) if p.grad is None else p.grad for p in adaptor.parameters()]
    return [out.detach(), z.grad, *grads], len(runs)


@pytest.mark.parametrize("text", ["semantic", "removed"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind, text, backbones) -> None:
    plain, runs = gradients(backbones[kind], text=text)
    assert runs == 1
    checkpointed, runs = gradients(toy_backbone(kind), text=text, saving=True)
    assert runs == 2
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def conv(x: Tensor, module: nn.Conv2d) -> Tensor:
    return F.conv2d(x, module.weight, module.bias, padding=module.padding)


def connected(update: Tensor, control: Tensor, module: Any) -> Tensor:
    """GN(u + Z(c)) (1 + gamma(a)) + beta(a), a = SiLU(conv(c)), written out; 16 channels in 16 groups."""
    joined = update + conv(control, module.zero)
    mean, var = joined.mean(dim=(2, 3), keepdim=True), joined.var(dim=(2, 3), unbiased=False, keepdim=True)
    normed = (joined - mean) / (var + 1e-5).sqrt() * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]
    a = F.silu(conv(control, module.shared[0]))
    return normed * (1 + conv(a, module.gamma)) + conv(a, module.beta)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_zero_sft_acts_on_what_each_block_added(kind, trained, backbones) -> None:
    """By hooks on the prior's own blocks: h <- h_before + ZeroSFT(h - h_before), h_before as the last edit left it."""
    backbone = backbones[kind]
    controls = Controls(channels={"block.0": WIDTH, "block.1": WIDTH})
    torch.manual_seed(0)
    fusion = ZeroSFT(backbone, hidden=8, attention=False, controls=controls)
    if trained:
        shake(fusion)
    z, t, cond = toy_inputs(backbone, size=(6, 10))
    carry = {name: some(2, WIDTH, 3, 5, seed=n) for n, name in enumerate(controls.channels)}
    hears = {0: "block.0", 1: "block.0", 2: "block.1"}

    def hook(i: int) -> Any:
        def after(module: nn.Module, inputs: Any, kwargs: Any, out: tuple) -> tuple:
            before, now = (h.transpose(1, 2).reshape(2, WIDTH, 3, 5) for h in (kwargs["hidden_states"], out[1]))
            name = hears[i]
            edited = before + connected(now - before, carry[name], fusion.connectors[name.replace(".", "_")])
            return out[0], edited.flatten(2).transpose(1, 2)

        return after

    blocks = backbone.transformer.transformer_blocks
    with torch.no_grad():
        handles = [blocks[i].register_forward_hook(hook(i), with_kwargs=True) for i in hears]
        expected = backbone.transformer(
            z, encoder_hidden_states=cond.tokens_BLD, pooled_projections=cond.pooled_BD, timestep=t
        ).sample
        for handle in handles:
            handle.remove()
        found = backbone(z, t, cond, fusion, carry)
        assert list(carry) == ["block.0", "block.1"]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert found.isfinite().all()
        assert (found - backbone(z, t, cond)).abs().max() > 1e-2  # the norm acts from the start


def test_zero_sft_learns_through_a_whole_adaptor(backbones) -> None:
    backbone = backbones["sd35"]
    adaptor = supir(backbone, fusion=partial(ZeroSFT, hidden=8, attention=False), depth="half")
    z, t, cond = toy_inputs(backbone)
    out = backbone(z, t, cond, adaptor.fuse, adaptor.control(z, t, seen(z), cond))
    out.square().mean().backward()
    assert out.isfinite().all()
    assert [name for name in dead(adaptor) if not name.startswith("trunk.transformer_blocks.1.")] == []
    assert all(p.grad.isfinite().all() for p in adaptor.parameters() if p.grad is not None)


def test_zero_sft_of_a_zero_update_is_finite(backbones) -> None:
    """A block whose gates are shut adds nothing; the group norm of nothing is its bias."""
    backbone = backbones["sd3"]
    fusion = ZeroSFT(backbone, hidden=8, attention=False)
    patch, first = backbone.taps[:2]
    h, carry = some(2, WIDTH, 3, 5), {tap.name: some(2, WIDTH, 3, 5, seed=1) for tap in backbone.taps[1:-1]}
    shown, carry = fusion(patch, h, None, carry)
    found, _ = fusion(first, shown, None, carry)
    assert shown is h
    torch.testing.assert_close(found, h)


def test_fusions_that_need_a_decoder_are_refused_in_one_line(backbones) -> None:
    for build, message in (
        (partial(ZeroSFT, hidden=8, attention=True), "an MM-DiT has none"),
        (partial(Modulation, decoder=True), "an MM-DiT has not"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            build(backbones["sd3"])
        assert "\n" not in str(caught.value)


def test_modulation_after_each_block_equals_its_formula(backbones) -> None:
    backbone = backbones["sd3"]
    fusion = Modulation(backbone, decoder=False, controls=Controls(channels={"block.0": WIDTH, "block.1": WIDTH}))
    shake(fusion)
    carry = {f"block.{n}": some(2, WIDTH, 3, 5, seed=n) for n in range(2)}
    for tap, source in zip(backbone.taps[1:4], ("block.0", "block.0", "block.1"), strict=True):
        h = some(2, WIDTH, 3, 5, seed=9)
        gamma, beta = (conv(carry[source], part[source.replace(".", "_")]) for part in (fusion.gamma, fusion.beta))
        torch.testing.assert_close(fusion(tap, h, None, carry)[0], (1 + gamma) * h + beta, **TOLERANCE)
    for tap in (backbone.taps[0], backbone.taps[4]):
        assert fusion(tap, h, None, carry)[0] is h
