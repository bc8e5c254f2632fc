"""Speed options change no result, no name of a weight and no identity."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from restore_lab.adaptors.hint_net import HintNet
from restore_lab.config.build import build
from restore_lab.evaluation.evaluate import plan_evaluation
from restore_lab.inference.memory import MemoryPlan
from restore_lab.methods.denoiser import Denoiser, same_shapes
from restore_lab.methods.pipeline import pad
from restore_lab.methods.rows import repeat
from restore_lab.methods.speed import BLOCK_TYPES, Speed, networks
from restore_lab.methods.trainable import Trainable
from restore_lab.samplers.guidance import Branch
from restore_lab.samplers.tiling import Gaussian
from restore_lab.training.module import Optimisation, TrainingModule, _match_memory_layout
from restore_lab.training.run import plan_training
from tests.helpers.configs import composed
from tests.helpers.matrix import Priors, made
from tests.helpers.rounding import close
from tests.helpers.toy_methods import shake, toy_batch, toy_spire
from tests.helpers.toy_priors import toy_unet_folder

PLAIN: dict[str, Any] = {
    "compiled": False,
    "backend": "aot_eager",
    "channels_last": False,
    "batched": True,
    "gradient_checkpointing": False,
}
COMPOSITIONS = [  # SPIRE, ControlNet, SUPIR (reads the caption), InstantIR (a reference), DRA, DCP; words, eyes
    ("sd", "concat", "modulation", "caption"),
    ("sdxl", "half", "zero_sft_attention", "caption"),
    ("sd35", "half", "zero_sft", "clip"),
    ("sd3", "concat", "zero_conv", "caption"),
    ("sdxl", "spatial", "sft", "dino"),
    ("sd3", "spatial", "sft", "caption"),
    ("sdxl", "chain", "-", "caption"),
    ("sd3", "chain", "-", "clip"),
    ("sd", "none", "-", "dino"),
]


def speed(**chosen: Any) -> Speed:
    return Speed(**{**PLAIN, **chosen})


@pytest.fixture(scope="module")
def priors(tmp_path_factory) -> Priors:
    return Priors(tmp_path_factory.mktemp("priors"))


def wide(value: Any) -> Any:
    """A nest of nouns in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: wide(getattr(value, f.name)) for f in fields(value)})  # pyright: ignore
    return value


def built(kind: str = "sd", **parts: Any) -> Any:
    module = toy_spire(kind, scale=2.0, **parts)
    shake(module.adaptor, size=0.05)
    return module


@pytest.mark.parametrize(("family", "trunk", "fusion", "prompt"), COMPOSITIONS)
@torch.no_grad()
def test_batched_branches_equal_sequential_ones(family, trunk, fusion, prompt, priors) -> None:
    choice = {"family": family, "trunk": trunk, "fusion": fusion, "lq_encoder": "codec", "prompt": prompt}
    module = made(priors.config({**choice, "fidelity": "none", "scheduler": "ddim", "init": "noise"})).eval()
    shake(module.adaptor, size=0.05)
    batch, _ = pad(module, toy_batch())
    conditions = module.conditioner(batch)
    cond, null, hint = conditions.cond, conditions.null, conditions.hint
    module.double()
    z, t = torch.randn(2, 4, 4, 4, dtype=torch.float64), torch.tensor([7, 500])
    cond, null, hint = wide(cond), wide(null), wide(hint)
    hint, _ = module.denoiser.add_reference(z, t, cond, hint, seeds=batch.seed)
    pair = [Branch(weight=3.0, cond=cond, hint=hint), Branch(weight=-2.0, cond=null, hint=hint)]
    rows: list[int] = []
    old = module.backbone.forward
    module.backbone.forward = lambda z, *rest, **more: rows.append(len(z)) or old(z, *rest, **more)
    for strength in (1.0, 0.0, 0.5, torch.tensor([0.3, 0.9])):
        found = []
        for module.denoiser.batched in (True, False):
            rows.clear()
            found.append(module.denoiser.weigh(z, t, pair, strength=strength))
            assert rows == ([4] if module.denoiser.batched else [2, 2])
        torch.testing.assert_close(*found, atol=1e-10, rtol=1e-10)
    first, second = (module.denoiser.weigh(z, t, [branch]) for branch in pair)
    assert not torch.allclose(first / 3, second / -2)  # two branches indeed
    torch.testing.assert_close(module.denoiser.weigh(z, t, pair), first + second, atol=1e-10, rtol=1e-10)


def test_branches_of_unequal_shapes_run_one_by_one() -> None:
    module = built()
    conditions = module.conditioner(pad(module, toy_batch())[0])
    cond, null, hint = conditions.cond, conditions.null, conditions.hint
    one, two = Branch(weight=2.0, cond=cond, hint=hint), Branch(weight=-1.0, cond=null, hint=hint)
    assert same_shapes([one, two])
    assert same_shapes([one, replace(two, hint=replace(hint))])
    assert not same_shapes([one, replace(two, hint=replace(hint, degradation_BD=torch.zeros(2, 1)))])
    assert not same_shapes([one, replace(two, cond=replace(null, tokens_BLD=null.tokens_BLD[:, :3]))])
    assert not same_shapes([one, replace(two, cond=replace(null, visual_BLD=torch.zeros(2, 1, 1)))])


def test_repeat_repeats_rows_at_any_depth() -> None:
    rows, other = torch.arange(2.0), torch.arange(3.0)
    found = repeat({"a": rows, "b": (other, [rows, None]), "c": torch.tensor(1.0)}, 2, rows=2)
    twice = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert torch.equal(found["a"], twice) and torch.equal(found["b"][1][0], twice)
    assert found["b"][0] is other and found["b"][1][1] is None and found["c"].ndim == 0


def test_out_of_memory_falls_back_to_sequential_branches(monkeypatch, caplog) -> None:
    module, batch = built(), toy_batch()
    module.denoiser.batched = False
    expected = module.restore(batch)
    module.denoiser.batched, rows, old = True, [], Denoiser._evaluate

    def edited(denoiser, z_BCHW, *rest):
        rows.append(len(z_BCHW))
        if len(z_BCHW) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return old(denoiser, z_BCHW, *rest)

    monkeypatch.setattr(Denoiser, "_evaluate", edited)
    assert torch.equal(module.restore(batch), expected)
    assert rows == [4, 2, 2, 2, 2] and caplog.text.count("guidance branches one after another") == 1
    monkeypatch.setattr(Denoiser, "_evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.restore(batch)


@pytest.mark.parametrize("tiled", [False, True])
def test_the_hint_network_runs_once_per_image(tiled, monkeypatch) -> None:
    """Of tiles at each, since a tile's features are not a crop of the image's; either way the same image."""
    module, batch = built(), toy_batch(1, size=(16, 70))
    if tiled:
        module.sampler.tiling = Gaussian(tile=32, overlap=8, batch=8, sigma=0.1, words="image")
    looks: list[int] = []
    module.adaptor.hint.register_forward_pre_hook(lambda *_: looks.append(1))
    found = module.restore(batch)
    assert isinstance(module.adaptor.hint, HintNet) and len(looks) == (module.sampler.steps if tiled else 1)
    monkeypatch.setattr(type(module.adaptor), "precompute", lambda self, hint: hint)
    assert torch.equal(module.restore(batch), found)


class Counting:
    """A backend that runs a graph as it is and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def compiled(module: Any, **chosen: Any) -> Counting:
    torch._dynamo.reset()
    backend = Counting()
    speed(compiled=True, backend=backend, **chosen).apply(module)
    return backend


@pytest.mark.parametrize("kind", ["mini", "sd3"])
def test_steps_sizes_and_tiles_cause_no_recompilation(kind) -> None:
    """Nor does keeping parts off the device in turn; and blocks of one shape share their code."""
    sizes = ((32, 32), (48, 32), (40, 64))  # a map one pixel wide, at 16 pixels, has code of its own
    module = built(kind).eval()
    plain = [module.restore(toy_batch(2, size=size)) for size in sizes]
    names, tiling = (list(module.state_dict()), [name for name, _ in module.named_parameters()]), module.sampler.tiling
    backend = compiled(module)
    blocks = [part for host in networks(module) for part in host.modules() if type(part).__name__ in BLOCK_TYPES]
    found = [module.restore(toy_batch(2, size=sizes[0]))]
    first = backend.graphs
    assert 0 < first < len(blocks)
    if kind == "sd3":  # of prior and trunk each the last has its own: nobody reads its text
        assert first == 4 and len(blocks) == 4 + 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        found += [module.restore(toy_batch(2, size=size)) for size in sizes[1:]]
        module.sampler.tiling = Gaussian(tile=32, overlap=8, batch=2, sigma=0.1, words="image")
        module.restore(toy_batch(2, size=(64, 80)))
    assert backend.graphs == first
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert names == (list(module.state_dict()), [name for name, _ in module.named_parameters()])
    module.sampler.tiling = tiling
    staged = MemoryPlan(place="staged", weights=None).apply(module, "cpu")
    torch.testing.assert_close(staged.restore(toy_batch(2, size=sizes[0])), found[0], atol=1e-5, rtol=0)
    assert backend.graphs == first


def test_compiled_training_steps_learn_the_same_without_recompilation() -> None:
    trained = []
    for faster in (False, True):
        module = built("mini").train()
        backend = compiled(module, gradient_checkpointing=True) if faster else None
        optimiser = torch.optim.AdamW(module.trainable().values(), lr=1e-3)
        graphs = 0
        for step in range(3):
            module.loss(toy_batch(seed=step), step=step)["loss"].backward()
            optimiser.step()
            optimiser.zero_grad()
            graphs = graphs or (backend.graphs if backend else 0)
        assert backend is None or 0 < graphs == backend.graphs
        trained.append(module.adaptor_state())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, atol=1e-4, rtol=1e-3)


def test_a_switched_lora_compiles_once_per_state(priors, tmp_path) -> None:
    """InstantIR: in every step the prior with LoRA shows a preview, without it samples."""
    cfg = composed(
        "evaluate", "method=instantir", "weights=null", "sampler.steps=3",
        f"backbone.path={toy_unet_folder(tmp_path, 'mini')}", "prompt/visual=dino",
        f"prompt.visual.path={priors.dino}", "++lora_rank=2",
        "++resampler={hidden:16,depth:1,heads:2,dim_head:8,queries:4}",
    )  # fmt: skip
    module = made(cfg).eval()
    shake(module.adaptor, size=0.05)
    plain = module.restore(toy_batch(size=(32, 32)))
    backend = compiled(module)
    torch.testing.assert_close(module.restore(toy_batch(size=(32, 32))), plain, atol=1e-4, rtol=0)
    graphs = backend.graphs
    module.restore(toy_batch(size=(48, 32)))
    assert backend.graphs == graphs > 0


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_gradient_checkpointing_changes_no_gradient(kind) -> None:
    """Prior and trunk: each block of theirs that learns, or that gradients pass, runs once more."""
    found = []
    for recompute in (False, True):
        module = speed(gradient_checkpointing=recompute).apply(built(kind).train())
        runs = {"prior": 0, "trunk": 0}
        for name, host in (("prior", module.backbone.denoiser), ("trunk", module.adaptor.trunk)):
            for part in host.modules():
                if type(part).__name__ in BLOCK_TYPES:
                    part.register_forward_pre_hook(lambda *_, r=runs, n=name: r.__setitem__(n, r[n] + 1))
        module.loss(toy_batch(), step=0)["loss"].backward()
        found.append(({name: p.grad for name, p in module.trainable().items()}, runs))
    (plain, once), (again, twice) = found
    assert all(close(again[name], plain[name]) for name in plain)
    assert twice["trunk"] > once["trunk"] and twice["prior"] > once["prior"]


def test_channels_last_keeps_results_and_names(tmp_path) -> None:
    module = built().eval()
    plain, names = module.restore(toy_batch()), list(module.state_dict())
    speed(channels_last=True).apply(module)
    for part in (module.backbone.denoiser, module.adaptor.trunk, module.backbone.codec):
        weights = [p for p in part.parameters() if p.ndim == 4]
        assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    torch.testing.assert_close(module.restore(toy_batch()), plain, atol=1e-4, rtol=0)
    assert list(module.state_dict()) == names
    module.export(tmp_path)
    other = built()
    shake(other.adaptor, seed=5)
    other.load_weights(tmp_path / "adaptor.safetensors")
    torch.testing.assert_close(other.restore(toy_batch()), plain, atol=1e-5, rtol=0)


class Convolution(Trainable):
    """One convolution's weights and a vector; the gradients of a step are drawn from its number."""

    def __init__(self, order: torch.memory_format, **chosen: Any) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.conv = nn.Parameter(torch.randn(8, 4, 3, 3, generator=draw).to(memory_format=order))
        self.bias = nn.Parameter(torch.randn(8, generator=draw))
        training = TrainingModule(self, optimisation=Optimisation(lr=1e-2, **chosen))
        training._trainer = SimpleNamespace(estimated_stepping_batches=100, world_size=1)  # type: ignore[assignment]
        self.optimiser = training.configure_optimizers()["optimizer"]

    def learn(self, steps: range) -> None:
        for step in steps:
            draw = torch.Generator().manual_seed(step)
            for p in self.parameters():
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=draw))
            self.optimiser.step()


@pytest.mark.parametrize("first", ["auto", False])
@pytest.mark.parametrize("then", ["auto", False])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_run_resumes_with_another_kernel_and_memory_order(first, then, order) -> None:
    """The fused kernel reads what it is given as it lies: a state in another order would be another state."""
    whole = Convolution(torch.contiguous_format, fused=False)
    whole.learn(range(4))
    begun = Convolution(order, fused=first)
    begun.learn(range(2))
    other = Convolution(torch.contiguous_format, fused=then)
    other.load_state_dict(begun.state_dict())
    other.optimiser.load_state_dict(begun.optimiser.state_dict())
    assert bool(other.optimiser.param_groups[0]["fused"]) == (then == "auto")
    other.learn(range(2, 4))
    for name, value in whole.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), value, atol=1e-6, rtol=1e-6)


def test_a_loaded_state_has_its_parameters_memory_order() -> None:
    p = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    optimiser = torch.optim.AdamW([p])
    kept = torch.randn(4, 3, 3, 3)
    optimiser.state[p] = {"exp_avg": kept.clone(memory_format=torch.channels_last), "step": torch.tensor(1.0)}
    _match_memory_layout(optimiser)
    assert optimiser.state[p]["exp_avg"].is_contiguous() and torch.equal(optimiser.state[p]["exp_avg"], kept)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Optimisation\.fused=maybe: expected true or false, or auto"):
        Optimisation(lr=1.0, fused="maybe")


def identities(*words: str) -> list[str]:
    """Of two methods' trainings and of an evaluation."""
    trained = [plan_training(composed("train", f"method={method}", *words))[-1] for method in ("spire", "instantir")]
    return [plan.identity for plan in (*trained, plan_evaluation(composed("evaluate", *words)))]


@pytest.fixture(scope="module")
def unchosen() -> list[str]:
    return identities()


@pytest.mark.parametrize(
    "word",
    ["compile=true", "speed.backend=eager", "speed.channels_last=true", "speed.batched=false"]
    + ["speed.gradient_checkpointing=true", "optimisation.fused=false", "optimisation.fused=true"],
)
def test_no_option_changes_an_identity(word, unchosen) -> None:
    assert identities(word) == unchosen


def test_the_options_reach_the_built_speed() -> None:
    made = build(composed("restore", "input=x", "compile=true", "speed.batched=false").speed)
    assert made.compiled and not made.batched and made.backend == "inductor"


def test_offloaded_weights_and_compiled_blocks_exclude_each_other() -> None:
    module = built("mini").eval()
    compiled(module)
    with pytest.raises(ValueError, match="moves weights under compiled blocks; set compile=false"):
        MemoryPlan(place="offload", weights=None).apply(module, "cpu")
