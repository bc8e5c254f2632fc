"""The allowlist of overrides in an untrusted manifest: keys with their kinds, groups, and exclusions.

Settings that the weights' network needs, and its author's sampling settings, are added here; paths, hub ids, caches,
classes and outputs never are (tests/unit/config/test_manifest_overrides.py). Numbers have an upper bound, which bounds
memory and time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from restore_lab.config.kinds import DType, Kind, MaxLength, Range, Share


@dataclass(frozen=True)
class SingleLine:
    """Single-line text without control characters."""

    def holds(self, value: str) -> bool:
        """Whether all characters are printable."""
        return value.isprintable()

    def __str__(self) -> str:
        return "in one line"


def integer(low: int, high: int) -> Kind:
    """An integer between bounds."""
    return Annotated[int, Range(low, high)]


Text = Annotated[str, SingleLine()]  # for a text encoder
Channels = integer(0, 8192) | None
SmallCount = Annotated[int, Range(0, 256)]
Strength = Annotated[float, Range(-1, 1000)] | None
Width = Annotated[int, Range(1, 8192)]
Widths = Annotated[Sequence[Width], MaxLength(16)] | None
SmallCounts = Annotated[Sequence[SmallCount], MaxLength(32)]
Side = integer(0, 16384) | None
Mode = Literal["reference", "residual", "off"]
FreezablePart = Literal["stream", "lora", "hint", "trunk", "fusion", "encoder"]
Encoders = Literal["text_encoder", "text_encoder_2", "text_encoder_3"]

SETTINGS: Mapping[str, Kind] = {
    # the weights' network
    "adaptor.text": Literal["instruction", "semantic", "none", "removed"],
    "adaptor.hint_widths": Widths,
    "adaptor.hint_channels": Channels,
    "adaptor.hint_signed": bool,
    "adaptor.lq_latent": bool,
    "adaptor.every": integer(1, 256),
    "adaptor.lq_kernel": SmallCount,
    "adaptor.kernels": SmallCounts,
    "adaptor.encoder.widths": Widths,
    "adaptor.encoder.out": Channels,
    "adaptor.encoder.embedding": Channels,
    "adaptor.fusion.hidden": Channels,
    "adaptor.fusion.attention": bool,
    "adaptor.fusion.decoder": bool,
    "adaptor.lora.rank": integer(1, 1024),
    "adaptor.lora.alpha": Strength,
    "adaptor.lora.on": bool,
    "adaptor.lora.targets": Literal["self_attention", "previewer"],
    "adaptor.stream.hidden": Channels,
    "adaptor.stream.depth": SmallCount,
    "adaptor.stream.heads": SmallCount,
    "adaptor.stream.dim_head": SmallCount,
    "adaptor.stream.queries": integer(1, 1024),
    "adaptor.stream.adaln_on": Literal["kv", "context"],
    "adaptor.stream.scale": Strength,
    "adaptor.trunk.depth": Literal["whole", "half"] | SmallCount | SmallCounts,
    "adaptor.trunk.middle": Literal["frozen", "trainable"],
    "adaptor.trunk.feed": Literal["concat", "add", "spatial"],
    "adaptor_reference.kind": Literal["lq", "hq", "mean", "preview"],
    **dict.fromkeys(("adaptor_reference.dcp", "adaptor_reference.prompt", "adaptor_reference.fresh_noise"), bool),
    "adaptor_reference.blended": Share,
    "decoder.blocks": SmallCount,
    "decoder.embedding": Channels,
    "decoder.dense": SmallCount,
    "decoder.w": Share,
    "module.frozen": Annotated[Sequence[FreezablePart], MaxLength(6)],
    "module.weights_dtype": DType | None,
    "module.degradation_prompt": bool,
    **dict.fromkeys(("module.degradation_weight", "module.reconstruction_weight"), Strength),
    **dict.fromkeys(("module.processor.hidden", "module.processor.degradation", "module.processor.kinds"), Channels),
    "module.processor.semantic": bool,
    "module.control_decoder.widths": Widths,
    "module.lq_targets.share": Share,
    **dict.fromkeys(("backbone.dtype", "backbone.text_dtype", "backbone.codec_dtype"), DType | None),
    "backbone.cache_text": bool,
    "backbone.t5_length": integer(0, 512),
    "backbone.without": Annotated[Sequence[Encoders], MaxLength(3)],
    # size settings that these interpolate
    "hint_widths": Widths,
    "hint_channels": Channels,
    "hint_lq_latent": bool,
    "adapter_every": integer(1, 256),
    "lora_rank": integer(1, 1024),
    "lora_alpha": Strength,
    "control_encoder.widths": Widths,
    "control_encoder.out": Channels,
    "resampler.hidden": Channels,
    **dict.fromkeys(("resampler.depth", "resampler.heads", "resampler.dim_head"), SmallCount),
    "resampler.queries": integer(1, 1024),
    "reference_blended": Share,
    # prompts and prediction type of its training
    "objective.target": Literal["epsilon", "v_prediction", "sample", "flow", "codec", "image", "printed"] | None,
    "objective.density": Literal["auto", "uniform", "logit_normal"],
    **dict.fromkeys(("objective.t_min", "objective.t_max"), Share),
    **{f"prompt.dropout.{slot}": Share for slot in ("semantic", "instruction", "together", "visual")},
    "prompt.positive": Text,
    "prompt.negative": Text,
    "prompt.semantic.text": Text,
    "prompt.instruction.text": Text,
    "prompt.instruction.unknown": Text,
    "prompt.instruction.values": Share,
    # its author's sampling settings
    "sampler.steps": integer(1, 1000),
    "sampler.start": Annotated[float, Range(0, 1, above=True)],
    **dict.fromkeys(("sampler.s_churn", "sampler.s_noise", "sampler.s_tmin", "sampler.s_tmax"), Strength),
    "sampler.timestep_spacing": Literal["sgm", "leading", "linspace", "trailing"],
    "sampler.scheduler.timestep_spacing": Literal["solver", "leading", "linspace", "trailing"],
    "sampler.scheduler.flow_spacing": Literal["own", "linspace", "trailing"],
    **dict.fromkeys(("sampler.steps_offset", "sampler.scheduler.steps_offset"), SmallCount),
    "sampler.scheduler.original_steps": integer(1, 1000),
    "sampler.guidance.form": Literal["standard", "paper"],
    **dict.fromkeys(("sampler.guidance.scale", "sampler.guidance.scale.start", "sampler.guidance.scale.end"), Strength),
    **dict.fromkeys(("sampler.strength.start", "sampler.strength.end"), Strength),
    "sampler.strength.share": Share,
    **dict.fromkeys(("sampler.fidelity.tau_r", "sampler.fidelity.s_tmin", "sampler.fidelity.weight"), Strength),
    "sampler.fidelity.recode": bool,
    "sampler.fidelity.mode": Mode,
    "sampler.fidelity.on": Literal["latent", "x0"],
    "sampler.fidelity.threshold": Annotated[float, Range(0, 1, below=True)],
    "sampler.fidelity.preview_from": Share,
    "adares_mode": Mode,
    "sampler.colour.levels": integer(1, 16),
    **dict.fromkeys(("sampler.tiling.tile", "sampler.tiling.overlap"), Side),
    "sampler.tiling.batch": integer(1, 64),
    "sampler.tiling.sigma": Share,
    "sampler.tiling.words": Literal["image", "tile"],
}
OPTIONAL_SETTINGS = frozenset(key for key in SETTINGS if "." not in key) | {"resampler", "control_encoder"}
GROUPS = frozenset(
    ("method", "scale", "variant", "experiment", "backbone", "objective", "lq_encoder", "decoder")
    + ("adaptor", "adaptor/fusion", "adaptor/lora", "adaptor/stream", "adaptor/reference")
    + ("prompt", "prompt/semantic", "prompt/instruction", "prompt/quality", "prompt/visual", "prompt/dropout")
    + ("sampler", "sampler/init", "sampler/guidance", "sampler/fidelity", "sampler/strength", "sampler/colour")
    + ("sampler/tiling",)
)
# Options that read a file or start a captioner; a decoder that is downloaded and that no weights depend on.
EXCLUDED_OPTIONS = frozenset((("prompt/semantic", "vlm"), ("prompt/semantic", "file"), ("decoder", "consistency")))
# An experiment with an output path belongs to an evaluation, not to a training.
OUTPUT_SETTINGS = ("run_dir", "output", "output_dir", "inputs_dir", "runs_dir", "hydra", "table")
PART_GROUPS = frozenset(group.partition("/")[0] for group in GROUPS) | {"adaptor_reference", "module"}
