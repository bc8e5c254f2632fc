"""A training's checkpoints, weights and losses: damage is found, named, and costs little."""

from __future__ import annotations

import json
import math

import pytest
import torch

from restore_lab.degradation.apply import apply_recipe
from restore_lab.inference.restorer import load_method
from restore_lab.training.checkpoints import NUM_CHECKPOINTS, last_state, states
from restore_lab.training.finite import NONFINITE_FILE
from restore_lab.training.run import fit
from restore_lab.types import Recipe
from tests.helpers.configs import composed, small

CPU = ("trainer.accelerator=cpu", "trainer.devices=1", "logger=none", "progress=false", "log_every=1")


class Stopped(Exception):
    """As a kill would."""


def training(toy_folder, place, *words: str):
    own = (f"run_dir={place}", "checkpoint_every=1", "ema=null", *CPU)
    return composed("train", *small(toy_folder), *own, *words)


def stopped(toy_folder, place, *, at: int, of: int = 4, monkeypatch) -> None:
    """Train up to the step after `at`, and stop there as a kill would."""
    from restore_lab.training.module import TrainingModule

    plain = TrainingModule.training_step

    def step(self, batch, batch_idx):
        if self.global_step >= at:
            raise Stopped
        return plain(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", step)
        with pytest.raises(Stopped):
            fit(training(toy_folder, place, f"max_steps={of}"))


def losses(place) -> dict[int, float]:
    lines = map(json.loads, (place / "losses.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines}


def test_a_damaged_checkpoint_falls_back_to_the_one_before(toy_folder, tmp_path, monkeypatch, caplog) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(training(toy_folder, whole, "max_steps=4"))
    stopped(toy_folder, cut, at=3, monkeypatch=monkeypatch)
    assert [path.stem for path in states(cut / "state")] == ["step=2", "step=3"][-NUM_CHECKPOINTS:]
    newest = last_state(cut)
    assert newest is not None and newest.stem == "step=3"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    found = last_state(cut)
    assert found is not None and found.stem == "step=2"
    assert "step=3.ckpt is damaged (its hash is another)" in caplog.text
    fit(training(toy_folder, cut, "max_steps=4"))
    assert losses(cut) == losses(whole)
    assert (cut / "adaptor.safetensors").read_bytes() == (whole / "adaptor.safetensors").read_bytes()


def test_a_truncated_checkpoint_without_hash_is_found(toy_folder, tmp_path, monkeypatch, caplog) -> None:
    stopped(toy_folder, tmp_path, at=2, monkeypatch=monkeypatch)
    for state in states(tmp_path / "state"):
        state.with_name(state.name + ".sha256").unlink()
    assert last_state(tmp_path) == states(tmp_path / "state")[-1]
    for state in states(tmp_path / "state"):
        state.write_bytes(state.read_bytes()[:-1000])
    assert last_state(tmp_path) is None
    assert caplog.text.count("is damaged") == 2


def test_damaged_weights_are_not_loaded(toy_folder, tmp_path) -> None:
    run = fit(training(toy_folder, tmp_path, "max_steps=1"))
    told = (*small(toy_folder), f"weights={run}", "input=x", "device=cpu")
    load_method(composed("restore", *told))
    data = bytearray((run / "adaptor.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "adaptor.safetensors").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"adaptor\.safetensors: not what its manifest says was written"):
        load_method(composed("restore", *told))


def test_a_nan_loss_stops_training_and_names_the_batch(toy_folder, tmp_path, monkeypatch) -> None:
    from restore_lab.training.module import TrainingModule

    plain, batches = TrainingModule.training_step, []

    def step(self, batch, batch_idx):
        batches.append(batch)
        loss = plain(self, batch, batch_idx)
        return loss * math.nan if len(batches) == 3 else loss

    monkeypatch.setattr(TrainingModule, "training_step", step)
    with pytest.raises(ValueError, match=r"the loss is nan at step 3; .*nonfinite\.json says which batch") as caught:
        fit(training(toy_folder, tmp_path, "max_steps=9", "log_every=5", "checkpoint_every=2"))
    assert "\n" not in str(caught.value)
    note = json.loads((tmp_path / NONFINITE_FILE).read_text())
    bad = batches[2]
    assert (note["step"], note["keys"]) == (3, list(bad.key))
    again = [apply_recipe(Recipe.from_json(line), hq) for line, hq in zip(note["recipes"], bad.hq_BCHW, strict=True)]
    assert torch.equal(torch.stack(again), bad.lq_BCHW)
    state = last_state(tmp_path)
    assert state is not None and state.stem == "step=2"  # the one at step 4 would hold lost weights
    monkeypatch.setattr(TrainingModule, "training_step", plain)
    fit(training(toy_folder, tmp_path, "max_steps=9", "log_every=5", "checkpoint_every=2"))


def test_one_rank_deletes_the_checkpoints_of_a_complete_run(tmp_path, monkeypatch) -> None:
    """Two that do so at the same time would look for files that the other has deleted."""
    from restore_lab.training.plan import STATE
    from restore_lab.training.run import _tidy

    (tmp_path / STATE).mkdir()
    for step in (3, 6):
        (tmp_path / STATE / f"step={step}.ckpt").touch()
    monkeypatch.setenv("LOCAL_RANK", "1")
    _tidy(tmp_path, keep=True)
    assert [state.name for state in states(tmp_path / STATE)] == ["step=3.ckpt", "step=6.ckpt"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    _tidy(tmp_path, keep=True)
    assert [state.name for state in states(tmp_path / STATE)] == ["step=6.ckpt"]
