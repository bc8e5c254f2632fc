"""`precision=bf16-true`: trained parts and moments in bfloat16, frozen parts and inputs unchanged."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from restore_lab.training.checkpoints import AtomicCheckpointIO
from restore_lab.training.module import Optimisation, TrainingModule
from restore_lab.training.precision import apply_precision
from tests.helpers.toy_methods import toy_batch, toy_spire


class Watch(L.Callback):
    """Keeps the losses, and the types of the images that come in."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.inputs: set[torch.dtype] = set()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.inputs |= {batch.hq_BCHW.dtype, batch.lq_BCHW.dtype}


def trained(precision: str) -> tuple[Any, L.Trainer, Watch]:
    """Three steps of a toy."""
    torch.manual_seed(0)
    module, watch = TrainingModule(toy_spire(), optimisation=Optimisation(lr=1e-3)), Watch()
    settings = apply_precision({"precision": precision, "gradient_clip_val": 1.0}, average=False, plugins=[])
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=3,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader([toy_batch()] * 3, batch_size=None))
    return module, trainer, watch


def test_trained_parts_and_moments_are_in_bfloat16() -> None:
    module, trainer, watch = trained("bf16-true")
    (optimiser,) = trainer.optimizers
    names = {id(p): name for name, p in module.trainable().items()}
    frozen = {p.dtype for p in module.parameters() if id(p) not in names}
    moments = {state[key].dtype for state in optimiser.state.values() for key in ("exp_avg", "exp_avg_sq")}
    assert {p.dtype for p in module.trainable().values()} == moments == {torch.bfloat16}
    assert frozen == watch.inputs == {torch.float32}
    mixed, _, other = trained("bf16-mixed")
    assert {p.dtype for p in mixed.trainable().values()} == {torch.float32}
    assert watch.losses == pytest.approx(other.losses, rel=0.02)


def test_float16_and_a_bfloat16_average_are_refused() -> None:
    with pytest.raises(ValueError, match=r"precision=16-true: .*; one of bf16-true, bf16-mixed, 32-true"):
        apply_precision({"precision": "16-true"}, average=False, plugins=[])
    with pytest.raises(ValueError, match=r"an average in bfloat16 would stand still; set ema=null"):
        apply_precision({"precision": "bf16-true"}, average=True, plugins=[])


def test_a_killed_save_leaves_the_state_before(tmp_path, monkeypatch) -> None:
    """Also without a folder for temporary files; an incomplete file is not taken for a state."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    place = tmp_path / "state" / "step=1.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, place)

    def killed(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"global_step": 2}, place)
    assert AtomicCheckpointIO().load_checkpoint(place, weights_only=True) == {"global_step": 1}
    assert [file.name for file in place.parent.glob("*.ckpt")] == ["step=1.ckpt"]
