"""`restore-lab diff`: the first place where two runs differ, and none before it."""

from __future__ import annotations

import copy
import json
import math
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from restore_lab.cli.main import main
from restore_lab.inspection.diff import (
    compare_traces,
    differences_as_json,
    differences_as_text,
    first_difference,
    read_trace,
    write_trace,
)
from restore_lab.inspection.trace import trace
from tests.helpers.toy_methods import shake, toy_batch, toy_spire


def test_two_tensors_have_their_difference_statistics() -> None:
    """a = (3, 4), b = (3, 4.5): max 0.5, and 0.5 / 5 relative."""
    (found,) = compare_traces({"x": torch.tensor([3.0, 4.0])}, {"x": torch.tensor([3.0, 4.5])})
    assert (found.largest, found.relative) == (0.5, pytest.approx(0.1))


@pytest.mark.parametrize(
    ("b", "note"),
    [
        ({"x": torch.ones(2, 3)}, "shapes 2x2 and 2x3"),
        ({}, "only in A"),
        ({"x": torch.full((2, 2), math.nan)}, ""),
    ],
)
def test_unequal_shapes_and_nan_differ(b, note) -> None:
    first = first_difference(compare_traces({"x": torch.ones(2, 2)}, b), tolerance=1e9)
    assert first is not None and first.place == "x" and first.note == note


def test_the_first_place_above_the_tolerance_is_named_and_not_a_later_one() -> None:
    a = {name: torch.ones(4) for name in "uvw"}
    b = {"u": torch.ones(4), "v": torch.full((4,), 1.001), "w": torch.full((4,), 9.0), "more": torch.ones(1)}
    found = compare_traces(a, b)
    assert [one.place for one in found] == ["u", "v", "w", "more"]
    assert differences_as_text(found, tolerance=1e-5).endswith(
        "they part at v: by 0.001 of its size, more than the tolerance of 1e-05"
    )
    assert json.loads(differences_as_json(found, tolerance=1e-2))["parts_at"] == "w"
    assert differences_as_text(found[:2], tolerance=1e-2).endswith("they agree at all 2 places, within 0.01")


@pytest.mark.parametrize("kind", ["sd", "sd3"])
@pytest.mark.parametrize(
    ("part", "place"),
    [
        ("adaptor.trunk", "controls."),
        ("adaptor.fusion", "tap."),
        ("backbone.denoiser", "tap."),
        ("backbone.codec.vae.decoder", "decoded"),
    ],
)
def test_a_changed_weight_differs_first_where_it_is_read(kind, part, place) -> None:
    module = toy_spire(kind).eval()
    shake(module)
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in attrgetter(part)(changed).parameters():
            parameter.mul_(1.5)
    a, b = (trace(one, toy_batch(), share=0.5) for one in (module, changed))
    first = first_difference(compare_traces(a, b), tolerance=1e-6)
    assert first is not None and first.place.startswith(place)
    assert first_difference(compare_traces(a, trace(module, toy_batch(), share=0.5)), tolerance=0.0) is None


def test_a_trace_round_trips_in_order(tmp_path: Path) -> None:
    found = trace(toy_spire().eval(), toy_batch(), share=0.25)
    write_trace(found, tmp_path / "sub" / "a.safetensors", keys="a cat")
    again, shown = read_trace(str(tmp_path / "sub" / "a.safetensors")) or ({}, "")
    assert list(again) == list(found) and shown == "a cat"
    assert all(torch.equal(again[name], found[name]) for name in found)
    save_file({"w": torch.ones(1)}, tmp_path / "weights.safetensors")
    assert read_trace(str(tmp_path / "weights.safetensors")) is None
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"broken.safetensors: cannot be read as a trace"):
        read_trace(str(tmp_path / "broken.safetensors"))


def test_the_command_names_the_place_and_has_diffs_exit_codes(tmp_path, monkeypatch, capsys) -> None:
    """0 where two agree, 1 where they part; a trace written before compares as the weights do."""
    monkeypatch.chdir(tmp_path)
    shown = ["method=spire", "eval_crop=32", "sampler.steps=1", "device=cpu"]

    def diff(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["restore-lab", "diff", *words, *shown])
        main()
        return capsys.readouterr().out

    assert diff("trace=before.safetensors").endswith("before.safetensors\n")
    assert "they agree at all" in diff("before.safetensors")
    with pytest.raises(SystemExit) as stopped:
        diff("before.safetensors", "asset:spire_tiny_sd", "b=sampler.steps=2 caption=nothing")
    assert stopped.value.code == 2 and "caption" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        diff("before.safetensors", "b=sampler.steps=2")
    assert stopped.value.code == 1 and "they part at restored" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        diff("before.safetensors", "asset:spire_tiny_sd", "b=seed=3")
