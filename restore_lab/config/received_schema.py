"""The schema of what a received folder may set (received.py): each key with its kind, each group, what never counts.

A setting that weights need in order to fit, or with which their maker sampled, is added here; a path, a hub id, a
cache, a class or an output never is (tests/unit/test_received.py). Numbers have an upper bound, so that no manifest
asks for memory or hours without end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from restore_lab.config.kinds import Most, Range, Share


@dataclass(frozen=True)
class Line:
    """Text in one line, without control characters."""

    def holds(self, value: str) -> bool:
        """Whether all of it can be shown."""
        return value.isprintable()

    def __str__(self) -> str:
        return "in one line"


def whole(low: int, high: int) -> Any:
    """A whole number between bounds."""
    return Annotated[int, Range(low, high)]


Text = Annotated[str, Line()]  # words for a text encoder
Channels = whole(0, 8192) | None
Few = whole(0, 256)
Amount = Annotated[float, Range(-1, 1000)] | None
Widths = Annotated[Sequence[whole(1, 8192)], Most(16)] | None  # pyright: ignore[reportInvalidTypeForm]
Several = Annotated[Sequence[whole(0, 256)], Most(32)]  # pyright: ignore[reportInvalidTypeForm]
Side = whole(0, 16384) | None
DType = Literal["float32", "float16", "bfloat16"] | None
Mode = Literal["reference", "residual", "off"]
Frozen = Literal["stream", "lora", "hint", "trunk", "fusion", "encoder"]
Encoders = Literal["text_encoder", "text_encoder_2", "text_encoder_3"]

SETTINGS: Mapping[str, Any] = {
    # the network that the weights have to fit
    "adaptor.text": Literal["instruction", "semantic", "none", "removed"],
    "adaptor.hint_widths": Widths,
    "adaptor.hint_channels": Channels,
    "adaptor.hint_signed": bool,
    "adaptor.lq_latent": bool,
    "adaptor.every": whole(1, 256),
    "adaptor.lq_kernel": Few,
    "adaptor.kernels": Several,
    "adaptor.encoder.widths": Widths,
    "adaptor.encoder.out": Channels,
    "adaptor.encoder.embedding": Channels,
    "adaptor.fusion.hidden": Channels,
    "adaptor.fusion.attention": bool,
    "adaptor.fusion.decoder": bool,
    "adaptor.lora.rank": whole(1, 1024),
    "adaptor.lora.alpha": Amount,
    "adaptor.lora.on": bool,
    "adaptor.lora.targets": Literal["self_attention", "previewer"],
    "adaptor.stream.hidden": Channels,
    "adaptor.stream.depth": Few,
    "adaptor.stream.heads": Few,
    "adaptor.stream.dim_head": Few,
    "adaptor.stream.queries": whole(1, 1024),
    "adaptor.stream.adaln_on": Literal["kv", "context"],
    "adaptor.stream.scale": Amount,
    "adaptor.trunk.depth": Literal["whole", "half"] | Few | Several,
    "adaptor.trunk.middle": Literal["frozen", "trainable"],
    "adaptor.trunk.feed": Literal["concat", "add", "spatial"],
    "adaptor_reference.kind": Literal["lq", "hq", "mean", "preview"],
    **dict.fromkeys(("adaptor_reference.dcp", "adaptor_reference.prompt", "adaptor_reference.fresh_noise"), bool),
    "adaptor_reference.blended": Share,
    "decoder.blocks": Few,
    "decoder.embedding": Channels,
    "decoder.dense": Few,
    "decoder.w": Share,
    "module.frozen": Annotated[Sequence[Frozen], Most(6)],
    "module.weights_dtype": DType,
    "module.degradation_prompt": bool,
    **dict.fromkeys(("module.degradation_weight", "module.reconstruction_weight"), Amount),
    **dict.fromkeys(("module.processor.hidden", "module.processor.degradation", "module.processor.kinds"), Channels),
    "module.processor.semantic": bool,
    "module.control_decoder.widths": Widths,
    "module.lq_targets.share": Share,
    **dict.fromkeys(("backbone.dtype", "backbone.text_dtype", "backbone.codec_dtype"), DType),
    "backbone.cache_text": bool,
    "backbone.t5_length": whole(0, 512),
    "backbone.without": Annotated[Sequence[Encoders], Most(3)],
    # the numbers of which these are made, where a size names them
    "hint_widths": Widths,
    "hint_channels": Channels,
    "hint_lq_latent": bool,
    "adapter_every": whole(1, 256),
    "lora_rank": whole(1, 1024),
    "lora_alpha": Amount,
    "control_encoder.widths": Widths,
    "control_encoder.out": Channels,
    "resampler.hidden": Channels,
    **dict.fromkeys(("resampler.depth", "resampler.heads", "resampler.dim_head"), Few),
    "resampler.queries": whole(1, 1024),
    "reference_blended": Share,
    # what it was trained to say, and with which words
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
    # how its maker sampled
    "sampler.steps": whole(1, 1000),
    "sampler.start": Annotated[float, Range(0, 1, above=True)],
    **dict.fromkeys(("sampler.s_churn", "sampler.s_noise", "sampler.s_tmin", "sampler.s_tmax"), Amount),
    "sampler.timestep_spacing": Literal["sgm", "leading", "linspace", "trailing"],
    "sampler.scheduler.timestep_spacing": Literal["solver", "leading", "linspace", "trailing"],
    "sampler.scheduler.flow_spacing": Literal["own", "linspace", "trailing"],
    **dict.fromkeys(("sampler.steps_offset", "sampler.scheduler.steps_offset"), Few),
    "sampler.scheduler.original_steps": whole(1, 1000),
    "sampler.guidance.form": Literal["standard", "paper"],
    **dict.fromkeys(("sampler.guidance.scale", "sampler.guidance.scale.start", "sampler.guidance.scale.end"), Amount),
    **dict.fromkeys(("sampler.strength.start", "sampler.strength.end"), Amount),
    "sampler.strength.share": Share,
    **dict.fromkeys(("sampler.fidelity.tau_r", "sampler.fidelity.s_tmin", "sampler.fidelity.weight"), Amount),
    "sampler.fidelity.recode": bool,
    "sampler.fidelity.mode": Mode,
    "sampler.fidelity.on": Literal["latent", "x0"],
    "sampler.fidelity.threshold": Annotated[float, Range(0, 1, below=True)],
    "sampler.fidelity.preview_from": Share,
    "adares_mode": Mode,
    "sampler.colour.levels": whole(1, 16),
    **dict.fromkeys(("sampler.tiling.tile", "sampler.tiling.overlap"), Side),
    "sampler.tiling.batch": whole(1, 64),
    "sampler.tiling.sigma": Share,
    "sampler.tiling.words": Literal["image", "tile"],
}
ABSENT_AT_TIMES = frozenset(key for key in SETTINGS if "." not in key) | {"resampler", "control_encoder"}
GROUPS = frozenset(
    ("method", "scale", "variant", "experiment", "backbone", "objective", "lq_encoder", "decoder")
    + ("adaptor", "adaptor/fusion", "adaptor/lora", "adaptor/stream", "adaptor/reference")
    + ("prompt", "prompt/semantic", "prompt/instruction", "prompt/quality", "prompt/visual", "prompt/dropout")
    + ("sampler", "sampler/init", "sampler/guidance", "sampler/fidelity", "sampler/strength", "sampler/colour")
    + ("sampler/tiling",)
)
# Options that read a file or start a captioner; a decoder that is fetched, which no weights need in order to fit.
NOT_TAKEN = frozenset((("prompt/semantic", "vlm"), ("prompt/semantic", "file"), ("decoder", "consistency")))
# An experiment that says where to write is an evaluation's, not what trained weights.
WRITES = ("run_dir", "output", "output_dir", "inputs_dir", "runs_dir", "hydra", "table")
PARTS = frozenset(group.partition("/")[0] for group in GROUPS) | {"adaptor_reference", "module"}
