"""InstantIR's parts: the visual stream, LoRA's switch, consistency distillation, references, the aggregator."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from restore_lab.adaptors.control import ControlAdaptor, StreamAdaptor
from restore_lab.adaptors.fusion.sft import SFT, SFTConnector
from restore_lab.adaptors.lora import TARGETS, Lora
from restore_lab.adaptors.stream import AdaNorm, VisualStream, text_attentions
from restore_lab.adaptors.trunk.build import trunk
from restore_lab.methods.dra import LqTargets
from restore_lab.methods.instantir import DcpTraining, PreviewerTraining
from restore_lab.methods.reference import Reference
from restore_lab.objectives.consistency import Distillation, boundary, consistency_function, solver_step
from restore_lab.prompts.dropout import Dropout
from restore_lab.prompts.slots import PromptSources
from restore_lab.random import noise_like
from restore_lab.samplers.fidelity.adares import AdaRes
from restore_lab.samplers.fidelity.base import Steer
from restore_lab.samplers.guidance import Branch
from restore_lab.samplers.tiling import Gaussian
from restore_lab.types import Cond, Hint
from tests.helpers.rounding import close
from tests.helpers.toy_methods import latents, schedule, shake, toy_batch, toy_spire
from tests.helpers.toy_priors import toy_backbone, toy_inputs

KINDS = ("sd", "sdxl", "sd3", "sd35")
VISUAL = 12


def stream_on(backbone, *, adaln_on: str = "kv", scale: float = 1.0) -> VisualStream:
    return VisualStream(
        backbone, inputs=VISUAL, hidden=16, depth=1, heads=2, dim_head=8, queries=4, adaln_on=adaln_on, scale=scale
    )


class ToyEyes(torch.nn.Module):
    """An image encoder: five tokens of averages; linear, so that a black image gives zeros."""

    width = VISUAL

    def forward(self, lq_BCHW: Tensor) -> Tensor:
        return lq_BCHW.mean(dim=(2, 3)).repeat(1, VISUAL // 3)[:, None].expand(-1, 5, -1)


def instantir(kind: str = "sd", *, reference: Reference | None = None, dropout: Dropout | None = None, seed: int = 0):
    """The whole method on a random prior, its LoRA and stream shaken so that they show."""
    torch.manual_seed(seed)
    adaptor = partial(
        ControlAdaptor,
        trunk=partial(trunk, middle="trainable", feed="spatial"),
        fusion=partial(SFT, hidden=8),
        text="removed",
        hint_widths=None,
        hint_channels=None,
        lq_latent=True,
        stream=lambda backbone, inputs: stream_on(backbone),
        lora=partial(Lora, targets="previewer", rank=2, alpha=2, on=False),
    )
    module = toy_spire(kind, adaptor=adaptor, eyes=ToyEyes(), reference=reference or Reference(kind="preview"))
    if dropout is not None:
        own = module.conditioner.prompts
        module.conditioner.prompts = PromptSources(
            semantic=own.semantic,
            instruction=own.instruction,
            dropout=dropout,
            positive="",
            negative="",
            visual=own.visual,
        )
    shake(module.adaptor, size=0.1)
    return module


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_with_strength_zero_the_trunk_needs_no_reference(kind) -> None:
    """Creative restoration: only the prior, guided, without anything that the aggregator could read."""
    module = instantir(kind)
    z, t, cond = toy_inputs(module.backbone)
    hint = Hint(lq_BCHW=torch.rand(2, 3, 16, 16), lq_latent_BCHW=torch.rand_like(z))
    branches = [Branch(weight=3.0, cond=cond, hint=hint), Branch(weight=-2.0, cond=cond, hint=hint)]
    with torch.no_grad():
        plain = module.backbone(z, t, cond)
        torch.testing.assert_close(module.denoiser.weigh(z, t, branches, strength=0.0), 3 * plain - 2 * plain)
        with pytest.raises(ValueError, match="reads a reference beside the LQ"):
            module.denoiser.weigh(z, t, branches, strength=0.5)


@pytest.mark.parametrize("adaln_on", ["kv", "context"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_without_tokens_or_scale_changes_nothing(kind, adaln_on) -> None:
    backbone = toy_backbone(kind)
    z, t, cond = toy_inputs(backbone)
    tokens = torch.randn(2, 4, backbone.token_width)
    with torch.no_grad():
        plain = backbone(z, t, cond)
        stream = stream_on(backbone, adaln_on=adaln_on)
        shake(stream)
        assert torch.equal(backbone(z, t, cond), plain)  # without features
        streamed = replace(cond, visual_BLD=tokens)
        assert not torch.equal(backbone(z, t, streamed), plain)
        stream.scale = 0.0
        assert torch.equal(backbone(z, t, streamed), plain)
        stream.scale = 1.0
        for layer in stream.layers.values():  # values of zero
            layer.to_v_ip.weight.zero_()
            if layer.ln_v_ip is not None:
                layer.ln_v_ip.linear.weight.zero_()
                layer.ln_v_ip.linear.bias.zero_()
        assert close(backbone(z, t, streamed), plain)  # a sum lies in memory otherwise than its first term


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_the_visual_stream_equals_its_formula(kind) -> None:
    """Eq. 3, 4 in one attention: text attention + w softmax(q K') V' through the output layer, by hand."""
    backbone = toy_backbone(kind)
    stream = stream_on(backbone, scale=0.7)
    shake(stream)
    name, attention = next(iter(text_attentions(backbone).items()))
    layer = stream.layers[name.replace(".", "_")]
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(2, 6, attention.to_q.in_features, generator=draw)
    width = attention.added_kv_proj_dim if kind == "sd3" else attention.to_k.in_features
    ctx = torch.randn(2, 5, width, generator=draw)
    tokens, temb = torch.randn(2, 4, backbone.token_width, generator=draw), torch.randn(2, backbone.temb_width)
    with torch.no_grad():
        plain, found = (
            attention(h, encoder_hidden_states=ctx, **extra) for extra in ({}, {"ip_hidden_states": (tokens, temb)})
        )
        plain, found = (out[0] if isinstance(out, tuple) else out for out in (plain, found))
        pairs = []
        for projection, norm in ((layer.to_k_ip, layer.ln_k_ip), (layer.to_v_ip, layer.ln_v_ip)):
            x = projection(tokens)
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            shift, scale = norm.linear(torch.nn.functional.silu(temb)).chunk(2, dim=-1)
            pairs.append(x * (1 + scale[:, None]) + shift[:, None])
        q, (k, v) = attention.to_q(h), pairs
        heads, out = attention.heads, []
        for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            weights = (qh @ kh.mT / qh.shape[-1] ** 0.5).softmax(-1)
            out.append(weights @ vh)
        expected = plain + 0.7 * torch.cat(out, -1) @ attention.to_out[0].weight.T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_adanorm_starts_as_layer_norm() -> None:
    x, temb = torch.randn(2, 3, 8), torch.randn(2, 4)
    torch.testing.assert_close(
        AdaNorm(width=8, temb=4)(x, temb), torch.nn.functional.layer_norm(x, (8,), eps=1e-6), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_with_lora_off_the_prior_is_unchanged_bit_for_bit(kind, targets) -> None:
    backbone = toy_backbone(kind)
    z, t, cond = toy_inputs(backbone)
    with torch.no_grad():
        plain = backbone(z, t, cond)
        lora = Lora(backbone, targets=targets, rank=2, alpha=4)
        assert torch.equal(backbone(z, t, cond), plain)  # B starts at zero
        shake(lora)
        on = backbone(z, t, cond)
        assert not torch.equal(on, plain)
        with lora.switch(False):
            assert torch.equal(backbone(z, t, cond), plain)
            with lora.switch(True):
                assert torch.equal(backbone(z, t, cond), on)
            assert torch.equal(backbone(z, t, cond), plain)
        assert torch.equal(backbone(z, t, cond), on)
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    off = Lora(toy_backbone(kind), targets=targets, rank=2, alpha=4, on=False)
    assert not off.on


def test_two_lora_sets_add_up_and_switch_separately() -> None:
    def prior_with(*sets: tuple[str, str]):
        backbone = toy_backbone("sd")
        made = [Lora(backbone, targets=targets, rank=2, alpha=4, name=name) for name, targets in sets]
        for seed, one in enumerate(made):
            with torch.random.fork_rng():
                torch.manual_seed(seed if len(made) > 1 else int(sets[0][0] == "second"))
                for name, p in sorted(one.updates.items()):
                    torch.nn.init.normal_(p, std=0.1) if "lora_B" in name else torch.nn.init.constant_(p, 0.1)
        return backbone, made

    backbone, (first, second) = prior_with(("first", "self_attention"), ("second", "previewer"))
    z, t, cond = toy_inputs(backbone)
    assert set(first.updates) < set(second.updates)  # they share layers, and files do not name the set
    assert not {id(p) for p in first.updates.values()} & {id(p) for p in second.updates.values()}
    with torch.no_grad():
        plain = toy_backbone("sd")(z, t, cond)
        for one, other in ((first, second), (second, first)):
            alone, _ = prior_with((one.name, "self_attention" if one is first else "previewer"))
            with other.switch(False):
                assert one.on and not other.on
                torch.testing.assert_close(backbone(z, t, cond), alone(z, t, cond), rtol=1e-5, atol=1e-5)
        both = backbone(z, t, cond)
        with first.switch(False), second.switch(False):
            torch.testing.assert_close(backbone(z, t, cond), plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both, plain, rtol=1e-3, atol=1e-3)
    assert all(p.requires_grad for one in (first, second) for p in one.updates.values())
    with pytest.raises(ValueError, match="holds a LoRA set of that name already"):
        Lora(backbone, targets="self_attention", rank=2, alpha=4, name="first")
    with pytest.raises(ValueError, match=r"Lora\.name=a\.b: expected a name of letters"):
        Lora(backbone, targets="self_attention", rank=2, alpha=4, name="a.b")


def test_a_previewers_lora_leaves_the_texts_keys_alone() -> None:
    backbone = toy_backbone("sd")
    names = " ".join(Lora(backbone, targets="previewer", rank=1, alpha=1).updates)
    assert "attn2/to_q" in names and "attn1/to_k" in names and "conv1" in names and "time_emb_proj" in names
    assert "attn2/to_k" not in names and "attn2/to_v" not in names and "conv_in" not in names
    own = " ".join(Lora(toy_backbone("sd"), targets="self_attention", rank=1, alpha=1).updates)
    assert "attn1/to_q" in own and "attn2" not in own and "conv" not in own


def test_the_consistency_boundary_equals_its_formula() -> None:
    """f(z, 0) = z; far from it f is x0."""
    skip, out = boundary(torch.tensor([0.0, 999.0]))
    assert (skip[0], out[0]) == (1.0, 0.0) and out[1] == pytest.approx(1.0, abs=1e-6) and skip[1] < 1e-6
    scaled = 10 * torch.tensor([3.0])
    a, b = boundary(torch.tensor([3.0]))
    assert float(a) == pytest.approx(0.25 / (float(scaled) ** 2 + 0.25))
    assert float(b) == pytest.approx(float(scaled) / (float(scaled) ** 2 + 0.25) ** 0.5)
    s, z, v = schedule("v_prediction", zero_snr=False), latents(), latents(seed=1)
    t = torch.tensor([0, 0, 0])
    assert torch.equal(consistency_function(v, z, t, schedule=s), z)
    t = torch.tensor([999, 500, 100])
    torch.testing.assert_close(consistency_function(v, z, t, schedule=s), s.to_x0(v, z, t), atol=1e-4, rtol=1e-3)


def test_the_distillation_solver_is_ddim() -> None:
    s, z, v = schedule("v_prediction", zero_snr=False), latents(), latents(seed=1)
    from restore_lab.samplers.schedulers import ddim

    theirs = ddim(s, timestep_spacing="trailing")
    theirs.set_timesteps(50)
    start, after = torch.tensor([999] * 3), torch.tensor([979] * 3)
    torch.testing.assert_close(
        solver_step(v, z, start, after, s), theirs.step(v, 999, z).prev_sample, atol=1e-4, rtol=1e-3
    )
    loss = Distillation(solver_steps=50, w_min=0, w_max=0, distance="squared")
    s_B, t_B = loss.times(list(range(500)), s)
    assert set(s_B.tolist()) == set(range(19, 1000, 20)) and torch.equal(t_B, (s_B - 20).clamp(min=0))


def test_a_consistent_student_has_zero_loss() -> None:
    """Where teacher and student know x0 both sides agree; a constant gap gives its square, or pseudo-Huber."""
    s, x0 = schedule("v_prediction", zero_snr=False), latents()
    run = lambda loss, student: float(  # noqa: E731
        loss(x0, seeds=[1, 2, 3], schedule=s, student=student, teacher=lambda z, t, w: s.from_x0(x0, z, t))
    )
    gap = lambda z, t: x0 + (0.3 if z.requires_grad or torch.is_grad_enabled() else 0.0)  # noqa: E731
    for distance, expected in (("squared", 0.09), ("huber", (0.09 + 1e-6) ** 0.5 - 1e-3)):
        loss = Distillation(solver_steps=50, w_min=3, w_max=15, distance=distance)
        assert run(loss, lambda z, t: x0) == 0.0
        assert run(loss, gap) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="distance=l1: there are: squared, huber"):
        Distillation(solver_steps=50, w_min=3, w_max=15, distance="l1")


def distilled(kind: str, *, checkpointing: bool) -> tuple[float, dict[str, Tensor]]:
    module = instantir(kind)
    stage = PreviewerTraining(
        restorer=module,
        trains=["lora"],
        known=["stream", "lora"],
        objective=Distillation(solver_steps=50, w_min=3, w_max=15, distance="squared"),
    )
    if checkpointing:
        module.backbone.denoiser.enable_gradient_checkpointing(module.adaptor.lora.checkpoint)
    loss = stage.loss(toy_batch(), step=0)["loss"]
    with module.adaptor.lora.switch(False):  # the backward pass may find the switch either way
        loss.backward()
    grads = {name: p.grad.clone() for name, p in stage.trainable().items() if p.grad is not None}
    return float(loss.detach()), grads


@pytest.mark.parametrize("kind", ["sd", "sd3", "sd35"])
def test_distillation_is_the_same_with_and_without_checkpointing(kind) -> None:
    """Teacher, student and target switch LoRA inside one step; what is recomputed sees the switch as it stood."""
    plain, grads = distilled(kind, checkpointing=False)
    again, recomputed = distilled(kind, checkpointing=True)
    assert plain == pytest.approx(again, rel=1e-6)
    assert grads.keys() == recomputed.keys() and all("lora" in name for name in grads)
    assert any(g.abs().max() > 0 for g in grads.values())
    for name, value in grads.items():
        torch.testing.assert_close(recomputed[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_the_teacher_is_guided_and_without_lora_the_student_is_not() -> None:
    """Of one step's passes: LoRA on for the student and its target, off for the teacher's halves, in one call."""
    module = instantir("sd")
    stage = PreviewerTraining(
        restorer=module,
        trains=["lora"],
        known=["stream", "lora"],
        objective=Distillation(solver_steps=50, w_min=3, w_max=3, distance="huber"),
    )
    seen = []
    module.backbone.unet.conv_out.register_forward_hook(
        lambda *args: seen.append((module.adaptor.lora.on, torch.is_grad_enabled()))
    )
    stage.loss(toy_batch(), step=0)["loss"]
    assert seen == [(True, True), (False, False), (True, False)]


def test_the_first_stage_turns_lqs_into_targets_as_the_last_does() -> None:
    """With all of the images turned, the loss is at the LQ's latents, and the words say what is wrong."""
    module, batch = instantir("sd"), toy_batch()
    module.lq_targets = LqTargets(share=1.0)
    stage = DcpTraining(restorer=module, trains=["stream"], known=["stream"])
    seen, words = [], []
    module.objective = lambda z0_BCHW, **_: seen.append(z0_BCHW) or z0_BCHW.sum()
    conditioner = module.conditioner
    old, conditioner.cond = conditioner.cond, lambda prompt, size: words.extend(prompt.semantic) or old(prompt, size)
    stage.loss(batch, step=0)["loss"]
    torch.testing.assert_close(seen[0], module.backbone.codec.encode(batch.lq_BCHW))
    assert all(text.startswith("low quality") for text in words)


def test_a_connector_equals_equation_6() -> None:
    connector = SFTConnector(channels=4, hidden=8, width=6)
    shake(connector)
    p, o = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    a = torch.nn.functional.silu(connector.shared[0](o))
    torch.testing.assert_close(
        connector(p, o), connector.zero((1 + connector.alpha(a)) * p + connector.beta(a)), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_aggregator_reads_both_halves_and_no_text(kind) -> None:
    module = instantir(kind)
    z, t, cond = toy_inputs(module.backbone)
    batch = toy_batch(size=(32, 32))
    hint = module.conditioner.hint(batch.lq_BCHW, module.conditioner.prompts(batch, training=False))
    hint = replace(hint, reference_BCHW=torch.randn_like(hint.lq_latent_BCHW))
    with torch.no_grad():
        control = module.adaptor.control(z, t, hint, cond)
        for name, value in control.items():
            tap = next(tap for tap in module.backbone.taps if tap.name == name)
            assert value.shape[1] == 2 * tap.channels and value.shape[-1] == 8 // tap.stride
        other_words = replace(cond, tokens_BLD=torch.randn_like(cond.tokens_BLD))
        for name, value in module.adaptor.control(torch.randn_like(z), t, hint, other_words).items():
            assert torch.equal(value, control[name])
        for changed in ("lq_latent_BCHW", "reference_BCHW"):
            moved = module.adaptor.control(z, t, replace(hint, **{changed: torch.randn_like(z)}), cond)
            assert all(not torch.equal(moved[name], value) for name, value in control.items())
    names = [name for name, _ in module.adaptor.trunk.named_parameters()]
    assert not any("attn2.to_k" in name or "context" in name or "add_k_proj" in name for name in names)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_each_reference_source_gives_its_latent(kind) -> None:
    """Table 2a's sources: each is what it says, and the prior is left as it was."""
    module = instantir(kind)
    batch = toy_batch(size=(32, 32))
    prompt = module.conditioner.prompts(batch, training=False)
    z, t, _ = toy_inputs(module.backbone, seed=300)
    cond, hint = module.conditioner.cond(prompt, (32, 32)), None
    codec, s = module.backbone.codec, module.backbone.schedule
    found = {}
    sources = {
        "lq": Reference(kind="lq"),
        "hq": Reference(kind="hq"),
        "mean": Reference(kind="mean"),
        "unconditional": Reference(kind="preview", dcp=False),
        "dcp": Reference(kind="preview"),
        "prompt": Reference(kind="preview", prompt=True),
        "noised": Reference(kind="preview", fresh_noise=True),
    }
    with torch.no_grad():
        plain = module.backbone(z, t, cond)
        for name, source in sources.items():
            module.denoiser.reference, module.conditioner.reads_hq = source, name == "hq"
            hint = module.conditioner.hint(batch.lq_BCHW, prompt, hq_BCHW=batch.hq_BCHW)
            found[name] = source(module.backbone, module.adaptor, z, t, cond, hint, seeds=batch.seed)
        assert torch.equal(module.backbone(z, t, cond), plain)
        assert torch.equal(found["lq"], codec.encode(batch.lq_BCHW))
        assert torch.equal(found["hq"], codec.encode(batch.hq_BCHW))
        torch.testing.assert_close(found["mean"], s.to_x0(plain, z, t))
        with module.adaptor.lora.switch(True):
            words = replace(
                module.backbone.embed(("", ""), (32, 32)), visual_BLD=module.adaptor.stream(prompt.visual_BLD)
            )
            psi = consistency_function(module.backbone(z, t, words), z, t, schedule=s)
        torch.testing.assert_close(found["dcp"], psi)
    values = list(found.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[i + 1 :])
    a, sd = (f(t).reshape(-1, 1, 1, 1) for f in (s.alpha, s.sigma))
    noise = (found["noised"] - a * found["dcp"]) / sd
    assert noise.std() == pytest.approx(1.0, abs=0.2) and noise.mean().abs() < 0.2
    with pytest.raises(ValueError, match="kind=x: there are: lq, hq, mean, preview"):
        Reference(kind="x")
    module.denoiser.reference = Reference(kind="hq")
    hint = module.conditioner.hint(batch.lq_BCHW, prompt)
    with pytest.raises(ValueError, match="only an evaluation has"):
        module.denoiser.reference(module.backbone, module.adaptor, z, t, cond, hint, seeds=batch.seed)


def test_a_reference_is_blended_towards_the_lq() -> None:
    """Algorithm 1, line 5, an image at a time: z_ref = preview + delta (z_LQ - preview)."""
    module, batch = instantir("sd"), toy_batch(size=(32, 32))
    prompt = module.conditioner.prompts(batch, training=False)
    z, t, _ = toy_inputs(module.backbone)
    with torch.no_grad():
        cond, hint = module.conditioner.cond(prompt, (32, 32)), module.conditioner.hint(batch.lq_BCHW, prompt)
        delta = torch.tensor([0.0, 0.25])
        shown, preview = module.denoiser.add_reference(z, t, cond, hint, seeds=batch.seed, steer=Steer(blend=delta))
        d = delta[:, None, None, None]
        torch.testing.assert_close(
            shown.reference_BCHW, preview + d * (hint.lq_latent_BCHW - preview), atol=1e-5, rtol=1e-5
        )
        whole, _ = module.denoiser.add_reference(z, t, cond, hint, seeds=batch.seed, steer=Steer(blend=1.0))
        torch.testing.assert_close(whole.reference_BCHW, hint.lq_latent_BCHW, atol=1e-5, rtol=1e-4)


def test_training_may_blend_references() -> None:
    """A share of the images, delta uniform in [0, 2] cut to 1: half of them are the LQ itself. An image's own seed
    decides, and with no share nothing moves."""
    seeds = list(range(4000))
    assert not Reference(kind="preview").draw_blend(seeds).any()
    half_B, all_B = (Reference(kind="preview", blended=share).draw_blend(seeds) for share in (0.5, 1.0))
    assert (half_B > 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (all_B == 1).float().mean() == pytest.approx(0.5, abs=0.03)
    assert all_B[all_B < 1].mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(half_B[7:9], Reference(kind="preview", blended=0.5).draw_blend([7, 8]))
    with pytest.raises(ValueError, match=r"blended=1\.5: expected a number from 0 to 1"):
        Reference(kind="preview", blended=1.5)


def test_dropped_images_are_black_and_dropped_together_with_the_words() -> None:
    both = instantir("sd", dropout=Dropout(semantic=0.0, instruction=0.0, together=1.0))
    batch = toy_batch()
    prompt = both.conditioner.prompts(batch, training=True)
    assert prompt.semantic == ("", "") and torch.equal(prompt.visual_BLD, prompt.visual_null_BLD)
    assert not prompt.visual_BLD.any()
    blind = instantir("sd", dropout=Dropout(semantic=0.0, instruction=0.0, visual=1.0))
    image = blind.conditioner.prompts(batch, training=True)
    assert image.semantic == batch.caption and torch.equal(image.visual_BLD, image.visual_null_BLD)
    test = both.conditioner.prompts(batch, training=False)
    assert test.semantic == batch.caption and test.visual_BLD.any()


def test_the_first_stage_may_drop_otherwise_than_the_last(monkeypatch) -> None:
    for words, image in ((1.0, 0.0), (0.0, 1.0)):
        module = instantir("sd")
        dropout = Dropout(semantic=words, instruction=0.0, visual=image)
        stage = DcpTraining(
            restorer=module,
            trains=["stream"],
            known=["stream"],
            dropout=dropout,
        )
        told, old = [], module.conditioner.cond
        monkeypatch.setattr(
            module.conditioner,
            "cond",
            lambda prompt, size, told=told, old=old: told.append(prompt) or old(prompt, size),
        )
        stage.loss(toy_batch(), step=0)["loss"]
        assert told[0].semantic == (("", "") if words else toy_batch().caption)
        assert torch.equal(told[0].visual_BLD, told[0].visual_null_BLD) == bool(image)


def test_guidance_moves_away_from_a_black_image_too() -> None:
    """With a stream the other half is never the condition itself, words or not."""
    module, batch = instantir("sd"), replace(toy_batch(), caption=("", ""))
    prompt = module.conditioner.prompts(batch, training=False)
    cond = module.conditioner.cond(prompt, (16, 16))
    null = module.conditioner.null(prompt, (16, 16), cond)
    assert null is not cond and torch.equal(null.tokens_BLD, cond.tokens_BLD)
    assert not torch.equal(null.visual_BLD, cond.visual_BLD)


def test_stages_train_what_they_say_and_the_weights_come_back(tmp_path) -> None:
    module = instantir("sd")
    stage = PreviewerTraining(
        restorer=module,
        trains=["lora"],
        known=["stream", "lora"],
        objective=Distillation(solver_steps=50, w_min=3, w_max=15, distance="squared"),
    )
    assert stage.trainable() and all("lora" in name for name in stage.trainable())
    stage.export(tmp_path)
    from restore_lab.methods.weights import weights_file

    other = instantir("sd", seed=5)
    shake(other.adaptor, seed=9)
    with pytest.raises(ValueError, match="does not fit this adaptor"):
        other.load_weights(weights_file(str(tmp_path)))
    before = {name: value.clone() for name, value in other.adaptor_state().items()}
    other.load_weights(weights_file(str(tmp_path)), partial=True)
    for name, value in other.adaptor_state().items():
        same_as = module.adaptor_state() if name.startswith(("stream.", "lora.")) else before
        assert torch.equal(value, same_as[name]), name
    whole = tmp_path / "whole"
    whole.mkdir()
    module.export(whole)
    other.load_weights(weights_file(str(whole)))
    batch = toy_batch()
    module.sampler.fidelity = other.sampler.fidelity = AdaRes(mode="reference")
    assert close(module.restore(batch), other.restore(batch))
    with pytest.raises(ValueError, match="this stage trains the adaptor's lora"):
        PreviewerTraining(
            restorer=toy_spire(),
            trains=["lora"],
            known=["lora"],
            objective=Distillation(solver_steps=50, w_min=3, w_max=15, distance="squared"),
        )


def test_a_visual_stream_without_trunk_is_an_adaptor() -> None:
    backbone = toy_backbone("sd")
    adaptor = StreamAdaptor(backbone, stream=lambda b, inputs: stream_on(b), lora=None, visual=VISUAL)
    z, t, cond = toy_inputs(backbone)
    assert adaptor.control(z, t, None, cond) is None
    h = torch.randn(1, 4, 2, 2)
    assert adaptor.fuse(backbone.taps[0], h, h, None)[0] is h
    with pytest.raises(ValueError, match="neither a stream nor LoRA"):
        StreamAdaptor(backbone, stream=None, lora=None)
    assert isinstance(cond, Cond)


def test_previews_of_a_large_latent_are_blended_whole_and_noised_once() -> None:
    """References are those of the whole latent: neither the batch of tiles nor their order is seen in them."""
    module, batch = instantir("sd"), toy_batch(1, size=(32, 80))
    module.denoiser.reference = Reference(kind="preview", fresh_noise=True)
    drawn: list[tuple[int, ...]] = []
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "restore_lab.methods.reference.noise_like",
            lambda like, seeds, purpose: drawn.append(tuple(like.shape)) or noise_like(like, seeds, purpose),
        )
        for count in (1, 3):
            module.sampler.tiling = Gaussian(tile=32, overlap=8, batch=count, sigma=0.1, words="image")
            found.append(module.restore(batch))
    assert set(drawn) == {(1, 4, 8, 20)}
    torch.testing.assert_close(*found, atol=2e-5, rtol=0)
