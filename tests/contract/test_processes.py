"""Several processes that share a batch train the weights of one: real processes, forked by Lightning, over gloo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import Tensor

from restore_lab.config.build import build
from restore_lab.priors.clip import ClipPretraining
from restore_lab.training.history import History
from restore_lab.training.module import Optimisation, TrainingModule
from tests.helpers.configs import composed, small

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
STEPS = 4
WORDS = (
    "batch_size=4",
    "optimisation.lr=1e-3",
    "optimisation.warmup_steps=0",
    "prompt.dropout.semantic=0.5",
    "eval_degradation=noise",
    "eval_data.names=[camera,coffee,chelsea]",  # one process has a batch more than the other
    "datamodule.eval_batch_size=1",
    "degradation=real_esrgan",
)


def trained(toy_folder: Path, file: Path, *, devices: int) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """What a few steps make of the adaptor, and what was logged."""
    cfg = composed("train", *small(toy_folder), *WORDS)
    L.seed_everything(0, verbose=False)
    module, data = build(cfg.module), build(cfg.datamodule)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_steps=STEPS,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[History(file=file, every=1)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(TrainingModule(module, optimisation=build(cfg.optimisation)), data)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {name: p.detach().cpu() for name, p in module.trainable().items()}, lines


def test_two_processes_train_the_weights_of_one(toy_folder, tmp_path) -> None:
    one, logged = trained(toy_folder, tmp_path / "one", devices=1)
    two, logged_by_two = trained(toy_folder, tmp_path / "two", devices=2)
    assert [line["step"] for line in logged] == [line["step"] for line in logged_by_two] == [1, 2, 2, 3, 4, 4]
    for a, b in zip(logged, logged_by_two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    moved = max(float((a - b).abs().max()) for a, b in zip(one.values(), start(toy_folder).values(), strict=True))
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert apart < 0.01 * moved, (apart, moved)


def start(toy_folder: Path) -> dict[str, Tensor]:
    L.seed_everything(0, verbose=False)
    module = build(composed("train", *small(toy_folder), *WORDS).module)
    return {name: p.detach() for name, p in module.trainable().items()}


def test_a_loss_over_the_whole_batch_is_refused_under_ddp() -> None:
    module = ClipPretraining.__new__(ClipPretraining)
    torch.nn.Module.__init__(module)
    training = TrainingModule(module, optimisation=Optimisation(lr=1e-3))
    training._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="ClipPretraining looks at a batch as a whole"):
        training.setup("fit")
