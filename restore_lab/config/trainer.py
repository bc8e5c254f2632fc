"""What each argument of Lightning's Trainer is to a training, and which value a stage gets.

`trainer` in the config speaks for all stages, `stages.NAME.trainer` for one. `COUNTED` can change the weights and is
part of an artefact's identity; `FREE` cannot; `DEBUG` runs a part of a training, which leaves no artefact; `ELSEWHERE`
has a setting of its own. tests/unit/test_trainer.py compares the four with Lightning's signature. Without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from restore_lab.config.kinds import NotNegative, Part, Pattern, Range, Unfit, fit, short
from restore_lab.config.settings import Precision
from restore_lab.config.suggest import offer

STAGE = "stage"  # a value in `trainer`: each stage's own
COUNTED: Mapping[str, Any] = {  # with Lightning's defaults
    "max_steps": -1,
    "max_epochs": None,
    "max_time": None,
    "min_steps": None,
    "min_epochs": None,
    "precision": None,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
    "sync_batchnorm": False,
    "reload_dataloaders_every_n_epochs": 0,
}
BY_STAGE = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")  # what every stage says itself
ENDS = ("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs")
VALIDATION = ("val_check_interval", "check_val_every_n_epoch")  # counts where a callback may act on what it finds
FREE = (
    *("accelerator", "devices", "num_nodes", "strategy", "benchmark", "deterministic", "inference_mode"),
    *("detect_anomaly", "profiler", "num_sanity_val_steps", "log_every_n_steps", *VALIDATION),
    *("enable_progress_bar", "enable_model_summary", "enable_autolog_hparams"),
)
DEBUG: Mapping[str, Any] = {  # with the values that switch them off
    "fast_dev_run": False,
    "overfit_batches": 0,
    "limit_train_batches": None,
    "limit_val_batches": None,
}
ELSEWHERE = {
    "barebones": "a training without checkpoints is none; trainer.fast_dev_run=true tries one step",
    "callbacks": "set callbacks=[...]",
    "default_root_dir": "set runs_dir or run_dir",
    "enable_checkpointing": "set checkpoint_every",
    "limit_predict_batches": "training predicts nothing",
    "limit_test_batches": "training tests nothing",
    "logger": "set logger=wandb, tensorboard or csv",
    "model_registry": "set logger=wandb",
    "plugins": "set trainer.precision or trainer.strategy",
    "use_distributed_sampler": "the data module shares each batch among the devices",
}
SETTABLE = (*COUNTED, *FREE, *DEBUG)

MaxSteps = Annotated[int, Range(1, 10**9, unit="optimiser steps")] | None
Epochs = Annotated[int, Range(1, 10**9, unit="passes over the training images")] | None
Batches = Annotated[int, Range(0, 10**9, unit="batches")]
VALUES: Mapping[str, Any] = {  # what an argument may be; a strategy is Lightning's to judge
    "max_steps": MaxSteps | Literal["stage"],
    "min_steps": MaxSteps,
    **dict.fromkeys(("max_epochs", "min_epochs", "check_val_every_n_epoch"), Epochs),
    "max_time": Annotated[str, Pattern(r"\d{2}:\d{2}:\d{2}:\d{2}", "days, hours, minutes, seconds: 00:01:30:00")]
    | None,
    "precision": Precision | Literal["stage"] | None,
    "accumulate_grad_batches": Annotated[int, Range(1, 2**16, unit="batches in a step")] | Literal["stage"],
    "gradient_clip_val": NotNegative | Literal["stage"] | None,
    "gradient_clip_algorithm": Literal["norm", "value"] | None,
    **dict.fromkeys(("reload_dataloaders_every_n_epochs", "log_every_n_steps"), Annotated[int, Range(0, 10**9)]),
    "fast_dev_run": bool | Batches,
    "overfit_batches": Batches,
    "limit_train_batches": Annotated[int, Range(1, 10**9, unit="batches")] | None,
    "limit_val_batches": Annotated[float, Range(0, 10**9, unit="batches, or a share of them")] | None,
    "val_check_interval": Annotated[int, Range(1, 10**9, unit="batches")],
    "num_sanity_val_steps": Annotated[int, Range(-1, 10**9, unit="batches")],
    "profiler": Literal["simple", "advanced"] | Mapping[str, Any] | None,
    "deterministic": bool | Literal["warn"] | None,
    "benchmark": bool | None,
    **dict.fromkeys(("sync_batchnorm", "inference_mode", "detect_anomaly", "enable_autolog_hparams"), bool),
    **dict.fromkeys(("enable_progress_bar", "enable_model_summary"), bool),
    "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"],
    "devices": Annotated[str, Pattern(r"auto|-1|[1-9]\d{0,3}(,\d{1,4})*", "auto, a number of devices, or a list")]
    | Sequence[int],
    "strategy": str | Part,
    "num_nodes": Annotated[int, Range(1, 10**5)],
}


def check(place: str, node: Mapping[str, Any]) -> None:
    """Refuse what a training has no use for.

    Args:
        place: "trainer", or "stages.NAME.trainer".
        node: what it holds, resolved.

    Raises:
        ValueError: with the setting, and its values, the nearest name, or where the same is set.
    """
    for name, value in node.items():
        if name in ELSEWHERE:
            raise ValueError(f"{place}.{name} cannot be set here: {ELSEWHERE[name]}")
        if name not in SETTABLE and name != "_target_":
            raise ValueError(f"no setting {name!r} in {place}{offer(str(name), SETTABLE)}")
        try:
            fit(value, VALUES.get(name, Any))
        except Unfit as error:
            raise ValueError(f"{place}.{name}={short(value)}: {error}") from error


def trainer_of(
    stage: str, own: Mapping[str, Any], common: Mapping[str, Any], *, words: Sequence[str]
) -> dict[str, Any]:
    """The one trainer node of a stage.

    A word typed for the stage wins, then what `trainer` says for all, then what the stage says itself. What `trainer`
    leaves to the stages ("stage") and no stage says is Lightning's own default.

    Args:
        stage: its name.
        own: its trainer settings.
        common: the `trainer` of all.
        words: the typed overrides.
    """
    keys = [word.lstrip("+~").partition("=")[0] for word in words]
    chosen = dict(common)
    for name, value in own.items():
        place = f"stages.{stage}.trainer.{name}"
        by_stage = any(place == key or place.startswith(f"{key}.") for key in keys)
        for_all = f"trainer.{name}" in keys or _says(common, name)
        if name not in common or by_stage or not for_all:
            chosen[name] = value
    for name in ("fast_dev_run", "overfit_batches"):  # 1.0 would be all batches to Lightning
        if isinstance(chosen.get(name), float):
            chosen[name] = int(chosen[name])
    return {name: value for name, value in chosen.items() if value != STAGE}


def counted(chosen: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stage's trainer node enters its identity: what can change the weights, defaults left out.

    Args:
        chosen: the stage's trainer node.
        own: what the stage says itself, defaults included.
    """
    return {name: chosen[name] for name in COUNTED if name in chosen and (name in own or chosen[name] != COUNTED[name])}


def debug_of(chosen: Mapping[str, Any]) -> str:
    """The debug settings of a trainer node as words, "trainer.fast_dev_run=True"; empty for a whole training."""
    on = {name: chosen[name] for name, off in DEBUG.items() if chosen.get(name, off) not in (off, None)}
    return ", ".join(f"trainer.{name}={str(value).lower()}" for name, value in on.items())


def _says(common: Mapping[str, Any], name: str) -> bool:
    """Whether `trainer` itself says something of a counted argument."""
    if name in BY_STAGE:
        return common.get(name, STAGE) != STAGE
    return name in COUNTED and common.get(name, COUNTED[name]) != COUNTED[name]
