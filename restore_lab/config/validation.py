"""Looks at a composed config before anything is loaded: pairs of parts, numbers, choices, and files that must be there.

One line for whatever is wrong first, with the value, what is expected, and the nearest name. Parts check what they are
given too, for whoever builds them in Python; here it is told in a moment, not behind minutes of loading. Without torch.
`FACTS` is the one table of what a setting may be; a setting that a config does not have, and one that a part fills with
a node of its own (a guidance that moves), is passed over.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from restore_lab.config import build, pairs, unread
from restore_lab.config.grammar import names_path
from restore_lab.config.nearest import nearest, offer
from restore_lab.storage.artefacts import place_of
from restore_lab.storage.named import MADE
from restore_lab.storage.walk import match


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number from `low` to `high`; `above` and `below` leave the bound itself out.

    Attributes:
        whole: no fraction.
        null: null is a value too.
        words: words that are values too.
        unit: what it counts.
    """

    whole: bool = False
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    null: bool = False
    words: Sequence[str] = ()
    unit: str = ""

    def wrong(self, value: Any) -> str | None:
        """What is expected in its place; None if it will do."""
        if (value is None and self.null) or (isinstance(value, str) and value in self.words):
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and self._inside(value):
            return None
        return f"expected {self}"

    def _inside(self, value: float) -> bool:
        if not math.isfinite(value) or (self.whole and value != int(value)):
            return False
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        said = ["a whole number" if self.whole else "a number"]
        if self.low > -math.inf:
            said.append(f"above {self.low:g}" if self.above else f"of at least {self.low:g}")
        if self.high < math.inf:
            said.append(f"and below {self.high:g}" if self.below else f"and at most {self.high:g}")
        others = "".join(f", or {word}" for word in (*self.words, *(["null"] if self.null else [])))
        return " ".join(said) + (f" ({self.unit})" if self.unit else "") + others


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of some names; `also` is a pattern of others that are taken."""

    names: Sequence[str]
    null: bool = False
    also: str = ""

    def wrong(self, value: Any) -> str | None:
        """The nearest name and all of them; None if it will do."""
        word = str(value).lower() if isinstance(value, bool) else str(value)
        if (value is None and self.null) or word in self.names or (self.also and re.fullmatch(self.also, word)):
            return None
        listed = [*self.names, *(["null"] if self.null else [])]
        close = nearest(word, self.names)
        return f"{f'did you mean {close}? ' if close else ''}there are: {', '.join(listed)}"


STEPS = Number(whole=True, low=1, unit="optimiser steps")
COUNT = Number(whole=True, low=1)
PIXELS = Number(whole=True, low=1, null=True, unit="pixels")
SOME = Number(whole=True, low=0)
POSITIVE = Number(low=0, above=True)
WEIGHT = Number(low=0)
SHARE = Number(low=0, high=1, unit="a share")
DTYPE = Choice(names=("float32", "float16", "bfloat16"), null=True)
DEVICE = Choice(names=("auto", "cpu", "cuda", "mps", "cuda:0"), also=r"[a-z]+:\d+")
SPACINGS = ("leading", "linspace", "trailing")
TEXT_OR_JSON = Choice(names=("text", "json"))

FACTS: Mapping[str, Number | Choice] = {
    # training
    "max_steps": STEPS,
    **dict.fromkeys(("encoder_steps", "decoder_steps", "dcp_steps", "previewer_steps"), STEPS),
    **dict.fromkeys(("batch_size", "eval_batch_size", "first_batch_size", "decoder_batch_size"), COUNT),
    **dict.fromkeys(("checkpoint_every", "log_every"), STEPS),
    "keep_state": Choice(names=("true", "false")),
    "workers": Number(whole=True, low=0, unit="processes that read data"),
    "seed": Number(whole=True, low=0, high=2**32 - 1),
    "ema": Number(low=0, high=1, below=True, null=True, unit="what the average keeps in a step"),
    "optimisation.lr": POSITIVE,
    "optimisation.eps": POSITIVE,
    "optimisation.weight_decay": WEIGHT,
    "optimisation.warmup_steps": SOME,
    "optimisation.decay": Choice(names=("constant", "cosine")),
    "optimisation.fused": Choice(names=("auto", "true", "false")),
    "precision": Choice(names=("32-true", "bf16-mixed", "16-mixed", "bf16-true"), also="(16|64)-true|bf16|16|32|64"),
    # images
    **dict.fromkeys(("crop", "eval_crop", "min_size", "eval_resize", "photos_size", "work_size"), PIXELS),
    **dict.fromkeys(("eval_crops", "eval_first", "samples"), Number(whole=True, low=1, null=True)),
    **dict.fromkeys(("count", "shard_size", "seeds", "devices", "max_pixels"), COUNT),
    **dict.fromkeys(("pictures", "photos_crops"), SOME),
    "upscale": POSITIVE,
    "quality": Number(whole=True, low=1, high=100),
    # parts
    "adaptor.lora.rank": COUNT,
    "sampler.steps": Number(whole=True, low=1, unit="sampling steps"),
    "sampler.start": Number(low=0, above=True, high=1, unit="a share of the steps"),
    "sampler.s_churn": WEIGHT,
    "sampler.s_noise": WEIGHT,
    "sampler.timestep_spacing": Choice(names=("sgm", *SPACINGS)),
    "sampler.scheduler.timestep_spacing": Choice(names=SPACINGS, also="solver"),
    "sampler.scheduler.flow_spacing": Choice(names=("own", "trailing", "linspace")),
    **dict.fromkeys(("sampler.steps_offset", "sampler.scheduler.steps_offset"), SOME),
    "sampler.guidance.scale": WEIGHT,
    "sampler.guidance.form": Choice(names=("standard", "paper")),
    "sampler.strength.share": SHARE,
    **dict.fromkeys(("sampler.strength.start", "sampler.strength.end"), WEIGHT),
    "sampler.fidelity.tau_r": Number(low=0, null=True),
    "sampler.fidelity.weight": WEIGHT,
    "sampler.fidelity.threshold": Number(low=0, high=1, below=True, unit="a share of the steps"),
    "sampler.fidelity.preview_from": SHARE,
    "sampler.fidelity.mode": Choice(names=("reference", "residual", "off")),
    "sampler.fidelity.on": Choice(names=("latent", "x0")),
    "sampler.tiling.tile": PIXELS,
    "sampler.tiling.overlap": SOME,
    "sampler.tiling.batch": COUNT,
    "sampler.tiling.words": Choice(names=("image", "tile")),
    "objective.target": Choice(
        names=("epsilon", "v_prediction", "sample", "flow", "codec", "image", "printed"), null=True
    ),
    "objective.density": Choice(names=("auto", "uniform", "logit_normal")),
    # machines
    "backbone.family": Choice(names=("unet", "mmdit")),
    **dict.fromkeys(("backbone.dtype", "backbone.text_dtype", "backbone.codec_dtype", "dtype"), DTYPE),
    "backbone.cache_gigabytes": POSITIVE,
    "memory.place": Choice(names=("device", "staged", "offload")),
    "memory.weights": Choice(names=("int8", "fp8", "nf4"), null=True),
    "device": DEVICE,
    "at_scale": Choice(names=("tiny", "full")),
    "make": Choice(names=("negatives", "pack", "cache", "photographs"), also="true|false"),
    "images": Choice(names=("png", "webp", "jpg"), also=r"\d+"),
    "unmatched": Choice(names=("error", "skip")),
}
FORMATS: Mapping[str, Choice] = {
    **dict.fromkeys(("evaluate", "describe", "doctor", "import", "diff"), TEXT_OR_JSON),
    "restore": Choice(names=("png", "jpeg", "webp", "tiff", "same")),
    "table": Choice(names=("markdown", "latex", "csv", "html", "json", "claims")),
}
# What each verb reads, by setting; `data` and `eval_data` stand for the folders in these nodes.
READS: Mapping[str, Sequence[str]] = {
    "train": ("weights", "extend", "backbone", "data", "eval_data"),
    "restore": ("input", "words", "weights", "backbone"),
    "evaluate": ("weights", "system", "backbone", "eval_data"),
    "caption": ("input", "data"),
    "data": ("backbone", "data"),
    "export": ("weights", "backbone"),
}
MADE_BY_THE_RUN = ("stage:", MADE)  # an earlier stage's folder, what a table makes first
ROOTS = ("root", "lq", "hq")  # of a data source: folders, files or patterns that it reads
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def check(cfg: DictConfig, *, verb: str) -> None:
    """Look at the parts, the numbers and the choices of a verb's config.

    Raises:
        ValueError: with the first thing that is wrong.
    """
    pairs.check(cfg)
    _check_paths(cfg, "")
    facts = {**FACTS, **({"format": FORMATS[verb]} if verb in FORMATS else {})}
    for place, fact in facts.items():
        value = _value(cfg, place)
        wrong = None if value is _ABSENT or OmegaConf.is_config(value) else fact.wrong(value)
        if wrong is not None:
            raise ValueError(f"{place}={'null' if value is None else value}: {wrong}")
    stages = _value(cfg, "stages")
    if verb == "train" and isinstance(stages, DictConfig):
        names = [str(name) for name in stages if stages[name] is not None]
        if cfg.stage not in (*names, "all"):
            raise ValueError(f"stage={cfg.stage!r} is not known here{offer(str(cfg.stage), [*names, 'all'])}")
    if not HydraConfig.initialized():
        return
    choices = HydraConfig.get().runtime.choices
    mixed = pairs.mixture(cfg, choices)
    if mixed is not None:
        pairs.say(mixed)
    if verb == "train":
        build.nodes_of(cfg.callbacks, where="callbacks")
        unread.check(cfg, words=HydraConfig.get().overrides.task, groups={str(group) for group in choices})


def check_files(cfg: DictConfig, *, verb: str) -> None:
    """Look whether what the verb will read is there.

    Raises:
        ValueError: with the first that is not, and the setting that names it.
    """
    if verb == "evaluate" and (cfg.explain or cfg.restored is not None):  # reads nothing but these folders
        return
    systems = verb == "evaluate" and cfg.system is not None  # somebody else's, in the place of the weights
    for setting in READS.get(verb, ()):
        if setting == "backbone":
            _check_backbone(_value(cfg, "backbone.path"))
        elif setting in ("data", "eval_data"):
            for place, text, origin in _roots(_value(cfg, setting), setting, origin=""):
                if not _there(text):
                    raise ValueError(f"{place}={text}: no such file or folder{origin}")
        else:
            value = _value(cfg, setting)
            if isinstance(value, str) and not (setting == "weights" and systems) and not _there(value):
                raise ValueError(f"{setting}={value}: no such file or folder{_instead(cfg, setting, value)}")


def _instead(cfg: DictConfig, setting: str, value: str) -> str:
    """What to do about weights that are not there."""
    if setting != "weights":
        return ""
    none = "; none ship for this method at this scale" if value == _value(cfg, "shipped") else ""
    return f"{none}; train some with restore-lab train, then give weights=FOLDER"


_ABSENT = object()


def _value(cfg: DictConfig, place: str) -> Any:
    """What stands at a place, resolved; _ABSENT for nothing, or for a value that is still to be given."""
    node: Any = cfg
    for key in place.split("."):
        if not isinstance(node, DictConfig) or key not in node or OmegaConf.is_missing(node, key):
            return _ABSENT
        node = node[key]
    return node


def _there(text: str) -> bool:
    """Whether a file or folder is there, or a file that fits a pattern; what the run makes itself counts as there."""
    if text.startswith(MADE_BY_THE_RUN):
        return True
    return place_of(text).exists() or (glob.has_magic(text) and bool(match(place_of(text))[1].files))


def _check_paths(node: DictConfig, within: str) -> None:
    """Refuse an empty path: Python takes it for the working directory, a person hardly ever means it."""
    for key in node:
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException:  # an interpolation that leads nowhere is refused where it is read
            continue
        if isinstance(value, DictConfig) and not OmegaConf.is_interpolation(node, key):
            _check_paths(value, f"{within}{key}.")
        paths = value if isinstance(value, ListConfig) else [value]
        is_path = names_path(str(key)) or (key in ROOTS and "rule" in node)  # a pair's; a rule's are endings of names
        if is_path and any(isinstance(path, str) and not path.strip() for path in paths):
            raise ValueError(f"{within}{key}= is empty (a shell variable that is not set?); give a path, or null")


def _check_backbone(path: Any) -> None:
    """Refuse places that are all on this machine and not there; the hub's are looked for when they are read."""
    places = [path] if isinstance(path, str) else list(path) if isinstance(path, ListConfig) else []
    local = [place for place in places if not HUB_ID.fullmatch(place) and not place.startswith("config:")]
    if local and len(local) == len(places) and not any(_there(place) for place in local):
        raise ValueError(
            f"backbone.path={', '.join(local)}: no such file or folder; give a diffusers-format folder, a .safetensors "
            "file, or OWNER/NAME on the hub"
        )


def _roots(node: Any, place: str, *, origin: str) -> Iterator[tuple[str, str, str]]:
    """Where a data node reads: setting, path, and for a public dataset where that comes from."""
    if not isinstance(node, DictConfig):
        return
    if "origin" in node and "data" in node:
        origin = f"; it comes from {node.origin}; restore-lab doctor data={node.data} checks a copy"
    for key in node:
        if OmegaConf.is_missing(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            yield from _roots(value, f"{place}.{key}", origin=origin)
        elif key in ROOTS and isinstance(value, str) and Path(value).name:
            yield f"{place}.{key}", value, origin
