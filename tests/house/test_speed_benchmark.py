"""benchmarks/speed.py: both sides compute the same and alternate; ratios of known numbers; every line is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.alternating import Ratio, alternate, rank, speedup
from benchmarks.comparison import Disagreement, Plan, distance, run_peak, same_gradient, same_latents
from benchmarks.page import duration, page, size
from benchmarks.restoring import our_restoring, their_restoring
from benchmarks.sides import TOYS, batches, method, settle
from benchmarks.speed import main, parse, planned
from benchmarks.theirs import Diffusers
from benchmarks.training import OurTraining, TheirTraining
from benchmarks.waterfall import RESTORING, TRAINING, Rung
from restore_lab.config.build import build
from restore_lab.storage.paths import place_of

PLAN = Plan(device=torch.device("cpu"), toy=True, pixels=32, restored=1, trained=1, steps=2, turns=1, warmup=0)


def test_sides_take_turns_and_warming_up_does_not_count() -> None:
    order: list[str] = []

    def side(name: str, seconds: Iterator[float]) -> Any:
        def take() -> dict[str, float]:
            order.append(name)
            return {"step": next(seconds), "whole": 7.0}

        return take

    found = alternate({"a": side("a", iter((9.0, 1.0, 2.0))), "b": side("b", iter((9.0, 3.0, 4.0)))}, turns=2, warmup=1)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"step": {"a": [1.0, 2.0], "b": [3.0, 4.0]}, "whole": {"a": [7.0, 7.0], "b": [7.0, 7.0]}}


def test_ratios_are_taken_within_turns() -> None:
    found = speedup([1.0, 10.0, 100.0], [2.0, 30.0, 400.0])
    assert (found.value, found.low, found.high) == (3.0, 2.0, 4.0)
    ten = speedup([1.0] * 10, [float(i) for i in range(1, 11)])
    assert (ten.value, ten.low, ten.high) == (5.5, 2.0, 9.0)  # the tabled 95 % interval of ten: 2nd and 9th


def test_ranks_of_the_median_are_the_tabulated_ones() -> None:
    assert [rank(n) + 1 for n in (5, 6, 10, 15, 20, 30, 50)] == [1, 1, 2, 4, 6, 10, 18]


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.01, 1.2, "faster"), (0.9, 1.1, "level"), (0.8, 0.99, "slower")]
)
def test_verdicts_follow_the_interval(low, high, verdict) -> None:
    assert Ratio(value=(low + high) / 2, low=low, high=high).verdict == verdict


@pytest.mark.parametrize("prior", list(TOYS))
def test_both_sides_compute_the_same(prior) -> None:
    cfg = PLAN.config(prior, "speed.channels_last=true")
    module = method(cfg, device=PLAN.device)
    sides, data = (Diffusers(module), Diffusers(module)), PLAN.data(batch=2)
    settle(module, cfg)
    for scale in (1.0, 4.0):
        module.sampler.guidance.scale = scale
        ours = our_restoring(module, data[0], device=PLAN.device)
        theirs, free = (
            their_restoring(sides[0], data[0], scale=scale, steps=2, device=PLAN.device, control=c) for c in (1.0, 0.0)
        )
        assert same_latents(ours, theirs, free, PLAN) < 1e-5
        assert distance(ours.image_BCHW, theirs.image_BCHW) < 1e-5
        taken = ours()
        assert 0 < taken["sampling step"] < taken["restoration"]
    theirs = TheirTraining(sides[1], data, optimisation=build(cfg.optimisation), clip=1.0, precision="32-true")
    found = same_gradient(module, theirs, data[0], PLAN, precision="32-true")
    assert set(found) == {"loss", "norm of the gradient"} and max(found.values()) < 1e-4


def test_sides_that_differ_end_the_run() -> None:
    cfg = PLAN.config("sd15")
    module = method(cfg, device=PLAN.device)
    side, data = Diffusers(module), PLAN.data(batch=1)
    theirs = TheirTraining(side, data, optimisation=build(cfg.optimisation), clip=1.0, precision="32-true")
    runs = [their_restoring(side, data[0], scale=1.0, steps=2, device=PLAN.device, control=c) for c in (1.0, 0.0)]
    ours = our_restoring(module, data[0], device=PLAN.device)
    with pytest.raises(Disagreement, match=r"the control moves the latents by 0\.0e\+00"):
        same_latents(runs[0], runs[0], runs[0], PLAN)
    with torch.no_grad():
        module.adaptor.trunk.conv_in.weight.mul_(1.5)
    with pytest.raises(Disagreement, match="latents: ours and diffusers' differ by"):
        same_latents(ours, *runs, PLAN)
    with pytest.raises(Disagreement, match="differ by"):
        same_gradient(module, theirs, data[0], PLAN, precision="32-true")


def test_a_step_of_each_training_moves_its_own_weights() -> None:
    cfg = PLAN.config("sd15", "optimisation.lr=1e-3")
    module, data = method(cfg, device=PLAN.device).train(), PLAN.data(batch=1)
    side = Diffusers(module)
    theirs = TheirTraining(side, data, optimisation=build(cfg.optimisation), clip=1.0, precision="32-true")
    ours = OurTraining(module, cfg, data, precision="32-true")
    before = [p.detach().clone() for p in (module.adaptor.trunk.conv_in.weight, side.controlnet.conv_in.weight)]
    for steps in (1, 2):
        assert ours()["training step"] > 0
        assert ours.step == steps
    assert not torch.equal(before[0], module.adaptor.trunk.conv_in.weight)
    assert torch.equal(before[1], side.controlnet.conv_in.weight)
    theirs()
    assert not torch.equal(before[1], side.controlnet.conv_in.weight)
    ours.close()


def test_a_failure_inside_the_loop_comes_out() -> None:
    cfg = PLAN.config("sd15")
    module = method(cfg, device=PLAN.device).train()
    data = [replace(batch, hq_BCHW=None) for batch in PLAN.data(batch=1)]
    with pytest.raises(ValueError, match="training needs pairs"):
        OurTraining(module, cfg, data, precision="32-true")()


@pytest.mark.parametrize("prior", ["sd15", "sd3"])
def test_full_sizes_take_random_weights_of_a_configs_shape(prior) -> None:
    folder = place_of(f"asset:{TOYS[prior]}")
    plan = replace(PLAN, toy=False, words=(f"backbone.path={folder}",))
    cfg = plan.config(prior)
    module = method(cfg, device=plan.device)
    shipped = method(PLAN.config(prior), device=plan.device)
    ours, theirs = module.backbone.denoiser.state_dict(), shipped.backbone.denoiser.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert next(module.backbone.denoiser.parameters()).dtype == torch.bfloat16 and cfg.precision == "bf16-mixed"
    batch = plan.data(batch=1)[0]
    side = Diffusers(module, dtype=plan.dtype)
    runs = [their_restoring(side, batch, scale=1.0, steps=2, device=plan.device, control=c) for c in (1.0, 0.0)]
    same_latents(our_restoring(module, batch, device=plan.device), *runs, plan)


def test_pairs_are_the_same_on_every_run() -> None:
    how: dict[str, Any] = {"count": 2, "batch": 2, "pixels": 16, "device": PLAN.device}
    first, second = batches(**how), batches(**how)
    assert all(torch.equal(a.lq_BCHW, b.lq_BCHW) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0].hq_BCHW, first[1].hq_BCHW)


def test_both_sides_compile() -> None:
    plan = replace(PLAN, compiled=True)
    cfg = plan.config("sd15", "speed.backend=eager")
    assert cfg.compile and cfg.speed.compiled
    side = Diffusers(method(cfg, device=plan.device))
    side.compile(backend=cfg.speed.backend)
    assert side.denoiser._compiled_call_impl is not None and side.controlnet._compiled_call_impl is not None
    assert run_peak(lambda: torch.zeros(4), plan, compiled=True) is None  # nobody counts compiled code
    assert run_peak(lambda: torch.zeros(4), plan, compiled=False) == 16


@pytest.mark.slow
def test_the_whole_run_writes_every_line(tmp_path, capsys) -> None:
    counts = ["--restored=1", "--trained=1", "--steps=2", "--turns=1", "--warmup=0", "--pixels=32"]
    main([*counts, "--sizes", "sd15", "--output", str(tmp_path), "speed.backend=eager"])
    written = (tmp_path / "speed.md").read_text()
    assert capsys.readouterr().out.strip() == written.strip()
    found = json.loads((tmp_path / "speed.json").read_text())["sizes"]["sd15"]
    steps = ["sampling step", "restoration", "guided sampling step", "guided restoration", "training step"]
    rows = found["comparison"]["rows"]
    assert list(rows) == [*steps, "training step, latents cached"]
    assert rows["guided sampling step"]["flops"] == pytest.approx(2 * rows["sampling step"]["flops"], rel=0.05)
    assert all(min(rows[name]["bytes"].values()) > 0 for name in ("restoration", "guided restoration", "training step"))
    for rungs, lines in zip((RESTORING, TRAINING), found["waterfall"].values(), strict=True):
        assert [line["name"] for line in lines] == [rung.name for rung in rungs if "cpu" in rung.devices]
        assert all(f"| {line['name']} | " in written for line in lines)
    assert all(f"| {name} | " in written for name in rows)


def test_the_page_prints_given_numbers() -> None:
    ratio = {"value": 1.25, "low": 1.2, "high": 1.5}
    row = {"seconds": {"ours": 0.004, "diffusers": 0.005}, "ratio": ratio, "verdict": "faster", "flops": 2e9}
    rows = {"sampling step": {**row, "bytes": {"ours": 2_000_000, "diffusers": None}}}
    line = {"name": "plain", "seconds": 1.5, "speedup": ratio, "over the line above": 1.1, "bytes": 3_210_000_000}
    one = {"prior": "toy", "comparison": {"agreement": {"latents": 1e-6}, "rows": rows}, "waterfall": {"it": [line]}}
    text = page({"command": "c", "machine": {"device": "d"}, "matrix peak": 1e12, "sizes": {"sdxl": one}})
    assert "| sampling step | 4 ms | 5 ms | 1.250 | 1.200 to 1.500 | faster | 2.0 MB |  | 50% |" in text
    assert "| plain | 1.50 s | 1.25 | 1.20 to 1.50 | 1.10 | 3.21 GB |" in text
    assert (duration(0.0123), size(None)) == ("12.3 ms", "")


def test_counts_follow_the_scale() -> None:
    assert planned(parse(["--turns", "3"]), "sdxl").turns == 3
    full = planned(parse(["--scale", "full", "--device", "cuda"]), "sdxl")
    assert (full.pixels, full.dtype, full.toy) == (1024, torch.bfloat16, False)
    assert planned(parse([]), "sd15").pixels == 64


def test_rungs_add_overrides_once() -> None:
    for rungs in (RESTORING, TRAINING):
        assert len({rung.name for rung in rungs}) == len(rungs)
        assert all(isinstance(rung, Rung) and rung.words for rung in rungs)
