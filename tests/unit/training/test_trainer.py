"""The settings of Lightning's Trainer: each is classified, and counts in an identity by its class."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer, callbacks
from omegaconf import DictConfig, OmegaConf

from restore_lab.cli import errors
from restore_lab.config import trainer as settings
from restore_lab.config.trainer import (
    DEBUG_ARGUMENTS,
    IDENTITY_ARGUMENTS,
    OTHER_SETTINGS,
    RUNTIME_ARGUMENTS,
    SETTABLE,
    STAGE,
    TrainerArguments,
    check_trainer_arguments,
)
from restore_lab.training import preflight
from restore_lab.training.ending import epochs_to_steps
from restore_lab.training.plan import PASSIVE_CALLBACKS, plan_stages
from restore_lab.training.trainer import trainer_for
from tests.helpers.configs import composed
from tests.helpers.kill_callbacks import KillAt

SIGNATURE = inspect.signature(Trainer).parameters
# Of Lightning's callbacks those that can change a weight or end a training; a new one fails the test below.
ACTING = {
    *("BackboneFinetuning", "BaseFinetuning", "BatchSizeFinder", "EarlyStopping", "EMAWeightAveraging"),
    *("GradientAccumulationScheduler", "LambdaCallback", "LearningRateFinder", "ModelPruning", "SpikeDetection"),
    *("StochasticWeightAveraging", "Timer", "WeightAveraging"),
}
OTHER: dict[str, Any] = {  # another value than what is set, of each argument that may change the weights
    "max_steps": 7,
    "max_epochs": 3,
    "max_time": "00:01:00:00",
    "min_steps": 2,
    "min_epochs": 1,
    "precision": "64-true",
    "accumulate_grad_batches": 3,
    "gradient_clip_val": 0.5,
    "gradient_clip_algorithm": "value",
    "sync_batchnorm": True,
    "reload_dataloaders_every_n_epochs": 1,
}
OTHER_FREE: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 2,
    "strategy": "ddp",
    "benchmark": True,
    "deterministic": None,
    "inference_mode": False,
    "detect_anomaly": True,
    "profiler": "simple",
    "num_sanity_val_steps": 1,
    "log_every_n_steps": 3,
    "val_check_interval": 7,
    "check_val_every_n_epoch": 1,
    "enable_progress_bar": True,
    "enable_model_summary": True,
    "enable_autolog_hparams": False,
}
OTHER_DEBUG: dict[str, Any] = {
    "fast_dev_run": True,
    "overfit_batches": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 0,
}


@pytest.fixture(scope="module")
def plain() -> DictConfig:
    return composed("train", "method=diff_restorer")


def changed(cfg: DictConfig, **values: Any) -> DictConfig:
    made = cfg.copy()
    for name, value in values.items():
        OmegaConf.update(made, f"trainer.{name}", value, force_add=True)
    return made


def test_each_argument_of_lightnings_trainer_is_classified_once() -> None:
    classes = [*IDENTITY_ARGUMENTS, *RUNTIME_ARGUMENTS, *DEBUG_ARGUMENTS, *OTHER_SETTINGS]
    assert sorted(classes) == sorted(SIGNATURE)
    for name, default in IDENTITY_ARGUMENTS.items():
        assert SIGNATURE[name].default == default, name
    assert all(not SIGNATURE[name].default and not off for name, off in DEBUG_ARGUMENTS.items())
    assert {*TrainerArguments.__annotations__} == {*SETTABLE}
    assert (
        OTHER.keys() == IDENTITY_ARGUMENTS.keys()
        and OTHER_FREE.keys() == set(RUNTIME_ARGUMENTS)
        and OTHER_DEBUG.keys() == DEBUG_ARGUMENTS.keys()
    )


def test_the_shipped_trainer_names_each_setting(plain) -> None:
    """So that each is known to Hydra without a plus, and to `--help`."""
    assert set(plain.trainer) == {"_target_", *SETTABLE}
    assert {name for name, value in plain.trainer.items() if value == STAGE} == set(settings.BY_STAGE)


@pytest.mark.parametrize("name", IDENTITY_ARGUMENTS)
def test_settings_that_change_weights_are_in_every_identity(name, plain) -> None:
    for before, after in zip(plan_stages(plain), plan_stages(changed(plain, **{name: OTHER[name]})), strict=True):
        assert after.identity != before.identity
        assert after.settings["trainer"][name] == after.node["trainer"][name] == OTHER[name]


@pytest.mark.parametrize("name", RUNTIME_ARGUMENTS)
def test_settings_that_cannot_change_weights_are_in_no_identity(name, plain) -> None:
    for before, after in zip(plan_stages(plain), plan_stages(changed(plain, **{name: OTHER_FREE[name]})), strict=True):
        assert (after.identity, after.folder, after.debug) == (before.identity, before.folder, "")
        assert after.node["trainer"][name] == OTHER_FREE[name]


@pytest.mark.parametrize("name", DEBUG_ARGUMENTS)
def test_debugging_settings_write_to_a_debug_folder(name, plain) -> None:
    for before, after in zip(plan_stages(plain), plan_stages(changed(plain, **{name: OTHER_DEBUG[name]})), strict=True):
        assert after.debug == f"trainer.{name}={str(OTHER_DEBUG[name]).lower()}"
        assert after.folder != before.folder and after.folder.parent.name == "debug"


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_settings_with_another_name_are_refused_with_it(name, plain) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.{name} cannot be set here: {OTHER_SETTINGS[name][:12]}"):
        plan_stages(changed(plain, **{name: True}))


def test_an_unknown_trainer_setting_is_refused_with_the_nearest_name(plain) -> None:
    with pytest.raises(ValueError, match="no setting 'precisoin' in trainer; did you mean 'precision'"):
        plan_stages(changed(plain, precisoin="32-true"))
    with pytest.raises(
        ValueError, match=r"no setting 'max_step' in stages\.decoder\.trainer; did you mean 'max_steps'"
    ):
        plan_stages(composed("train", "method=diff_restorer", "+stages.decoder.trainer.max_step=3"))


def chosen(*words: str) -> dict[str, dict[str, Any]]:
    return {stage.kind: dict(stage.node["trainer"]) for stage in plan_stages(composed("train", "method=supir", *words))}


def test_typed_trainer_settings_win_over_a_stages() -> None:
    alone = chosen()
    assert [alone[name]["max_steps"] for name in ("encoder", "adaptor")] == [400, 1200]
    assert "accumulate_grad_batches" not in alone["encoder"]  # no stage's, nobody's
    words = ("trainer.precision=32-true", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=null")
    for node in chosen(*words).values():
        assert (node["precision"], node["accumulate_grad_batches"], node["gradient_clip_val"]) == ("32-true", 2, None)
    both = chosen("trainer.precision=16-mixed", "stages.encoder.trainer.precision=32-true")
    assert (both["encoder"]["precision"], both["adaptor"]["precision"]) == ("32-true", "16-mixed")
    one = chosen("+stages.adaptor.trainer.max_time='00:00:10:00'", "+stages.adaptor.trainer.detect_anomaly=true")
    assert (one["encoder"]["max_time"], one["adaptor"]["max_time"]) == (None, "00:00:10:00")
    assert (one["encoder"]["detect_anomaly"], one["adaptor"]["detect_anomaly"]) == (False, True)


def test_a_typed_default_changes_no_identity() -> None:
    plain, *others = (
        [stage.identity for stage in plan_stages(composed("train", *words))]
        for words in ((), ("trainer.accumulate_grad_batches=1",), ("trainer.max_epochs=null", "trainer.max_time=null"))
    )
    assert others == [plain, plain]


def test_acting_callbacks_count_in_the_identity_and_watching_ones_do_not(monkeypatch) -> None:
    assert set(callbacks.__all__) == ACTING | PASSIVE_CALLBACKS
    one_stage = composed("train")

    def identity_with(node: Any, **more: Any) -> str:
        cfg = one_stage.copy()
        cfg.callbacks = node
        return plan_stages(changed(cfg, **more))[-1].identity

    stop = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/psnr_restored"}
    bar = {"_target_": "lightning.pytorch.callbacks.RichProgressBar"}
    plain, stopped = identity_with(None), identity_with([stop])
    assert identity_with([bar]) == plain == identity_with({"bar": bar})
    assert stopped != plain and identity_with({"bar": bar, "stop": stop}) == stopped
    assert identity_with([{**stop, "patience": 9}]) not in (plain, stopped)
    assert identity_with([stop], val_check_interval=7) != stopped  # it acts on what validation finds
    monkeypatch.setenv("RESTORE_LAB_TRUSTED_PACKAGES", "tests")
    kill = {"_target_": "tests.helpers.kill_callbacks.KillAt", "step": 3}
    assert identity_with([kill]) == plain  # it says that it only watches
    monkeypatch.delattr(KillAt, "changes_weights")
    assert identity_with([kill]) != plain


JUNK = (None, 3, -1, 0.5, 1e30, float("nan"), "x", "", [1], {}, "/tmp", True)


@pytest.mark.parametrize("name", SETTABLE)
def test_any_value_of_any_setting_trains_or_is_refused_in_one_line(name, plain, tmp_path) -> None:
    node: Any = {**plan_stages(plain)[-1].node["trainer"], "accelerator": "cpu", "devices": 1}
    for value in JUNK:
        caught = refusal({**node, name: value}, tmp_path)
        assert caught is None or errors.is_bad_input(caught), (name, value)
        assert caught is None or ("trainer" in str(caught) and "\n" not in str(caught)), (name, value)


def refusal(node: dict[str, Any], folder: Path) -> ValueError | None:
    """Why no trainer comes of a node; any other error is a bug."""
    try:
        check_trainer_arguments("trainer", node)
        trainer_for(epochs_to_steps(node, None), folder=folder, average=False)
    except ValueError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("trainer.max_steps=null",),
            "nothing ends this training; give max_steps, trainer.max_epochs or trainer.max_t",
        ),
        (
            ("trainer.max_steps=null", "trainer.max_time='00:00:10:00'", "optimisation.decay=cosine"),
            "optimisation.decay=cosine falls to zero at the last step, and nothing says which that is; give max_steps",
        ),
        (("trainer.accelerator=cpu", "trainer.devices=3"), "batch_size=32 does not divide among 3 processes"),
        (("trainer.accelerator=cpu", "trainer.strategy=dpp"), "trainer: You selected an invalid strategy name"),
    ],
)
def test_an_impossible_training_is_refused_before_it_begins(words, said) -> None:
    with pytest.raises(ValueError, match=said):
        preflight.check_stages(plan_stages(composed("train", *words)))
