"""`trainer=tpu` through Lightning's trainer, with XLA's CPU device as a TPU core; stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lightning.fabric.accelerators.xla import XLAAccelerator
from safetensors.torch import load_file

from restore_lab.config.build import TRUST_VARIABLE
from restore_lab.training.run import fit
from tests.helpers.configs import composed, small
from tests.helpers.toy_priors import toy_unet_folder
from tests.xla.counted import spent

WORDS = ("name=run", "max_steps=4", "checkpoint_every=2", "log_every=1", "ema=0.9", "workers=1")
WORDS += ("optimisation.lr=1e-3", "optimisation.eps=1e-3", "optimisation.warmup_steps=2", "optimisation.decay=cosine")


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    XLAAccelerator.is_available.cache_clear()
    monkeypatch.setattr(XLAAccelerator, "auto_device_count", staticmethod(lambda: 1))
    monkeypatch.setenv(TRUST_VARIABLE, "tests")


def test_trained_stopped_and_resumed_as_on_a_cpu(one_core, tmp_path, capsys) -> None:
    prior = toy_unet_folder(tmp_path / "prior", "mini")

    def train(runs: Path, *words: str) -> Path:
        seen = {word.partition("=")[0]: word for word in (*small(prior), "adaptor.hint_widths=[4,4]", *WORDS, *words)}
        return fit(composed("train", "method=spire", "backbone=tiny_sd", *seen.values(), f"runs_dir={runs}"))

    stop = "callbacks=[{_target_:tests.helpers.kill_callbacks.StopAt,step:3}]"
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "xla", "trainer=tpu", stop)
    resumed = spent(lambda: train(tmp_path / "xla", "trainer=tpu"))
    plain = train(tmp_path / "cpu", "trainer.accelerator=cpu")
    losses = [
        [json.loads(line)["train/loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]
        for folder in (resumed.result, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4
    weights = [load_file(folder / "adaptor.safetensors") for folder in (resumed.result, plain)]
    worst = max(float((weights[0][name] - value).abs().max()) for name, value in weights[1].items())
    assert worst < 1e-5
    with capsys.disabled():
        print(f"\nLightning: {resumed.compiled} programs after resuming; averaged weights within {worst:.0e}")
