"""Memory plans: equal results, parts in turn, offloaded layers, nearly equal quantised weights."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from restore_lab.adaptors.lq_encoder import RobustEncoder
from restore_lab.decoders.degradation_aware import DegradationAwareDecoder
from restore_lab.inference.memory import MemoryPlan, StageMover, quantise
from restore_lab.system.memory import out_of_memory
from tests.helpers.configs import composed
from tests.helpers.rounding import close
from tests.helpers.toy_methods import shake, toy_batch, toy_spire


def robust(backbone):
    return RobustEncoder(backbone, weights=None)


def aware(backbone):
    return DegradationAwareDecoder(backbone, blocks=2, embedding=0)


def made(kind: str = "sd", **parts):
    module = toy_spire(kind, scale=2.0, **parts)
    shake(module.adaptor, size=0.05)
    return module.eval()


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("place", ["staged", "offload"])
@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_placement_does_not_change_results(kind, place, tiled) -> None:
    from restore_lab.samplers.tiling import Gaussian

    batch = toy_batch(1, size=(16, 70))
    parts = {"lq_encoder": robust, "decoder": aware} if kind == "sd" else {}
    found = []
    for plan in ("device", place):
        module = made(kind, **parts)
        if tiled:
            module.sampler.tiling = Gaussian(tile=32, overlap=8, batch=2, sigma=0.1, words="image")
        module = MemoryPlan(place=plan, weights=None).apply(module, "cpu")
        assert module.run_device == torch.device("cpu")
        found.append(module.restore(batch))
    assert close(*found)
    where = {p.device.type for p in module.parameters()}
    assert where == ({"meta"} if place == "offload" else {"cpu"})


def test_staged_parts_are_on_the_device_in_turn(monkeypatch) -> None:
    module = made("sd", lq_encoder=robust)
    module = MemoryPlan(place="staged", weights=None).apply(module, "cpu")
    on: set[str] = set()
    names = {id(part): name for name, part in module.backbone.named_children()} | {
        id(part): name for name, part in module.named_children()
    }
    seen: list[tuple[str, set[str]]] = []
    stages = module.stages
    assert isinstance(stages, StageMover)
    stages.device = torch.device("cuda")  # never reached: `to` only takes notes here

    def to(self, device):
        (on.add if str(device) == "cuda" else on.discard)(names[id(self)])
        return self

    def asked(name, module_class, method):
        old = getattr(module_class, method)
        monkeypatch.setattr(
            module_class, method, lambda self, *a, **k: seen.append((name, set(on))) or old(self, *a, **k)
        )

    monkeypatch.setattr(nn.Module, "to", to)
    for name, cls, method in (
        ("text", type(module.backbone.text), "forward"),
        ("codec", type(module.backbone.codec), "encode"),
        ("prior", type(module.backbone), "forward"),
        ("image", type(module.backbone.codec), "decode"),
    ):
        asked(name, cls, method)
    module.stages.device = torch.device("cuda")
    monkeypatch.setattr(type(module), "run_device", torch.device("cpu"))
    module.restore(toy_batch(1))
    groups = {
        "text": {"text"},
        "codec": {"codec", "lq_encoder", "decoder"},
        "prior": {"unet", "adaptor"},
        "image": {"codec", "lq_encoder", "decoder"},
    }
    assert {name for name, _ in seen} == set(groups)
    assert all(there == groups[name] for name, there in seen)


def test_every_weight_belongs_to_a_stage() -> None:
    module = made("sd", lq_encoder=robust, decoder=aware)
    groups = StageMover(module, torch.device("cpu"), move=True).groups
    held = {id(p) for group in groups.values() for part in group for p in part.parameters()}
    assert {id(p) for p in module.parameters()} == held


def test_incompatible_plans_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="plain weights alone"):
        MemoryPlan(place="offload", weights="int8")


@pytest.mark.parametrize(("weights", "library"), [("int8", "torchao"), ("fp8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_library_is_named_in_one_line(weights, library, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"memory\.weights={weights} needs {library} .*pip install"):
        quantise(made(), weights)


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.02), ("fp8", 0.1), ("nf4", 0.3)])
def test_quantised_linear_layers_are_near_and_smaller(weights, most) -> None:
    """Only the prior changes, by the error of its number format; in a separate process, as the libraries load much."""
    library = "bitsandbytes" if weights == "nf4" else "torchao"
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    code = f"""
import torch
from torch import nn
from restore_lab.inference.memory import quantise
from tests.helpers.toy_methods import shake, toy_spire
from tests.helpers.toy_priors import toy_inputs
with torch.no_grad():
    module = toy_spire("sd", scale=2.0).eval()
    shake(module.adaptor, size=0.05)
    z, t, cond = toy_inputs(module.backbone)
    plain = module.backbone(z, t, cond)
    learned = {{k: v.clone() for k, v in module.adaptor.named_parameters()}}
    count = sum(type(m) is nn.Linear for m in module.backbone.denoiser.modules())
    quantise(module, {weights!r})
    near = module.backbone(z, t, cond)
    left = sum(type(m) is nn.Linear and type(m.weight) is nn.Parameter and m.weight.dtype == torch.float32
               and type(m.weight.data) is torch.Tensor for m in module.backbone.denoiser.modules())
    assert count > 20 and left == 0, (count, left)
    assert all(torch.equal(v, learned[k]) for k, v in module.adaptor.named_parameters())
    print(float((near - plain).norm() / plain.norm()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < float(done.stdout.split()[-1]) < most


def test_the_plan_is_a_group_and_only_quantised_weights_are_part_of_a_record() -> None:
    from restore_lab.evaluation.evaluate import plan_evaluation

    words = ("weights=null",)
    plain = plan_evaluation(composed("evaluate", *words)).identity
    assert plan_evaluation(composed("evaluate", *words, "memory=staged")).identity == plain
    assert plan_evaluation(composed("evaluate", *words, "memory=offload")).identity == plain
    quantised = {
        plan_evaluation(composed("evaluate", *words, f"memory={name}")).identity for name in ("int8", "fp8", "nf4")
    }
    assert len(quantised) == 3 and plain not in quantised
    tiled = plan_evaluation(composed("evaluate", *words, "sampler/tiling=gaussian")).identity
    assert tiled != plain


def test_out_of_memory_errors_are_recognised() -> None:
    assert out_of_memory(torch.OutOfMemoryError("x")) and out_of_memory(MemoryError())
    said = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"
    assert out_of_memory(RuntimeError(said))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
