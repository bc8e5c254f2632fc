"""The kinds of all settings without a constructor: the verbs' own, and values that parts share.

By dotted key; `OF_VERB` has the exceptions of one verb. Parts' arguments have their kinds in constructor annotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from restore_lab.config.kinds import (
    Count,
    NonNegative,
    Part,
    Pattern,
    Pixels,
    Positive,
    Range,
    Seed,
    Share,
    Steps,
)

Words = Sequence[str]
Batch = Annotated[int, Range(1, 2**16, unit="images")]
Processes = Annotated[int, Range(1, 1024, unit="processes")]
Seeds = Annotated[int, Range(1, 1000)]  # restorations per image
TableSeeds = Annotated[int, Range(1, 100, unit="runs of everything")]
CountOrZero = Annotated[int, Range(0, 10**6)]
Enlarge = Annotated[float, Range(0, 64, above=True)]
DType = Literal["float32", "float16", "bfloat16"]
Device = Annotated[str, Pattern(r"auto|cpu|mps|cuda(:\d{1,3})?", "auto, cpu, cuda, cuda:1 or mps")]
Precision = Annotated[
    str,
    Pattern(
        r"(16|32|64|bf16)(-true)?|(bf)?16-mixed|transformer-engine(-float16)?",
        "32-true, bf16-mixed, 16-mixed, bf16-true, 16-true or 64-true",
    ),
]


class Stage(TypedDict):
    """A stage of training, `stages.NAME`."""

    module: Part
    optimisation: Part
    datamodule: Part
    trainer: Mapping[str, Any]
    weights: NotRequired[str | None]
    ema: NotRequired[Annotated[float, Range(0, 1, below=True)] | None]
    ignores: NotRequired[Words]


class Run(TypedDict):
    """The run's metadata for a logger, `run`."""

    id: str | None
    kind: str | None
    name: str | None
    group: str | None
    tags: Words | None


class Knob(TypedDict):
    """A slider of the demo, one of `knobs`."""

    says: str
    settings: Words
    low: float
    high: float
    step: Positive
    idle: NotRequired[float]
    choices: NotRequired[Words]
    methods: NotRequired[Words]


class Bounds(TypedDict):
    """The bounds of a sampled range."""

    min: NonNegative
    max: NonNegative


TRAINING: Mapping[str, Any] = {
    "max_steps": Steps,
    **dict.fromkeys(("encoder_steps", "decoder_steps", "dcp_steps", "previewer_steps"), Steps),
    **dict.fromkeys(("batch_size", "eval_batch_size", "first_batch_size", "decoder_batch_size"), Batch),
    **dict.fromkeys(("checkpoint_every", "log_every"), Steps),
    "stage": str,
    "stages": Mapping[str, Mapping[str, Any] | None],  # other verbs have only an experiment's settings of them
    "run": Run,
    "trainer": Part,
    "logger": Part | Mapping[str, Part | None],
    "callbacks": Sequence[Part] | Mapping[str, Part | None] | None,
    "optimisation": Part,
    "speed": Part,
    "compile": bool,
    "workers": Annotated[int, Range(0, 1024, unit="processes that read data")],
    "ema": Annotated[float, Range(0, 1, below=True, unit="what the average keeps in a step")] | None,
    "precision": Precision,
    "optimized_metric": str | None,
    **dict.fromkeys(("adversarial_from", "warmup_steps"), Annotated[int, Range(0, 10**9)]),
    "solver_steps": Annotated[int, Range(1, 1000)],
    "previewer_guidance": Bounds,
}
IMAGES: Mapping[str, Any] = {
    **dict.fromkeys(("data", "first_data", "eval_data"), Part),
    **dict.fromkeys(("degradation", "eval_degradation"), Part | None),
    "datamodule": Part,
    "pairing": Part,
    **dict.fromkeys(("crop", "eval_crop", "min_size", "eval_resize", "photos_size", "work_size"), Pixels | None),
    **dict.fromkeys(("eval_crops", "eval_first", "samples"), Count | None),
    "photos_crops": CountOrZero,
    **dict.fromkeys(("count", "shard_size", "max_pixels"), Count),
    "max_lq_psnr": float | None,
    "esrgan_scale": Annotated[float, Range(1, 64)],
    "pictures": CountOrZero,
    "upscale": Enlarge,
    "quality": Annotated[int, Range(1, 100)],
    **dict.fromkeys(("flip", "recursive", "compare", "keep_images"), bool),
}
PARTS: Mapping[str, Any] = {
    **dict.fromkeys(("module", "method", "backbone", "adaptor", "adaptor_reference", "sampler", "objective"), Part),
    "prompt": Part,
    **dict.fromkeys(("lq_encoder", "decoder", "memory", "protocol", "metrics"), Part),
    "hint_widths": Sequence[Count] | None,
    "hint_channels": Annotated[int, Range(0, 2**16)] | None,
    "hint_lq_latent": bool,
    "adapter_every": Count,
    "lora_rank": Count,
    "lora_alpha": Positive,
    "adares_mode": str,
    "reference_blended": Share,
    **dict.fromkeys(("resampler", "control_encoder"), Mapping[str, Any]),
    "makes": Mapping[str, Words],
    **dict.fromkeys(("caption", "instruction", "negative"), str | None),
    "variants": Mapping[str, Mapping[str, Any] | None] | None,
    "ordered": Words | None,
}
PLACES: Mapping[str, Any] = {
    **dict.fromkeys(("input", "words", "weights", "encoder_weights", "restored", "reference", "system"), str | None),
    **dict.fromkeys(("output", "run_dir", "inputs_dir", "systems_dir", "weights_dir", "trace"), str | None),
    **dict.fromkeys(("datasets_dir", "dino_path", "clip_path", "shipped"), str | None),
    "extend": str | None,
    "runs_dir": str,
    "name": str,
    "names": str,
}
MACHINE: Mapping[str, Any] = {
    "seed": Seed,
    "seeds": Seeds,
    "device": Device,
    "devices": Processes,
    "dtype": DType | None,
    **dict.fromkeys(("progress", "again", "follow", "trust", "explain", "flops", "keep_state"), bool),
    "format": Literal["text", "json"],
}
TABLES: Mapping[str, Any] = {
    "at_scale": Literal["tiny", "full"],
    "overrides": Words,
    **dict.fromkeys(("plan", "all", "dry_run"), bool),
    **dict.fromkeys(("project", "entity", "job"), str | None),
    "worst": CountOrZero,
}
SETTINGS: Mapping[str, Any] = {**TRAINING, **IMAGES, **PARTS, **PLACES, **MACHINE, **TABLES}

OF_VERB: Mapping[str, Mapping[str, Any]] = {
    "caption": {"data": Part | None, "prompt": Mapping[str, Part]},
    "dashboard": {"table": str | None, "seeds": TableSeeds},
    "data": {
        "make": Literal["negatives", "pack", "cache", "photographs"],
        "packages": str | None,
        "images": Literal["png", "webp", "jpg"],
        "output": str,
        "negative": str,
    },
    "demo": {
        "host": str,
        "port": Annotated[int, Range(0, 2**16 - 1)],
        **dict.fromkeys(("max_upload_mb", "max_files"), Count),
        "knobs": Sequence[Knob],
    },
    "describe": {"size": Pixels},
    "diff": {
        "sides": Words | None,
        **dict.fromkeys(("a", "b"), str),
        "share": Share,
        "tolerance": NonNegative,
    },
    "doctor": {"size": Pixels, "metrics": Part | None},
    "evaluate": {"records": Words | None, "unmatched": Literal["error", "skip"]},
    "export": {"weights": str, "output": str},
    "import": {"files": str | Words},
    "report": {
        "seeds": TableSeeds,
        "table": str | None,
        "records": Words | None,
        "images": Annotated[int, Range(0, 10**6)],
        "output": str,
    },
    "restore": {
        "size": Pixels | tuple[Pixels, Pixels] | None,
        "format": Literal["png", "jpeg", "webp", "tiff", "same"],
        "input": str,
        "output": str,
        "instruction": str,
        "max_pixels": Annotated[int, Range(1, 10**12)],
    },
    "table": {
        "seeds": TableSeeds,
        "table": str | Words | None,
        "make": bool,
        "format": Literal["markdown", "latex", "csv", "html", "json", "claims"],
    },
    "train": {"stages": Mapping[str, Stage | None], "eval_data": Part | None},
}


def settings_of(verb: str) -> Mapping[str, Any]:
    """The annotation of each setting of a verb; empty for a verb of another package."""
    return {**SETTINGS, **OF_VERB[verb]} if verb in OF_VERB else {}
