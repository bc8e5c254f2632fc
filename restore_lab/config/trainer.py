"""The arguments of Lightning's Trainer by role, and the trainer node of a stage.

`trainer` in the config applies to all stages, `stages.NAME.trainer` to one. `IDENTITY_ARGUMENTS` can change the weights
and enter an artefact's identity; `RUNTIME_ARGUMENTS` cannot; `DEBUG_ARGUMENTS` run part of a training, which leaves no
artefact; `OTHER_SETTINGS` have a setting of their own. tests/unit/training/test_trainer.py compares the four with
Lightning's signature. Without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from restore_lab.config.kinds import (
    CountOrZero,
    Mismatch,
    NonNegative,
    Part,
    Pattern,
    Range,
    Steps,
    Value,
    coerce,
)
from restore_lab.config.settings import Precision
from restore_lab.config.suggest import offer

STAGE = "stage"  # a value in `trainer`: each stage uses its own
IDENTITY_ARGUMENTS: Mapping[str, Value] = {  # with Lightning's defaults
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
BY_STAGE = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")  # set by every stage
ENDS = ("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs")
VALIDATION = ("val_check_interval", "check_val_every_n_epoch")  # in the identity if a callback may act on the result
RUNTIME_ARGUMENTS = (
    *("accelerator", "devices", "num_nodes", "strategy", "benchmark", "deterministic", "inference_mode"),
    *("detect_anomaly", "profiler", "num_sanity_val_steps", "log_every_n_steps", *VALIDATION),
    *("enable_progress_bar", "enable_model_summary", "enable_autolog_hparams"),
)
DEBUG_ARGUMENTS: Mapping[str, Value] = {  # with the values that disable them
    "fast_dev_run": False,
    "overfit_batches": 0,
    "limit_train_batches": None,
    "limit_val_batches": None,
}
OTHER_SETTINGS = {
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
SETTABLE = (*IDENTITY_ARGUMENTS, *RUNTIME_ARGUMENTS, *DEBUG_ARGUMENTS)

Batches = Annotated[int, Range(0, 10**9, unit="batches")]
Epochs = Annotated[int, Range(1, 10**9, unit="passes over the training images")]


class TrainerArguments(TypedDict):
    """The kinds of `SETTABLE`; Lightning itself checks a strategy."""

    max_steps: Steps | Literal["stage"] | None
    min_steps: Steps | None
    max_epochs: Epochs | None
    min_epochs: Epochs | None
    check_val_every_n_epoch: Epochs | None
    max_time: Annotated[str, Pattern(r"\d{2}:\d{2}:\d{2}:\d{2}", "days, hours, minutes, seconds: 00:01:30:00")] | None
    precision: Precision | Literal["stage"] | None
    accumulate_grad_batches: Annotated[int, Range(1, 2**16, unit="batches in a step")] | Literal["stage"]
    gradient_clip_val: NonNegative | Literal["stage"] | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    reload_dataloaders_every_n_epochs: CountOrZero
    log_every_n_steps: CountOrZero
    fast_dev_run: bool | Batches
    overfit_batches: Batches
    limit_train_batches: Annotated[int, Range(1, 10**9, unit="batches")] | None
    limit_val_batches: Annotated[float, Range(0, 10**9, unit="batches, or a share of them")] | None
    val_check_interval: Annotated[int, Range(1, 10**9, unit="batches")]
    num_sanity_val_steps: Annotated[int, Range(-1, 10**9, unit="batches")]
    profiler: Literal["simple", "advanced"] | Mapping[str, Any] | None
    deterministic: bool | Literal["warn"] | None
    benchmark: bool | None
    sync_batchnorm: bool
    inference_mode: bool
    detect_anomaly: bool
    enable_autolog_hparams: bool
    enable_progress_bar: bool
    enable_model_summary: bool
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
    devices: (
        Annotated[str, Pattern(r"auto|-1|[1-9]\d{0,3}(,\d{1,4})*", "auto, a number of devices, or a list")]
        | Sequence[int]
    )
    strategy: str | Part
    num_nodes: Annotated[int, Range(1, 10**5)]


def check_trainer_arguments(place: str, node: Mapping[str, Value]) -> None:
    """Refuse unknown, invalid and unsupported arguments.

    Args:
        place: "trainer", or "stages.NAME.trainer".
        node: its resolved content.

    Raises:
        ValueError: with the setting and its valid values, the nearest name, or the setting to use instead.
    """
    kinds = get_type_hints(TrainerArguments, include_extras=True)
    for name, value in node.items():
        if name in OTHER_SETTINGS:
            raise ValueError(f"{place}.{name} cannot be set here: {OTHER_SETTINGS[name]}")
        if name not in SETTABLE and name != "_target_":
            raise ValueError(f"no setting {name!r} in {place}{offer(str(name), SETTABLE)}")
        try:
            coerce(value, kinds.get(name, Any))
        except Mismatch as error:
            raise error.at(f"{place}.{name}", value) from error


def trainer_of(
    stage: str, own: Mapping[str, Value], common: Mapping[str, Value], *, words: Sequence[str]
) -> dict[str, Value]:
    """The merged trainer node of a stage.

    An override of the stage's node wins, then `trainer`, then the stage's own config. A value that `trainer` leaves to
    the stages ("stage") and the stage does not set is Lightning's default.

    Args:
        stage: its name.
        own: the stage's trainer settings.
        common: the `trainer` node of all stages.
        words: the overrides of the command line.
    """
    keys = [word.lstrip("+~").partition("=")[0] for word in words]
    chosen = dict(common)
    for name, value in own.items():
        place = f"stages.{stage}.trainer.{name}"
        by_stage = any(place == key or place.startswith(f"{key}.") for key in keys)
        for_all = f"trainer.{name}" in keys or _is_set(common, name)
        if name not in common or by_stage or not for_all:
            chosen[name] = value
    for name in ("fast_dev_run", "overfit_batches"):  # Lightning reads 1.0 as all batches
        if isinstance(chosen.get(name), float):
            chosen[name] = int(chosen[name])
    return {name: value for name, value in chosen.items() if value != STAGE}


def identity_arguments(chosen: Mapping[str, Value], own: Mapping[str, Value]) -> dict[str, Value]:
    """The arguments of a stage's trainer node that enter its identity, without defaults.

    Args:
        chosen: the stage's trainer node.
        own: the stage's own settings, defaults included.
    """
    return {
        name: chosen[name]
        for name in IDENTITY_ARGUMENTS
        if name in chosen and (name in own or chosen[name] != IDENTITY_ARGUMENTS[name])
    }


def debug_of(chosen: Mapping[str, Value]) -> str:
    """The debug settings of a trainer node as text, "trainer.fast_dev_run=True"; "" for a full training."""
    on = {name: chosen[name] for name, off in DEBUG_ARGUMENTS.items() if chosen.get(name, off) not in (off, None)}
    return ", ".join(f"trainer.{name}={str(value).lower()}" for name, value in on.items())


def _is_set(common: Mapping[str, Value], name: str) -> bool:
    """Whether `trainer` itself sets an argument."""
    if name in BY_STAGE:
        return common.get(name, STAGE) != STAGE
    return name in IDENTITY_ARGUMENTS and common.get(name, IDENTITY_ARGUMENTS[name]) != IDENTITY_ARGUMENTS[name]
