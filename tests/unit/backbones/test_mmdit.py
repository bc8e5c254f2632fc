"""The MM-DiT: its loop against diffusers' forward, bit for bit; taps, positions, compilation and loading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from diffusers.models.embeddings import PatchEmbed
from safetensors.torch import load_file
from torch import Tensor

from restore_lab.backbones.loading.load import load_backbone
from restore_lab.backbones.loading.places import BackboneError
from restore_lab.backbones.mmdit import MMDiTBackbone, add_positions
from restore_lab.backbones.schedule import FlowMatching
from restore_lab.types import Cond, Tap
from tests.helpers.checkout import CONF
from tests.helpers.rounding import close
from tests.helpers.toy_priors import toy_backbone, toy_inputs, toy_mmdit, toy_unet_folder

BASES = CONF / "backbone" / "full"
KINDS = ("sd3", "sd35")
SIZES = ((8, 8), (6, 10))
WIDTH = 16  # two heads of eight
TABLE, BASE = 12, 4  # the toy's positions: 12 x 12, as far apart as those of a base of 4 x 4 drawn over the table


@pytest.fixture(scope="module")
def backbones():
    """One random prior of each kind; nothing here changes them."""
    return {kind: toy_backbone(kind) for kind in KINDS}


def reference(backbone: MMDiTBackbone, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
    return backbone.transformer(
        z, encoder_hidden_states=cond.tokens_BLD, pooled_projections=cond.pooled_BD, timestep=t
    ).sample


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_output_equals_diffusers_bit_for_bit(kind, train, size) -> None:
    backbone = toy_backbone(kind)
    backbone.transformer.train(train)
    args = toy_inputs(backbone, size=size)
    found = backbone(*args)
    assert found.shape == (2, 4, *size)
    assert torch.equal(found, reference(backbone, *args))


def test_the_toy_kinds_have_their_layers(backbones) -> None:
    """SD3.5's first blocks attend twice and its queries and keys are normed; SD3's do and are neither."""
    for kind, model in ((kind, backbones[kind].transformer) for kind in KINDS):
        dual = [block.attn2 is not None for block in model.transformer_blocks]
        assert dual == ([True, True, False, False] if kind == "sd35" else [False] * 4)
        assert all((block.attn.norm_q is not None) == (kind == "sd35") for block in model.transformer_blocks)


def gradients(backbone: MMDiTBackbone, args: tuple[Tensor, Tensor, Cond], *, ours: bool) -> list[Tensor]:
    """The output, and the gradients of the latent, the text and every parameter."""
    z = args[0].clone().requires_grad_(True)
    cond = Cond(
        tokens_BLD=args[2].tokens_BLD.clone().requires_grad_(True),
        pooled_BD=args[2].pooled_BD.clone().requires_grad_(True),
    )
    backbone.transformer.zero_grad()
    out = backbone(z, args[1], cond) if ours else reference(backbone, z, args[1], cond)
    out.square().sum().backward()
    found = [z.grad, cond.tokens_BLD.grad, cond.pooled_BD.grad, *(p.grad for p in backbone.transformer.parameters())]
    assert all(grad is not None and grad.isfinite().all() for grad in found)
    return [out.detach(), *(grad.clone() for grad in found)]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_output_and_gradients_equal_diffusers(kind) -> None:
    backbone = toy_backbone(kind)
    backbone.transformer.requires_grad_(True)
    args = toy_inputs(backbone)
    plain = gradients(backbone, args, ours=True)
    # Not bit for bit: autograd adds up in an order of its own.
    assert all(close(a, b) for a, b in zip(plain, gradients(backbone, args, ours=False), strict=True))
    backbone.transformer.enable_gradient_checkpointing()
    ours, theirs = (gradients(backbone, args, ours=ours) for ours in (True, False))
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(close(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_recomputes_every_block_and_no_tap(checkpointing) -> None:
    backbone = toy_backbone("sd35")
    if checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    runs: list[int] = []
    for i, block in enumerate(backbone.transformer.transformer_blocks):
        block.register_forward_pre_hook(lambda *_, i=i: runs.append(i))
    shown: list[str] = []

    def watch(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        shown.append(tap.name)
        return h_BCHW, carry

    z, t, cond = toy_inputs(backbone)
    backbone(z.requires_grad_(True), t, cond, watch).sum().backward()
    assert runs == [0, 1, 2, 3, *([3, 2, 1, 0] if checkpointing else [])]
    assert shown == [tap.name for tap in backbone.taps]
    runs.clear()
    with torch.no_grad():
        backbone(z, t, cond)
    assert runs == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_taps_declare_the_shapes_that_an_edit_gets(kind, backbones) -> None:
    backbone = backbones[kind]
    seen: list[tuple[Tap, torch.Size]] = []

    def note(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        assert temb_BD.shape == (2, backbone.temb_width) == (2, WIDTH)
        seen.append((tap, h_BCHW.shape))
        return h_BCHW, carry

    backbone(*toy_inputs(backbone, size=(6, 10)), note)
    assert tuple(tap for tap, _ in seen) == backbone.taps
    assert [tap.name for tap in backbone.taps] == ["patch", "block.0", "block.1", "block.2", "block.3"]
    assert {(tap.kind, tap.channels, tap.stride, tap.skip) for tap in backbone.taps} == {("block", WIDTH, 2, 0)}
    assert {shape for _, shape in seen} == {(2, WIDTH, 3, 5)}
    assert backbone.multiple == 4 * 2  # the codec's compression times the patch
    assert backbone.token_width == 40


def as_tokens(map_BCHW: Tensor) -> Tensor:
    """Row after row, written out pixel by pixel."""
    pixels = [map_BCHW[:, :, y, x] for y in range(map_BCHW.shape[2]) for x in range(map_BCHW.shape[3])]
    return torch.stack(pixels, dim=1)


def part_of(backbone: MMDiTBackbone, name: str) -> torch.nn.Module:
    """diffusers' module whose output the tap shows."""
    model = backbone.transformer
    return model.pos_embed if name == "patch" else model.transformer_blocks[int(name.partition(".")[2])]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_gets_the_outputs_of_diffusers_modules_and_the_carry(kind, backbones) -> None:
    backbone = backbones[kind]
    args = toy_inputs(backbone, size=(6, 10))
    put_out: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        return lambda module, inputs, out: put_out.update({name: out[1] if isinstance(out, tuple) else out})

    handles = [part_of(backbone, tap.name).register_forward_hook(hook(tap.name)) for tap in backbone.taps]
    expected = reference(backbone, *args)
    for handle in handles:
        handle.remove()

    last: list[Any] = []

    def note(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, Any]:
        last.append({**carry, tap.name: h_BCHW})
        return h_BCHW, last[-1]

    found = backbone(*args, note, {"first": args[0]})
    assert torch.equal(found, expected)
    assert list(last[-1]) == ["first", *put_out]
    assert all(torch.equal(as_tokens(last[-1][name]), tokens) for name, tokens in put_out.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["patch", "block.0", "block.1", "block.2", "block.3"])
def test_an_edit_changes_the_output_as_a_hook_would(name, kind, backbones) -> None:
    backbone = backbones[kind]
    args = toy_inputs(backbone, size=(6, 10))
    delta = torch.randn(2, WIDTH, 3, 5, generator=torch.Generator().manual_seed(3))

    def hook(module: Any, inputs: Any, out: Any) -> Any:
        return (out[0], out[1] + as_tokens(delta)) if isinstance(out, tuple) else out + as_tokens(delta)

    with torch.no_grad():
        handle = part_of(backbone, name).register_forward_hook(hook)
        expected = reference(backbone, *args)
        handle.remove()
        found = backbone(*args, lambda tap, h, temb, carry: (h + delta if tap.name == name else h, carry))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert (found - backbone(*args)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_timesteps_are_real_numbers_per_image(kind, backbones) -> None:
    backbone = backbones[kind]
    z, _, cond = toy_inputs(backbone)
    t = torch.tensor([0.25, 700.5])
    with torch.no_grad():
        found, rounded = backbone(z, t, cond), backbone(z, t.round(), cond)
        assert torch.equal(found, reference(backbone, z, t, cond))
        assert all((a - b).abs().max() > 1e-5 for a, b in zip(found, rounded, strict=True))
        other = backbone(z, torch.tensor([0.25, 3.0]), cond)
        torch.testing.assert_close(other[0], found[0], atol=1e-6, rtol=1e-5)
        assert torch.equal(backbone(z, t.round().long(), cond), rounded)


def positions(rows: Tensor, columns: Tensor) -> Tensor:
    """The embedding of every (row, column), counted in patches of the table: sines and cosines of the column's place
    with frequencies 10000^(-4 i / D), then the row's.
    """
    frequencies = 10000.0 ** (-torch.arange(WIDTH // 4, dtype=torch.float64) / (WIDTH // 4))
    out = torch.zeros(len(rows), len(columns), WIDTH, dtype=torch.float64)
    for y, row in enumerate(rows.tolist()):
        for x, column in enumerate(columns.tolist()):
            angles = [BASE / TABLE * place * frequencies for place in (column, row)]
            out[y, x] = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())])
    return out.flatten(0, 1).float()


def offset(side: int) -> int:
    return (TABLE - side) // 2


@pytest.mark.parametrize("size", [(4, 4), (5, 12), (12, 12), (16, 10), (13, 13), (3, 17), (24, 25)])
def test_positions_are_the_formula_within_the_table_and_beyond(size, backbones) -> None:
    """sin and cos of (index + offset) base / table, the map in the middle of the table, which may be smaller."""
    embedder = backbones["sd3"].transformer.pos_embed
    expected = positions(*(torch.arange(side) + offset(side) for side in size))
    found = add_positions(embedder, torch.zeros(1, WIDTH, *size))
    torch.testing.assert_close(found[0], expected, atol=2e-6, rtol=0)
    assert found.is_contiguous()
    if max(size) <= TABLE:
        theirs = embedder.cropped_pos_embed(*(2 * side for side in size))
        assert torch.equal(found, theirs)


def test_positions_beyond_the_table_are_those_of_a_larger_table_of_equal_spacing(backbones) -> None:
    """diffusers' own table of twice the side over twice the base; its first position is 0, as the toy's is."""
    larger = PatchEmbed(
        height=4 * BASE, width=4 * BASE, patch_size=2, in_channels=4, embed_dim=WIDTH, pos_embed_max_size=2 * TABLE
    )
    table = larger.pos_embed.reshape(2 * TABLE, 2 * TABLE, WIDTH)
    found = add_positions(backbones["sd3"].transformer.pos_embed, torch.zeros(1, WIDTH, 16, 10)).reshape(16, 10, WIDTH)
    # 16 rows stand at -2 ... 13, 10 columns at 1 ... 10 of a table of 12.
    torch.testing.assert_close(found[2:], table[:14, 1:11], atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_latent_beyond_the_table_runs_as_diffusers_with_a_larger_one(kind) -> None:
    backbone = toy_backbone(kind)
    z, t, cond = toy_inputs(backbone, size=(32, 20))
    with pytest.raises(ValueError, match="cannot be greater than"):
        reference(backbone, z, t, cond)
    larger = toy_mmdit(kind, pos_embed_max_size=2 * TABLE, sample_size=4 * BASE)
    weights = backbone.transformer.state_dict()
    places = torch.arange(2 * TABLE) - TABLE // 2  # so that the middle stays where it was
    weights["pos_embed.pos_embed"] = positions(places, places)[None]
    larger.load_state_dict(weights)
    with torch.no_grad():
        found = backbone(z, t, cond)
        theirs = larger(z, encoder_hidden_states=cond.tokens_BLD, pooled_projections=cond.pooled_BD, timestep=t).sample
    assert found.shape == z.shape
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-4)


def modulate(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """(1 + gain) h + bias with one pair per tap, and a running mean that goes from tap to tap."""
    gain, bias = carry[tap.name]
    total = carry["total"] + h_BCHW.mean()
    return (1 + gain) * h_BCHW + bias + 0.01 * carry["total"], {**carry, "total": total}


# Few blocks, quick to trace: one with a second attention before the last; the last alone.
SHORT = {"sd35": {"num_layers": 2, "dual_attention_layers": (0,)}, "sd3": {"num_layers": 1}}


@pytest.mark.parametrize(("kind", "checkpointing"), [("sd35", False), ("sd3", True)])
def test_one_graph_and_no_recompilation(kind, checkpointing) -> None:
    backbone = toy_backbone(kind, **SHORT[kind])
    if checkpointing:
        backbone.transformer.enable_gradient_checkpointing()

    def step(z: Tensor, t: Tensor, cond: Cond, carry: dict[str, Any]) -> Tensor:
        return backbone(z, t, cond, modulate, carry)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager" if checkpointing else "eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            z, t, cond = toy_inputs(backbone, seed=seed)
            draw = torch.Generator().manual_seed(seed)
            pairs = {tap.name: tuple(0.1 * torch.randn(2, 1, WIDTH, 1, 1, generator=draw)) for tap in backbone.taps}
            carry = {**pairs, "total": torch.zeros(())}
            z.requires_grad_(checkpointing)
            torch.testing.assert_close(compiled(z, t, cond, carry), step(z, t, cond, carry), atol=1e-5, rtol=1e-4)


def test_missing_pooled_text_is_refused(backbones) -> None:
    z, t, cond = toy_inputs(backbones["sd3"])
    with pytest.raises(ValueError, match="needs pooled text") as caught:
        backbones["sd3"](z, t, Cond(tokens_BLD=cond.tokens_BLD))
    assert "\n" not in str(caught.value)


def test_the_prior_is_frozen_and_stays_in_eval_mode() -> None:
    backbone = toy_backbone("sd35")
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    out = backbone(*toy_inputs(backbone))
    assert not out.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_folder_round_trip(tmp_path, kind) -> None:
    folder = toy_unet_folder(tmp_path, kind, seed=5)
    backbone = load_backbone([str(tmp_path / "absent"), str(folder)], family="mmdit", t5_length=0)
    assert isinstance(backbone, MMDiTBackbone)
    assert backbone.denoiser is backbone.transformer
    saved = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == backbone.transformer.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in backbone.transformer.state_dict().items())
    assert not backbone.transformer.is_gradient_checkpointing
    schedule = backbone.schedule
    assert isinstance(schedule, FlowMatching)
    assert (schedule.prediction_type, schedule.shift, schedule.num_train_timesteps) == ("flow", 3.0, 1000)
    z, t, cond = toy_inputs(backbone)
    again = toy_mmdit(kind, seed=5)
    theirs = again(z, encoder_hidden_states=cond.tokens_BLD, pooled_projections=cond.pooled_BD, timestep=t).sample
    assert close(backbone(z, t, cond), theirs.detach())
    cond = backbone.embed(["a cat", ""], (24, 32))
    assert (cond.tokens_BLD.shape, cond.pooled_BD.shape, cond.size_BD) == ((2, 16, 40), (2, 40), None)


def test_a_bfloat16_model_returns_float32(tmp_path) -> None:
    folder = str(toy_unet_folder(tmp_path, "sd35"))
    backbone = load_backbone(folder, family="mmdit", dtype="bfloat16", t5_length=3)
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    cond = backbone.embed(["a", "b"], (32, 32))
    for size in SIZES:
        z, t, _ = toy_inputs(backbone, size=size)
        out = backbone(z, t, cond)
        assert (out.dtype, out.shape) == (torch.float32, z.shape)
        assert out.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "family", "message"),
    [
        ("sd3", "unet", "holds a transformer, not a unet; set backbone.family=mmdit"),
        ("sd", "mmdit", "holds a unet, not a transformer; set backbone.family=unet"),
    ],
)
def test_the_wrong_family_is_refused_in_one_line(tmp_path, kind, family, message) -> None:
    folder = toy_unet_folder(tmp_path, kind)
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(str(folder), family=family)
    assert "\n" not in str(caught.value)


# Millions of parameters: the denoisers as published, both CLIP towers with projection, T5 XXL's encoder; blocks.
FULL = {"sd3": (2028.3, 24), "sd35_medium": (2243.2, 24), "sd35_large": (8056.6, 38)}


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("name", FULL)
def test_shipped_configs_have_the_published_sizes(name) -> None:
    place = yaml.safe_load((BASES / f"{name}.yaml").read_text(encoding="utf-8"))["path"][-1]
    assert place == f"config:{name}"
    backbone = load_backbone(place, family="mmdit", meta=True)
    size, blocks = FULL[name]
    assert millions(backbone.transformer) == pytest.approx(size, abs=0.1)
    assert millions(backbone.codec) == pytest.approx(83.8, abs=0.1)
    assert [round(millions(one), 1) for one in (*backbone.text.encoders, backbone.text.t5)] == [123.7, 694.7, 4762.3]
    assert len(backbone.taps) == blocks + 1
    assert (backbone.multiple, backbone.codec.compression, backbone.codec.channels) == (16, 8, 16)
    assert all(p.is_meta for p in backbone.parameters())


def test_meta_runs_shapes_only() -> None:
    backbone = load_backbone("config:sd35_medium", family="mmdit", meta=True)
    cond = backbone.embed(["", ""], (512, 768))
    assert (cond.tokens_BLD.shape, cond.pooled_BD.shape) == ((2, 77 + 256, 4096), (2, 2048))
    t = torch.zeros(2, device="meta")
    assert backbone(torch.empty(2, 16, 64, 96, device="meta"), t, cond).shape == (2, 16, 64, 96)
