"""The schema of what a received folder may set (received.py): each key with its kind, each group, what never counts.

A setting that weights need in order to fit, or with which their maker sampled, is added here; a path, a hub id, a
cache, a class or an output never is (tests/unit/test_received.py). Numbers have an upper bound, so that no manifest
asks for memory or hours without end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from restore_lab.config.validation import DTYPE, FACTS, SHARE, Choice, Number


@dataclass(frozen=True, kw_only=True)
class Several:
    """A list of numbers."""

    of: Number
    null: bool = False
    most: int = 32

    def wrong(self, value: Any) -> str | None:
        """What is expected in its place; None if it will do."""
        if value is None and self.null:
            return None
        few = isinstance(value, list) and len(value) <= self.most
        return None if few and all(self.of.wrong(one) is None for one in value) else f"expected a list of {self.of}"


@dataclass(frozen=True, kw_only=True)
class Names:
    """A list of some names."""

    of: Choice

    def wrong(self, value: Any) -> str | None:
        """What is expected in its place; None if it will do."""
        few = isinstance(value, list) and len(value) <= len(self.of.names)
        return None if few and all(self.of.wrong(one) is None for one in value) else "expected a list of names"


@dataclass(frozen=True, kw_only=True)
class Text:
    """Words for a text encoder, in one line."""

    def wrong(self, value: Any) -> str | None:
        """What is expected in its place; None if it will do."""
        return None if isinstance(value, str) and value.isprintable() else "expected words in one line"


@dataclass(frozen=True, kw_only=True)
class Either:
    """One of several kinds."""

    of: tuple[Number | Choice | Several, ...]

    def wrong(self, value: Any) -> str | None:
        """What is expected in its place; None if it will do."""
        found = [one.wrong(value) for one in self.of]
        return None if None in found else found[0]


Fact = Number | Choice | Several | Names | Text | Either
FLAG = Choice(names=("true", "false"))
CHANNELS = Number(whole=True, low=0, high=8192, null=True)
FEW = Number(whole=True, low=0, high=256)
AMOUNT = Number(low=-1, high=1000, null=True)
WIDTHS = Several(of=Number(whole=True, low=1, high=8192), null=True, most=16)
SIDE = Number(whole=True, low=0, high=16384, null=True)
DEPTH = Either(of=(Choice(names=("whole", "half")), FEW, Several(of=FEW)))
SPACING = Choice(names=("leading", "linspace", "trailing"))

SETTINGS: Mapping[str, Fact] = {
    # the network that the weights have to fit
    "adaptor.text": Choice(names=("instruction", "semantic", "none", "removed")),
    "adaptor.hint_widths": WIDTHS,
    "adaptor.hint_channels": CHANNELS,
    "adaptor.hint_signed": FLAG,
    "adaptor.lq_latent": FLAG,
    "adaptor.every": Number(whole=True, low=1, high=256),
    "adaptor.lq_kernel": FEW,
    "adaptor.kernels": Several(of=FEW),
    "adaptor.encoder.widths": WIDTHS,
    "adaptor.encoder.out": CHANNELS,
    "adaptor.encoder.embedding": CHANNELS,
    "adaptor.fusion.hidden": CHANNELS,
    "adaptor.fusion.attention": FLAG,
    "adaptor.fusion.decoder": FLAG,
    "adaptor.lora.rank": Number(whole=True, low=1, high=1024),
    "adaptor.lora.alpha": AMOUNT,
    "adaptor.lora.on": FLAG,
    "adaptor.lora.targets": Choice(names=("self_attention", "previewer")),
    "adaptor.stream.hidden": CHANNELS,
    "adaptor.stream.depth": FEW,
    "adaptor.stream.heads": FEW,
    "adaptor.stream.dim_head": FEW,
    "adaptor.stream.queries": Number(whole=True, low=1, high=1024),
    "adaptor.stream.adaln_on": Choice(names=("kv", "context")),
    "adaptor.stream.scale": AMOUNT,
    "adaptor.trunk.depth": DEPTH,
    "adaptor.trunk.middle": Choice(names=("frozen", "trainable")),
    "adaptor.trunk.feed": Choice(names=("concat", "add", "spatial")),
    "adaptor_reference.kind": Choice(names=("lq", "hq", "mean", "preview")),
    **dict.fromkeys(("adaptor_reference.dcp", "adaptor_reference.prompt", "adaptor_reference.fresh_noise"), FLAG),
    "adaptor_reference.blended": SHARE,
    "decoder.blocks": FEW,
    "decoder.embedding": CHANNELS,
    "decoder.dense": FEW,
    "decoder.w": SHARE,
    "module.frozen": Names(of=Choice(names=("stream", "lora", "hint", "trunk", "fusion", "encoder"))),
    "module.weights_dtype": DTYPE,
    "module.degradation_prompt": FLAG,
    **dict.fromkeys(("module.degradation_weight", "module.reconstruction_weight"), AMOUNT),
    **dict.fromkeys(("module.processor.hidden", "module.processor.degradation", "module.processor.kinds"), CHANNELS),
    "module.processor.semantic": FLAG,
    "module.control_decoder.widths": WIDTHS,
    "module.lq_targets.share": SHARE,
    **dict.fromkeys(("backbone.dtype", "backbone.text_dtype", "backbone.codec_dtype"), DTYPE),
    "backbone.cache_text": FLAG,
    "backbone.t5_length": Number(whole=True, low=0, high=512),
    "backbone.without": Names(of=Choice(names=("text_encoder", "text_encoder_2", "text_encoder_3"))),
    # the numbers of which these are made, where a size names them
    "hint_widths": WIDTHS,
    "hint_channels": CHANNELS,
    "hint_lq_latent": FLAG,
    "adapter_every": Number(whole=True, low=1, high=256),
    "lora_rank": Number(whole=True, low=1, high=1024),
    "lora_alpha": AMOUNT,
    "control_encoder.widths": WIDTHS,
    "control_encoder.out": CHANNELS,
    "resampler.hidden": CHANNELS,
    **dict.fromkeys(("resampler.depth", "resampler.heads", "resampler.dim_head"), FEW),
    "resampler.queries": Number(whole=True, low=1, high=1024),
    "reference_blended": SHARE,
    # what it was trained to say, and with which words
    "objective.target": FACTS["objective.target"],
    "objective.density": FACTS["objective.density"],
    **dict.fromkeys(("objective.t_min", "objective.t_max"), SHARE),
    **{f"prompt.dropout.{slot}": SHARE for slot in ("semantic", "instruction", "together", "visual")},
    "prompt.positive": Text(),
    "prompt.negative": Text(),
    "prompt.semantic.text": Text(),
    "prompt.instruction.text": Text(),
    "prompt.instruction.unknown": Text(),
    "prompt.instruction.values": SHARE,
    # how its maker sampled
    "sampler.steps": Number(whole=True, low=1, high=1000),
    "sampler.start": FACTS["sampler.start"],
    **dict.fromkeys(("sampler.s_churn", "sampler.s_noise", "sampler.s_tmin", "sampler.s_tmax"), AMOUNT),
    "sampler.scheduler.timestep_spacing": SPACING,
    "sampler.scheduler.steps_offset": FEW,
    "sampler.scheduler.original_steps": Number(whole=True, low=1, high=1000),
    "sampler.guidance.form": FACTS["sampler.guidance.form"],
    **dict.fromkeys(("sampler.guidance.scale", "sampler.guidance.scale.start", "sampler.guidance.scale.end"), AMOUNT),
    **dict.fromkeys(("sampler.strength.start", "sampler.strength.end"), AMOUNT),
    "sampler.strength.share": SHARE,
    **dict.fromkeys(("sampler.fidelity.tau_r", "sampler.fidelity.s_tmin", "sampler.fidelity.weight"), AMOUNT),
    "sampler.fidelity.recode": FLAG,
    **{f"sampler.fidelity.{name}": FACTS[f"sampler.fidelity.{name}"] for name in ("mode", "on", "threshold")},
    "sampler.fidelity.preview_from": SHARE,
    "adares_mode": FACTS["sampler.fidelity.mode"],
    "sampler.colour.levels": Number(whole=True, low=1, high=16),
    **dict.fromkeys(("sampler.tiling.tile", "sampler.tiling.overlap"), SIDE),
    "sampler.tiling.batch": Number(whole=True, low=1, high=64),
    "sampler.tiling.sigma": SHARE,
    "sampler.tiling.words": FACTS["sampler.tiling.words"],
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
