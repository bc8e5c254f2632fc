"""The kinds of a verb's own settings, by name; after the settings of all verbs come the exceptions of each.

A part's arguments have theirs in the constructor's annotations, and so has a setting that a config hands to a part's
argument, such as `lora_rank` (arguments.py).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict, get_type_hints

from restore_lab.config.kinds import (
    BatchSize,
    Count,
    CountOrZero,
    Decay,
    DType,
    Kind,
    NonNegative,
    Part,
    Pattern,
    Pixels,
    Positive,
    Quality,
    Range,
    Scale,
    Seed,
    Steps,
    Workers,
)

Texts = Sequence[str]
Processes = Annotated[int, Range(1, 1024, unit="processes")]
RestorationsPerImage = Annotated[int, Range(1, 1000)]
Repeats = Annotated[int, Range(1, 100, unit="runs of everything")]
Enlargement = Annotated[float, Range(0, 64, above=True)]
Device = Annotated[str, Pattern(r"auto|cpu|mps|cuda(:\d{1,3})?", "auto, cpu, cuda, cuda:1 or mps")]
Precision = Annotated[
    str,
    Pattern(
        r"(16|32|64|bf16)(-true)?|(bf)?16-mixed|transformer-engine(-float16)?",
        "32-true, bf16-mixed, 16-mixed, bf16-true, 16-true or 64-true",
    ),
]


class StageNode(TypedDict):
    """A stage of training, `stages.NAME`."""

    module: Part
    optimisation: Part
    datamodule: Part
    trainer: Mapping[str, Any]
    weights: NotRequired[str | None]
    ema: NotRequired[Decay | None]
    ignores: NotRequired[Texts]


class RunNode(TypedDict):
    """The run's metadata for a logger, `run`."""

    id: str | None
    kind: str | None
    name: str | None
    group: str | None
    tags: Texts | None


class KnobNode(TypedDict):
    """A slider of the demo, one of `knobs`."""

    says: str
    settings: Texts
    low: float
    high: float
    step: Positive
    idle: NotRequired[float]
    choices: NotRequired[Texts]
    methods: NotRequired[Texts]


class _Training(TypedDict):
    max_steps: Steps
    encoder_steps: Steps
    decoder_steps: Steps
    dcp_steps: Steps
    previewer_steps: Steps
    checkpoint_every: Steps
    log_every: Steps
    batch_size: BatchSize
    workers: Workers
    stage: str
    stages: Mapping[str, Mapping[str, Any] | None]  # other verbs have only an experiment's settings of them
    run: RunNode
    trainer: Part
    optimisation: Part
    speed: Part
    logger: Part | Mapping[str, Part | None]
    callbacks: Sequence[Part] | Mapping[str, Part | None] | None
    ema: Decay | None
    precision: Precision
    optimized_metric: str | None
    keep_state: bool


class _Images(TypedDict):
    data: Part
    eval_data: Part
    datamodule: Part
    pairing: Part
    degradation: Part | None
    eval_degradation: Part | None
    crop: Pixels | None
    min_size: Pixels | None
    work_size: Pixels | None
    samples: Count | None
    count: Count
    shard_size: Count
    max_pixels: Count
    max_lq_psnr: float | None
    pictures: CountOrZero
    upscale: Enlargement
    quality: Quality
    flip: bool
    recursive: bool
    compare: bool
    keep_images: bool


class _Parts(TypedDict):
    module: Part
    method: Part
    backbone: Part
    adaptor: Part
    adaptor_reference: Part
    sampler: Part
    objective: Part
    prompt: Part
    lq_encoder: Part
    decoder: Part
    memory: Part
    protocol: Part
    metrics: Part
    resampler: Mapping[str, Any]
    control_encoder: Mapping[str, Any]
    previewer_guidance: Mapping[str, Any]
    makes: Mapping[str, Texts]
    caption: str | None
    instruction: str | None
    negative: str | None
    prompt_sets: Mapping[str, Mapping[str, Any] | None] | None
    ordered: Texts | None


class _Places(TypedDict):
    input: str | None
    words: str | None
    weights: str | None
    restored: str | None
    reference: str | None
    system: str | None
    output: str | None
    run_dir: str | None
    inputs_dir: str | None
    systems_dir: str | None
    weights_dir: str | None
    trace: str | None
    datasets_dir: str | None
    shipped: str | None
    extend: str | None
    runs_dir: str
    name: str
    names: str


class _Machine(TypedDict):
    seed: Seed
    seeds: RestorationsPerImage
    device: Device
    devices: Processes
    dtype: DType | None
    format: Literal["text", "json"]
    progress: bool
    again: bool
    follow: bool
    trust: bool
    explain: bool
    flops: bool


class _Tables(TypedDict):
    at_scale: Scale
    overrides: Texts
    plan: bool
    all: bool
    dry_run: bool
    project: str | None
    entity: str | None
    job: str | None
    worst: CountOrZero


class _Caption(TypedDict):
    data: Part | None
    prompt: Mapping[str, Part]


class _Dashboard(TypedDict):
    table: str | None
    seeds: Repeats


class _Data(TypedDict):
    make: Literal["negatives", "pack", "cache", "photographs"]
    packages: str | None
    images: Literal["png", "webp", "jpg"]
    output: str
    negative: str


class _Demo(TypedDict):
    host: str
    port: Annotated[int, Range(0, 2**16 - 1)]
    max_upload_mb: Count
    max_files: Count
    knobs: Sequence[KnobNode]


class _Describe(TypedDict):
    size: Pixels


class _Diff(TypedDict):
    sides: Texts | None
    a: str
    b: str
    share: Annotated[float, Range(0, 1, below=True)]
    tolerance: NonNegative


class _Doctor(TypedDict):
    size: Pixels
    metrics: Part | None


class _Evaluate(TypedDict):
    records: Texts | None
    unmatched: Literal["error", "skip"]


class _Export(TypedDict):
    weights: str
    output: str


class _Import(TypedDict):
    files: str | Texts


class _Report(TypedDict):
    seeds: Repeats
    table: str | None
    records: Texts | None
    images: CountOrZero
    output: str


class _Restore(TypedDict):
    size: Pixels | tuple[Pixels, Pixels] | None
    format: Literal["png", "jpeg", "webp", "tiff", "same"]
    input: str
    output: str
    instruction: str
    max_pixels: Annotated[int, Range(1, 10**12)]


class _Table(TypedDict):
    seeds: Repeats
    table: str | Texts | None
    make: bool
    format: Literal["markdown", "latex", "csv", "html", "json", "claims"]


class _Train(TypedDict):
    stages: Mapping[str, StageNode | None]
    eval_data: Part | None


_OF_EVERY_VERB = (_Training, _Images, _Parts, _Places, _Machine, _Tables)
_OF_VERB = {
    "caption": _Caption,
    "dashboard": _Dashboard,
    "data": _Data,
    "demo": _Demo,
    "describe": _Describe,
    "diff": _Diff,
    "doctor": _Doctor,
    "evaluate": _Evaluate,
    "export": _Export,
    "import": _Import,
    "report": _Report,
    "restore": _Restore,
    "table": _Table,
    "train": _Train,
}


@functools.cache
def verb_settings(verb: str) -> Mapping[str, Kind]:
    """The annotation of each setting of a verb; empty for a verb of another package."""
    if verb not in _OF_VERB:
        return {}
    groups = (*_OF_EVERY_VERB, _OF_VERB[verb])
    return {name: kind for group in groups for name, kind in get_type_hints(group, include_extras=True).items()}
