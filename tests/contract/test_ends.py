"""How a training ends, what a debug run writes (nothing), how a complete run is extended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from safetensors.torch import load_file

from restore_lab.methods.weights import WEIGHTS
from restore_lab.storage.artefact import Manifest, is_complete
from restore_lab.training.module import Optimisation, TrainingModule
from restore_lab.training.plan import plan_stages
from restore_lab.training.run import fit
from tests.helpers.configs import composed, few_photos, small
from tests.helpers.toy_priors import toy_unet_folder

QUICK = ("name=run", "progress=false", "log_every=1", "trainer.accelerator=cpu", "trainer.devices=1", "data.length=5")
CONSTANT = ("optimisation.decay=constant", "optimisation.warmup_steps=0", "optimisation.lr=1e-3")
STOP = "{_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:train/loss,patience:1,min_delta:1000}"


@pytest.fixture
def steps(monkeypatch) -> list[dict[str, Any]]:
    """What each batch of each training in this test was: its step, keys, seeds, learning rate."""
    seen: list[dict[str, Any]] = []
    plain = TrainingModule.training_step

    def step(self, batch, batch_idx):
        optimiser = self.optimizers()
        rate = optimiser.param_groups[0]["lr"]
        seen.append({"step": self.global_step, "keys": batch.key, "seeds": batch.seed, "rate": rate})
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step)
    return seen


def config(toy_folder: Path, runs: Path, *words: str):
    return composed("train", *small(toy_folder), *QUICK, f"runs_dir={runs}", *words)


def trained(toy_folder: Path, runs: Path, *words: str) -> Path:
    folder = fit(config(toy_folder, runs, *words))
    assert folder is not None and is_complete(folder)
    return folder


def ended(folder: Path) -> tuple[str, int, int | None]:
    found = Manifest.read(folder).extra["ended"]
    return found["by"], found["step"], found["of"]


def losses(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "losses.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.mark.parametrize(("word", "batches"), [("trainer.fast_dev_run=true", 1), ("trainer.overfit_batches=1", 4)])
def test_a_debug_run_trains_and_writes_no_run(word, batches, toy_folder, tmp_path, steps, caplog) -> None:
    words = ("max_steps=4", "checkpoint_every=1", "eval_degradation=noise")
    with caplog.at_level("INFO"):
        assert fit(config(toy_folder, tmp_path, *words, word)) is None
    assert [one["step"] for one in steps] == list(range(batches))
    assert len({(tuple(one["keys"]), tuple(one["seeds"])) for one in steps}) == 1  # overfitted: the same in every epoch
    assert f"a debug run ({word}): it leaves no artefact" in caplog.text
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]
    (whole,) = plan_stages(config(toy_folder, tmp_path, *words))
    assert not whole.folder.exists()


def test_max_epochs_sets_the_steps_and_the_end_of_the_cosine(toy_folder, tmp_path, steps) -> None:
    """Five images in batches of two, two passes: five steps. With two batches a step: three."""
    words = (
        "trainer.max_steps=null",
        "trainer.max_epochs=2",
        "optimisation.decay=cosine",
        "optimisation.warmup_steps=0",
    )
    folder = trained(toy_folder, tmp_path, *words)
    assert ended(folder) == ("max_epochs", 5, 5)
    schedule = Optimisation(lr=5e-4, decay="cosine")
    assert [one["rate"] for one in steps] == pytest.approx([5e-4 * schedule.factor(n, 5) for n in range(5)])
    assert ended(trained(toy_folder, tmp_path, *words, "trainer.accumulate_grad_batches=2")) == ("max_epochs", 3, 3)


def test_max_time_ends_a_run_with_weights(toy_folder, tmp_path, steps, monkeypatch, caplog) -> None:
    """A clock on which each step takes a minute."""
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, *stage: 60.0 * len(steps))
    words = ("max_steps=9", "trainer.max_time='00:00:03:00'", "keep_state=false")
    with caplog.at_level("INFO"):
        folder = trained(toy_folder, tmp_path, *words)
    assert ended(folder) == ("max_time", 3, 9)
    assert "ended: max_time after 3 of 9 steps" in caplog.text and (folder / WEIGHTS).is_file()
    assert not (folder / "state").exists()
    assert Manifest.read(folder).settings["trainer"]["max_time"] == "00:00:03:00"
    assert trained(toy_folder, tmp_path, *words) == folder and len(steps) == 3  # it is complete
    assert plan_stages(config(toy_folder, tmp_path, "max_steps=9"))[-1].folder != folder


def test_early_stopping_ends_a_run_with_weights(toy_folder, tmp_path) -> None:
    words = ("max_steps=50", "trainer.val_check_interval=2", "eval_degradation=noise")
    folder = trained(toy_folder, tmp_path, *words, f"callbacks=[{STOP}]")
    assert ended(folder) == ("EarlyStopping", 4, 50)
    with pytest.raises(ValueError, match="callbacks: Early stopping conditioned on metric `nothing`"):
        fit(config(toy_folder, tmp_path, *words, f"callbacks=[{STOP.replace('train/loss', 'nothing')}]"))


def test_an_extended_run_equals_the_unbroken_run(toy_folder, tmp_path, steps) -> None:
    """With average and optimiser's state; the third part extends an extended one."""
    words = (*CONSTANT, "ema=0.9")
    first = trained(toy_folder, tmp_path, *words, "max_steps=1")
    second = trained(toy_folder, tmp_path, *words, "max_steps=2", f"extend={first}")
    third = trained(toy_folder, tmp_path, *words, "max_steps=4", f"extend={second}")
    assert [one["step"] for one in steps] == [0, 1, 2, 3]
    whole = trained(toy_folder, tmp_path, *words, "max_steps=4")
    assert len({first, second, third, whole}) == 4
    assert losses(third) == pytest.approx(losses(whole), rel=1e-5)
    extended, unbroken = load_file(third / WEIGHTS), load_file(whole / WEIGHTS)
    for name, value in unbroken.items():
        torch.testing.assert_close(extended[name], value, rtol=1e-5, atol=1e-6, msg=name)
    manifest = Manifest.read(second)
    assert manifest.parents == (Manifest.read(first).identity,)
    assert manifest.settings["extends"] == Manifest.read(first).identity


def test_extending_under_another_schedule_is_logged(toy_folder, tmp_path, steps, caplog) -> None:
    words = ("optimisation.decay=cosine", "optimisation.warmup_steps=0", "optimisation.lr=1e-3")
    first = trained(toy_folder, tmp_path, *words, "max_steps=2")
    trained(toy_folder, tmp_path, *words, "max_steps=4", f"extend={first}")
    assert (
        "optimisation.decay=cosine: the learning rate falls until step 4; before, it fell until step 2" in caplog.text
    )
    rates = [Optimisation(lr=1e-3, decay="cosine").factor(n, of) for n, of in ((0, 2), (1, 2), (2, 4), (3, 4))]
    assert [one["rate"] for one in steps] == pytest.approx([1e-3 * rate for rate in rates])


def test_extending_an_unfit_run_is_refused_with_the_reason(toy_folder, tmp_path) -> None:
    def refusal(*words: str) -> str:
        with pytest.raises(ValueError, match="extend=") as caught:
            fit(config(toy_folder, tmp_path, *CONSTANT, *words))
        return str(caught.value)

    run = trained(toy_folder, tmp_path, *CONSTANT, "max_steps=2")
    assert "it was trained for 2 steps; give more" in refusal("max_steps=2", f"extend={run}")
    odd = refusal("max_steps=4", f"extend={run}", "seed=3", "trainer.gradient_clip_val=2")
    assert "trainer.gradient_clip_val=2 here, 1.0 there; seed=3 here, 0 there" in odd and "max_steps=2" in odd
    assert "leaves no weights" in refusal("max_steps=4", f"extend={run}", "trainer.fast_dev_run=true")
    assert "not a complete run" in refusal("max_steps=4", f"extend={tmp_path}")
    shutil.rmtree(run / "state")
    assert f"weights={run} starts a new training" in refusal("max_steps=4", f"extend={run}")


def test_extending_a_staged_method_extends_its_last_stage(tmp_path) -> None:
    """Whose earlier stage is used as it is, though its length follows max_steps too."""
    prior = toy_unet_folder(tmp_path, "sdxl")
    own = ("method=supir", f"backbone.path={prior}", "encoder_steps=${max_steps}", *few_photos())
    sizes = ("data.size=16", "crop=16", "batch_size=2", "workers=0", "precision=32-true")
    words = (*own, *sizes, *QUICK, f"runs_dir={tmp_path}", *CONSTANT)
    first = fit(composed("train", *words, "max_steps=1"))
    longer = fit(composed("train", *words, "max_steps=2", f"extend={first}"))
    assert first is not None and longer is not None and ended(longer) == ("max_steps", 2, 2)
    (encoder,) = (tmp_path / "run").glob("encoder-*")
    assert Manifest.read(longer).parents == (Manifest.read(encoder).identity, Manifest.read(first).identity)
    with pytest.raises(ValueError, match="made by stage adaptor, not by encoder; set stage=adaptor"):
        fit(composed("train", *words, "max_steps=2", f"extend={first}", "stage=encoder"))
    encoder.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="stage encoder, from which it was made, is not in"):
        fit(composed("train", *words, "max_steps=3", f"extend={longer}"))
