"""Training: average, learning rates, history, checkpoints, weights, stages."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from restore_lab.adaptors.fusion.zero_conv import ZeroConv
from restore_lab.cli import errors
from restore_lab.methods.pipeline import pad_to_multiple
from restore_lab.methods.trainable import Trainable
from restore_lab.methods.weights import WEIGHTS, weights_file, write_weights
from restore_lab.storage.artefact import Manifest, is_complete
from restore_lab.training import run as fit_module
from restore_lab.training.checkpoints import last_state
from restore_lab.training.ema import EMA
from restore_lab.training.history import History
from restore_lab.training.module import Optimisation, TrainingModule
from restore_lab.training.run import fit
from tests.helpers.configs import composed
from tests.helpers.rounding import close
from tests.helpers.toy_methods import shake, toy_adaptor, toy_batch, toy_spire


class Line(Trainable):
    """One trainable weight vector next to a frozen layer; the loss pulls the weights to the data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.prior = nn.Linear(3, 3).requires_grad_(False)

    def loss(self, batch: Tensor, *, step: int) -> dict[str, Tensor]:
        return {"loss": (self.weight - batch).square().mean()}

    def validate(self, batch: Tensor) -> dict[str, Tensor]:
        return {"weight": self.weight.mean()}


PULL = Optimisation(lr=0.1, weight_decay=0.0)


class Watch(L.Callback):
    """Keeps the weights after each optimiser step."""

    def __init__(self) -> None:
        self.steps: dict[int, Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: TrainingModule, *args: Any) -> None:
        self.steps[trainer.global_step] = pl_module.get_parameter("module.weight").detach().clone()


class Data(L.LightningDataModule):
    """Batch n is drawn from seed n, from the trainer's step on, as the real stream is."""

    def train_dataloader(self):
        first = self.trainer.global_step * self.trainer.accumulate_grad_batches
        drawn = [torch.randn(3, generator=torch.Generator().manual_seed(n)) for n in range(first, first + 100)]
        return DataLoader(drawn, batch_size=None)

    def val_dataloader(self):
        return DataLoader([torch.zeros(3)], batch_size=None)


def trained(
    *callbacks: L.Callback, steps: int, accumulate: int = 1, state: Path | None = None, every: int = 100
) -> TrainingModule:
    module = TrainingModule(Line(), optimisation=PULL)
    trainer = L.Trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(c, L.pytorch.callbacks.ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=every,
        check_val_every_n_epoch=None,
    )
    trainer.fit(module, Data(), ckpt_path=state, weights_only=True)
    return module


def checkpoints(folder: Path, *, every: int) -> L.Callback:
    return L.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder, filename="{step}", every_n_train_steps=every, save_top_k=-1
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ema_equals_its_closed_form_per_optimiser_step(accumulate) -> None:
    ema, watch = EMA(decay=0.5), Watch()
    trained(ema, watch, steps=8, accumulate=accumulate)
    average = torch.zeros(3)
    for step in range(1, 9):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * watch.steps[step]
    assert ema.average.keys() == {"module.weight"}
    torch.testing.assert_close(ema.average["module.weight"], average)
    assert not torch.allclose(average, watch.steps[8])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(accumulate, tmp_path) -> None:
    whole, watch = EMA(decay=0.9), Watch()
    trained(whole, watch, History(file=tmp_path / "a.jsonl", every=1), steps=6, accumulate=accumulate)
    log = tmp_path / "b.jsonl"
    trained(EMA(decay=0.9), checkpoints(tmp_path, every=2), History(file=log, every=1), steps=5, accumulate=accumulate)
    resumed, after = EMA(decay=0.9), Watch()
    state = tmp_path / "step=4.ckpt"
    trained(resumed, after, History(file=log, every=1), steps=6, accumulate=accumulate, state=state)
    assert torch.equal(after.steps[6], watch.steps[6])
    assert torch.equal(resumed.average["module.weight"], whole.average["module.weight"])
    assert log.read_text() == (tmp_path / "a.jsonl").read_text()
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_validation_uses_the_ema_weights(tmp_path) -> None:
    ema, watch, log = EMA(decay=0.9), Watch(), tmp_path / "log.jsonl"
    module = trained(ema, watch, History(file=log, every=1), steps=4, every=4)
    validated = [json.loads(line) for line in log.read_text().splitlines() if "val/weight" in line]
    assert [line["step"] for line in validated] == [4]
    assert validated[0]["val/weight"] == pytest.approx(float(ema.average["module.weight"].mean()), rel=1e-6)
    assert torch.equal(module.get_parameter("module.weight"), watch.steps[4])
    average = ema.average["module.weight"].clone()
    with ema.averaged_weights(module):
        assert torch.equal(module.get_parameter("module.weight"), average)
    assert torch.equal(module.get_parameter("module.weight"), watch.steps[4])
    with pytest.raises(RuntimeError, match="on purpose"), ema.averaged_weights(module):
        raise RuntimeError("on purpose")
    assert torch.equal(module.get_parameter("module.weight"), watch.steps[4])
    with pytest.raises(ValueError, match=r"EMA\.decay=1\.0: expected a number of at least 0 and below 1"):
        EMA(decay=1.0)


def test_learning_rate_factors_equal_their_formulas() -> None:
    plain = Optimisation(lr=1.0)
    assert [plain.factor(step, 100) for step in (0, 50, 99)] == [1.0, 1.0, 1.0]
    warm = Optimisation(lr=1.0, warmup_steps=4)
    assert [warm.factor(step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = Optimisation(lr=1.0, warmup_steps=10, decay="cosine")
    assert cosine.factor(9, 110) == 1.0
    assert cosine.factor(10, 110) == 1.0
    assert cosine.factor(60, 110) == pytest.approx(0.5)
    assert cosine.factor(35, 110) == pytest.approx(0.5 + 0.5 * 0.5**0.5)
    assert cosine.factor(110, 110) == cosine.factor(500, 110) == 0.0
    with pytest.raises(ValueError, match=r"Optimisation\.decay=linear: .*constant, cosine"):
        Optimisation(lr=1.0, decay="linear")


def test_the_schedule_reaches_the_optimiser() -> None:
    """AdamW's first step moves each weight by the learning rate, whatever the gradient: so the warm-up shows."""

    warm = Optimisation(lr=0.1, weight_decay=0.0, warmup_steps=10, eps=1e-12)
    module, watch = TrainingModule(Line(), optimisation=warm), Watch()
    L.Trainer(
        max_steps=1,
        callbacks=[watch],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    ).fit(module, Data())
    torch.testing.assert_close(watch.steps[1].abs(), torch.full((3,), 0.1 / 10))


def test_history_drops_what_comes_after_the_checkpoint(tmp_path) -> None:
    log = tmp_path / "losses.jsonl"
    log.write_text('{"step": 1, "train/loss": 0.5}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n{"step": 5, "tra')
    history = History(file=log, every=1)
    trainer = SimpleNamespace(is_global_zero=True, global_step=3, callback_metrics={}, sanity_checking=False)
    history.on_train_start(trainer, None)
    assert log.read_text() == '{"step": 1, "train/loss": 0.5}\n{"step": 2}\n{"step": 3}\n'
    trainer.callback_metrics = {"train/loss": torch.tensor(0.25), "val/x": torch.tensor(1.0)}
    history.on_train_batch_end(trainer, None)  # an accumulated batch: the step has not been taken
    trainer.global_step = 4
    history.on_train_batch_end(trainer, None)
    history.on_train_batch_end(trainer, None)
    history.on_validation_end(trainer, None)
    assert log.read_text().splitlines()[3:] == ['{"step": 4, "train/loss": 0.25}', '{"step": 4, "val/x": 1.0}']


def test_history_writes_each_nth_step(tmp_path) -> None:
    log = tmp_path / "losses.jsonl"
    trained(History(file=log, every=3), steps=8)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [3, 6]


def test_checkpoints_hold_the_trainable_part_and_load_as_weights_only(tmp_path) -> None:
    trained(EMA(decay=0.5), checkpoints(tmp_path, every=2), steps=4)
    state = torch.load(last_state(tmp_path.parent / tmp_path.name) or tmp_path / "step=4.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert state["state_dict"].keys() == {"module.weight"}
    assert any("average" in value for value in state["callbacks"].values())


def test_a_methods_checkpoint_is_its_adaptor() -> None:
    module = TrainingModule(toy_spire(), optimisation=PULL)
    names = module.state_dict().keys()
    assert names == module.trainable().keys()
    assert all(name.startswith("module.adaptor.") and "trunk.mid_block" not in name for name in names)


def test_weights_round_trip(tmp_path) -> None:
    trained_one, fresh = toy_spire(), toy_spire(seed=1)
    shake(trained_one.adaptor)
    trained_one.export(tmp_path)
    assert load_file(tmp_path / WEIGHTS).keys() == trained_one.adaptor_state().keys()
    fresh.load_weights(weights_file(str(tmp_path)))
    for name, value in trained_one.adaptor_state().items():
        assert torch.equal(fresh.adaptor_state()[name], value), name
    batch = toy_batch()
    assert close(fresh.restore(batch), trained_one.restore(batch))
    assert weights_file(str(tmp_path)) == weights_file(str(tmp_path / WEIGHTS)) == tmp_path / WEIGHTS
    assert weights_file("asset:tiny").parts[-3:] == ("restore_lab", "assets", "tiny")


def refusal(module, file: Path) -> str:
    with pytest.raises(ValueError, match="adaptor") as caught:
        module.load_weights(file)
    assert errors.is_bad_input(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path) -> None:
    module, other = toy_spire(), toy_spire(adaptor=toy_adaptor(fusion=ZeroConv))
    assert "no such weights" in refusal(module, tmp_path / WEIGHTS)
    other.export(tmp_path)
    before = {name: value.clone() for name, value in module.adaptor_state().items()}
    message = refusal(module, tmp_path / WEIGHTS)
    assert "does not fit this adaptor" in message and "the first is fusion." in message
    wider = partial(toy_adaptor().func, **{**toy_adaptor().keywords, "hint_channels": 5})
    toy_spire(adaptor=wider).export(tmp_path)
    message, count = refusal(module, tmp_path / WEIGHTS), len(module.adaptor_state())
    # the hint's last layer and the trunk's first
    assert f": 3 of another shape than its {count} tensors; the first is hint.conv_out.weight" in message
    kept = {name: value for name, value in module.adaptor_state().items() if not name.startswith("fusion.")}
    others = {f"other.{number}": torch.zeros(1) for number in range(300)}  # more than there are tensors
    write_weights({**kept, **others}, tmp_path, dtype=None, base=None)
    message = refusal(module, tmp_path / WEIGHTS)
    assert f"{count - len(kept)} missing of its {count} tensors, 300 unknown of the file's {len(kept) + 300}" in message
    assert all(torch.equal(before[name], value) for name, value in module.adaptor_state().items())
    whole = (tmp_path / WEIGHTS).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not weights"):
        (tmp_path / WEIGHTS).write_bytes(damaged)
        assert str(tmp_path / WEIGHTS) in refusal(module, tmp_path / WEIGHTS)


def test_training_and_validation_need_pairs() -> None:
    module, lonely = toy_spire(), toy_batch()
    object.__setattr__(lonely, "lq_BCHW", None)
    with pytest.raises(ValueError, match="training needs pairs"):
        module.loss(lonely, step=0)
    with pytest.raises(ValueError, match="validation needs pairs"):
        module.validate(lonely)
    with pytest.raises(ValueError, match="no LQ to restore"):
        module.restore(lonely)


def test_padding_repeats_the_lower_and_right_edges() -> None:
    image = torch.rand(1, 3, 5, 7)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 3, 8, 8)
    assert torch.equal(padded[..., :5, :7], image)
    assert torch.equal(padded[..., 5:, :7], image[..., 4:5, :].expand(1, 3, 3, 7))
    assert torch.equal(padded[..., :5, 7], image[..., 6])
    assert torch.equal(pad_to_multiple(padded, 4), padded)


@pytest.fixture
def spied(monkeypatch) -> list[tuple[dict, Path]]:
    """Stages are not trained; what each would have been built from is kept."""
    made: list[tuple[dict, Path]] = []

    def pretend(cfg, node, folder, logger, **how) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        made.append((node, folder))
        return {}

    monkeypatch.setattr(fit_module, "_train", pretend)
    return made


def stages(tmp_path: Path, *words: str):
    return composed("train", "experiment=priors/tiny_sd", "data=procedural", f"runs_dir={tmp_path}", *words)


def test_stages_run_in_order_and_each_gets_the_one_before(tmp_path, spied) -> None:
    last = fit(stages(tmp_path))
    (codec, first), (unet, second) = spied
    assert [folder.name.partition("-")[0] for folder in (first, second)] == ["codec", "unet"]
    assert last == second
    assert first.parent == tmp_path / "priors" / "tiny_sd"
    assert unet["module"]["codec"] == str(first)
    assert "channels" in codec["module"]
    manifest = Manifest.read(second)
    assert manifest.parents == (Manifest.read(first).identity,)
    assert manifest.settings["module"]["codec"] == f"stage:{manifest.parents[0]}"


def test_a_complete_stage_is_reused_and_a_changed_one_trained(tmp_path, spied) -> None:
    fit(stages(tmp_path))
    fit(stages(tmp_path, "workers=3", "log_every=1", "checkpoint_every=7", "logger=csv"))
    assert len(spied) == 2
    fit(stages(tmp_path, "max_steps=11999"))
    assert [folder.name.partition("-")[0] for _, folder in spied[2:]] == ["unet"]
    fit(stages(tmp_path, "codec_steps=1999"))
    assert [folder.name.partition("-")[0] for _, folder in spied[3:]] == ["codec", "unet"]
    fit(stages(tmp_path, "seed=1"))
    assert len(spied) == 7
    assert len({folder for _, folder in spied}) == 7


def test_a_complete_run_logs_that_it_sends_nothing(tmp_path, spied, caplog) -> None:
    fit(stages(tmp_path))
    with caplog.at_level("INFO"):
        fit(stages(tmp_path, "logger=none"))
        assert "is complete" in caplog.text and "logger" not in caplog.text
        fit(stages(tmp_path, "logger=csv"))
    assert len(spied) == 2
    assert caplog.text.count("; nothing runs, so logger=csv is sent nothing") == 2


def test_a_chosen_stage_is_the_last_one_trained(tmp_path, spied) -> None:
    assert fit(stages(tmp_path, "stage=codec")) == spied[0][1]
    assert len(spied) == 1
    fit(stages(tmp_path, "stage=unet"))
    assert len(spied) == 2


def test_unknown_stages_are_refused(tmp_path, spied) -> None:
    for word in ("decoder", "adaptor"):  # an experiment that has set a stage to null has no such stage
        with pytest.raises(ValueError, match=f"stage='{word}' is not known here; one of codec, unet, all"):
            fit(stages(tmp_path, f"stage={word}"))
    with pytest.raises(ValueError, match="'stage:codek': there is no earlier stage 'codek'; earlier stages: codec"):
        fit(stages(tmp_path, "stages.unet.module.codec=stage:codek"))
    with pytest.raises(ValueError, match="there is no earlier stage 'unet'; earlier stages: none"):
        fit(stages(tmp_path, "stages.codec.module.start=stage:unet/weights"))


def test_debugging_the_last_stage_keeps_the_earlier_ones(tmp_path, spied) -> None:
    assert fit(stages(tmp_path, "+stages.unet.trainer.fast_dev_run=true")) is None
    (_, first), (_, second) = spied
    assert is_complete(first) and not second.exists()
    with pytest.raises(
        ValueError, match=r"stage unet starts from stage codec, whose trainer\.fast_dev_run=true leaves no"
    ):
        fit(stages(tmp_path, "+stages.codec.trainer.fast_dev_run=true"))


def test_a_path_within_a_stage_is_resolved(tmp_path, spied) -> None:
    fit(stages(tmp_path, "stages.unet.module.codec=stage:codec/vae"))
    assert spied[1][0]["module"]["codec"] == f"{spied[0][1]}/vae"


def test_another_runs_folder_is_refused(tmp_path, spied) -> None:
    cfg = stages(tmp_path, "stage=codec", f"run_dir={tmp_path}/mine")
    assert fit(cfg) == tmp_path / "mine"
    assert is_complete(tmp_path / "mine")
    with pytest.raises(ValueError, match="mine holds another run's result"):
        fit(stages(tmp_path, "stage=codec", f"run_dir={tmp_path}/mine", "seed=2"))


def test_run_dir_is_the_last_stages_folder(tmp_path, spied) -> None:
    assert fit(stages(tmp_path, f"run_dir={tmp_path}/mine")) == tmp_path / "mine"
    (_, first), (_, second) = spied
    assert first.parent == tmp_path / "priors" / "tiny_sd" and second == tmp_path / "mine"


def test_an_unfinished_run_is_not_continued_with_other_settings(tmp_path, monkeypatch) -> None:
    def killed(cfg, node, folder, logger, **how) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "_train", killed)
    mine = ("stage=codec", f"run_dir={tmp_path}/mine")
    for words in (mine, (*mine, "workers=3")):
        with pytest.raises(KeyboardInterrupt):
            fit(stages(tmp_path, *words))
    with pytest.raises(ValueError, match="mine holds an unfinished run with other settings; choose another run_dir"):
        fit(stages(tmp_path, *mine, "seed=2"))
