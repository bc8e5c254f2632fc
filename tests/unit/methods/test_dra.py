"""DRA: the chain of adapters and its stream, zero start, counts, LQs as their own targets, checkpointing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from restore_lab.adaptors.lora import Lora
from restore_lab.adaptors.restoration_adapter import RestorationAdapters, resize_features
from restore_lab.methods.dra import LqTargets, describe_degradation
from restore_lab.types import Hint
from tests.helpers.rounding import close
from tests.helpers.toy_methods import recipe_of, shake, toy_batch, toy_spire
from tests.helpers.toy_priors import toy_backbone, toy_inputs

KINDS = ("sd", "sdxl", "sd3", "sd35")


def adapters(
    backbone, *, lora: bool = False, every: int = 2, kernels=(3, 1), lq_kernel: int = 1
) -> RestorationAdapters:
    return RestorationAdapters(
        backbone,
        lq_kernel=lq_kernel,
        kernels=kernels,
        every=every,
        stream=None,
        lora=partial(Lora, targets="self_attention", rank=2, alpha=2) if lora else None,
    )


def toy_hint(backbone, *, seed: int = 0) -> Hint:
    latent = torch.randn(2, backbone.codec.channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Hint(lq_BCHW=torch.zeros(2, 3, 32, 32), lq_latent_BCHW=latent)


def steered(backbone, made: RestorationAdapters, z: Tensor, t: Tensor, cond, hint: Hint) -> Tensor:
    return backbone(z, t, cond, at=made.fuse, carry=made.control(z, t, hint, cond))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_untrained_adapters_leave_the_prior_unchanged(kind, lora) -> None:
    backbone = toy_backbone(kind)
    z, t, cond = toy_inputs(backbone)
    with torch.no_grad():
        plain = backbone(z, t, cond)
        made = adapters(backbone, lora=lora)
        assert torch.equal(steered(backbone, made, z, t, cond, toy_hint(backbone)), plain)
        shake(made)
        found = steered(backbone, made, z, t, cond, toy_hint(backbone))
        assert not torch.equal(found, plain)
        assert not torch.equal(steered(backbone, made, z, t, cond, toy_hint(backbone, seed=1)), found)


def test_adapters_are_at_the_papers_places() -> None:
    """SDXL: after every block but the last up block; SD3: after every fourth (here second) joint block."""
    assert list(adapters(toy_backbone("sdxl")).adapters) == ["down_0", "down_1", "down_2", "mid", "up_0", "up_1"]
    assert list(adapters(toy_backbone("sd3")).adapters) == ["block_1", "block_3"]
    assert list(adapters(toy_backbone("sd3"), every=3).adapters) == ["block_2"]
    with pytest.raises(ValueError, match=r"every=5: this backbone has only 4"):
        adapters(toy_backbone("sd3"), every=5)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_the_stream_passes_from_adapter_to_adapter(kind) -> None:
    """The first reads the LQ's latent, each later one the output of the one before; nothing else changes it."""
    backbone = toy_backbone(kind)
    made = adapters(backbone)
    shake(made)
    z, t, cond = toy_inputs(backbone)
    hint = toy_hint(backbone)
    got, gave = {}, {}

    def watch(name: str):
        def hook(module, inputs, outputs) -> None:
            got[name], gave[name] = inputs[1], outputs[1]

        return hook

    for name, adapter in made.adapters.items():
        adapter.register_forward_hook(watch(name))
    with torch.no_grad():
        start = made.control(z, t, hint, cond)
        steered(backbone, made, z, t, cond, hint)
    names = list(made.adapters)
    assert torch.equal(got[names[0]], start)
    if kind == "sd":
        assert start is hint.lq_latent_BCHW
    for before, after in pairwise(names):
        assert got[after] is gave[before]


@pytest.mark.parametrize("transformer", [False, True])
def test_an_adapter_equals_its_formula(transformer) -> None:
    """Section 3.2: LQ block + time + X_t, two residual blocks, a zero linear layer, + X_t."""
    backbone = toy_backbone("sd3" if transformer else "sd")
    adapter = list(adapters(backbone).adapters.values())[1]
    shake(adapter)
    channels = adapter.out.in_channels
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 4, 4, generator=draw)
    stream = torch.randn(2, adapter.lq.in_channels, 8, 8, generator=draw)
    temb = torch.randn(2, backbone.temb_width, generator=draw)
    with torch.no_grad():
        found, handed = adapter(x, stream, temb)
        pooled = stream.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
        h = adapter.lq(pooled) + adapter.time(torch.nn.functional.silu(temb))[:, :, None, None] + x
        for block in adapter.blocks:
            if transformer:
                normed = torch.nn.functional.layer_norm(h.movedim(1, -1), (channels,), eps=1e-6).movedim(-1, 1)
                h = h + torch.nn.functional.silu(block[1](normed))
            else:
                inner = h
                for norm, conv in ((block[0], block[2]), (block[3], block[5])):
                    inner = conv(torch.nn.functional.silu(norm(inner)))
                h = h + inner
        torch.testing.assert_close(handed, h, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found, x + adapter.out(h), atol=1e-5, rtol=1e-4)


def test_the_stream_is_resized_to_each_map() -> None:
    wide = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(resize_features(wide, (2, 2)), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert resize_features(wide, (8, 8)).shape[-1] == 8
    flat = torch.full((1, 1, 4, 4), 3.0)
    assert close(resize_features(flat, (8, 6)), torch.full((1, 1, 8, 6), 3.0))


@pytest.mark.parametrize("kind", ["mini", "sd3"])
def test_the_carry_survives_checkpointing_and_compiling(kind) -> None:
    results = []
    for checkpointing in (False, True):
        backbone = toy_backbone(kind)
        torch.manual_seed(0)
        made = adapters(backbone, lora=True)
        shake(made)
        if checkpointing:
            backbone.denoiser.enable_gradient_checkpointing(made.lora.checkpoint)
        z, t, cond = toy_inputs(backbone)
        out = steered(backbone, made, z, t, cond, toy_hint(backbone))
        out.square().mean().backward()
        results.append((out.detach(), {name: p.grad for name, p in made.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, value in results[0][1].items():
        assert value is not None and value.abs().sum() > 0, name
        torch.testing.assert_close(results[1][1][name], value, atol=1e-6, rtol=1e-5, msg=name)

    backbone = toy_backbone(kind)
    made = adapters(backbone)
    shake(made)
    z, t, cond = toy_inputs(backbone)
    hint, graphs = toy_hint(backbone), []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda z, t: steered(backbone, made, z, t, cond, hint), fullgraph=True, backend=counting)
    with torch.no_grad():
        torch.testing.assert_close(compiled(z, t), steered(backbone, made, z, t, cond, hint), atol=1e-5, rtol=1e-5)
        compiled(z + 1, t)
    assert len(graphs) == 1


def test_some_lqs_are_their_own_target() -> None:
    """A share of the images, each by its own seed; its words say what was done to it."""
    batch = replace(toy_batch(40), recipe=(recipe_of("noise"), recipe_of("jpeg", "resize")) * 20)
    prompt = toy_spire().conditioner.prompts(batch, training=True)
    for share, least, most in ((0.0, 0, 0), (1.0, 40, 40), (0.3, 4, 22)):
        turned, words = LqTargets(share=share)(batch, prompt)
        same = [torch.equal(a, b) for a, b in zip(turned.hq_BCHW, batch.lq_BCHW, strict=True)]
        assert least <= sum(same) <= most
        for i, own in enumerate(same):
            assert torch.equal(turned.hq_BCHW[i], (batch.lq_BCHW if own else batch.hq_BCHW)[i])
            expected = ("low quality, noisy", "low quality, compressed, low resolution")[i % 2]
            assert words.semantic[i] == (expected if own else batch.caption[i])
        some = turned.select([3, 5])
        alone, said = LqTargets(share=share)(
            batch.select([3, 5]), toy_spire().conditioner.prompts(batch.select([3, 5]), training=True)
        )
        assert torch.equal(alone.hq_BCHW, some.hq_BCHW) and said.semantic == (words.semantic[3], words.semantic[5])
    assert describe_degradation(None) == "low quality"
    with pytest.raises(ValueError, match=r"LqTargets\.share=2\.0: expected a number from 0 to 1"):
        LqTargets(share=2.0)


def test_without_an_lq_latent_it_is_refused() -> None:
    backbone = toy_backbone("sd")
    z, t, cond = toy_inputs(backbone)
    with pytest.raises(ValueError, match="restoration adapters read the LQ's latent"):
        adapters(backbone).control(z, t, Hint(lq_BCHW=torch.zeros(2, 3, 32, 32)), cond)
