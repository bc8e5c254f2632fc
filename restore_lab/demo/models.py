"""The demo's models: the shipped ones and the runs below a folder, loaded on demand, at most two at a time.

A slider sets a few settings of the sampler (conf/demo.yaml); moving it reloads no weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from restore_lab.config.compose import OVERRIDES_KEY, compose_config, merge_and_log
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.grammar import quote
from restore_lab.storage.artefact import Manifest
from restore_lab.storage.paths import place_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.inference.restorer import Restorer

MAX_LOADED = 2


@dataclass(frozen=True, kw_only=True)
class Slider:
    """One slider: its label `says`, the settings that it sets, and its range."""

    says: str
    settings: tuple[str, ...]
    low: float
    high: float
    step: float
    choices: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    idle: float | None = None

    def value(self, cfg: DictConfig) -> float | None:
        """The slider's value in a model's config; None if the model lacks its settings."""
        if self.methods and OmegaConf.select(cfg, "name") not in self.methods:
            return None
        if self.idle is not None:
            return self.idle
        found = [OmegaConf.select(cfg, setting) for setting in self.settings]
        if any(not isinstance(value, int | float) for value in found):
            return None
        return float(found[0])

    def words(self, value: float, cfg: DictConfig) -> list[str]:
        """The overrides for a value; empty if the config has it already."""
        if value == self.value(cfg):
            return []
        number = int(value) if float(self.step).is_integer() and float(value).is_integer() else value
        return [*self.choices, *(f"{setting}={number}" for setting in self.settings)]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the menu: its label `says`, and the overrides of `restore-lab restore` that select it."""

    says: str
    words: tuple[str, ...]


def sliders_of(cfg: DictConfig) -> list[Slider]:
    """The sliders of conf/demo.yaml."""
    return [
        Slider(
            says=knob.says,
            settings=tuple(knob.settings),
            low=knob.low,
            high=knob.high,
            step=knob.step,
            choices=tuple(knob.get("choices", ())),
            methods=tuple(knob.get("methods", ())),
            idle=knob.get("idle"),
        )
        for knob in cfg.knobs
    ]


def models(cfg: DictConfig) -> dict[str, Model]:
    """The models of the menu by label: the shipped ones, then the complete runs by folder."""
    found = [*_shipped(cfg.overrides), *_trained(Path(cfg.runs_dir), cfg.overrides)]
    if not found:
        raise ValueError(f"nothing to choose: no shipped models, and no trained run below {cfg.runs_dir}")
    return {model.says: model for model in found}


def _shipped(more: Sequence[str]) -> Iterator[Model]:
    usual = compose_config("restore").name
    methods = sorted(
        (file.stem for file in (conf_dir() / "method").glob("*.yaml")), key=lambda name: (name != usual, name)
    )
    for method in methods:
        words = (f"method={method}", *more)
        try:
            cfg = compose_config("restore", words)
        except ValueError:  # the given overrides do not apply to this method
            continue
        if cfg.weights is not None and place_of(cfg.weights).exists():
            yield Model(says=f"{method} (shipped toy)", words=words)


def _trained(runs: Path, more: Sequence[str]) -> Iterator[Model]:
    for file in sorted(runs.glob("*/*/manifest.json")):
        try:
            manifest = Manifest.read(file.parent)
        except (FileNotFoundError, ValueError):
            continue
        if manifest.kind == "adaptor" and OVERRIDES_KEY in manifest.extra:
            weights = f"weights={quote(str(file.parent))}"
            yield Model(says=str(file.parent), words=merge_and_log((weights, *more)))


class ModelCache:
    """Loaded models, the least recently used one evicted first.

    Args:
        cfg: the page's config.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.models = models(cfg)
        self.sliders = sliders_of(cfg)
        self._loaded: OrderedDict[str, Restorer] = OrderedDict()

    def config(self, name: str, more: Sequence[str] = ()) -> DictConfig:
        """A model's config, with further overrides.

        Raises:
            ValueError: for an unknown name, or invalid overrides.
        """
        if name not in self.models:
            raise ValueError(f"no model {name!r}; choose one of the list")
        bounds = (f"device={self.cfg.device}", f"max_pixels={self.cfg.max_pixels}")
        words = [*self.models[name].words, *bounds, "progress=false", *more]
        return compose_config("restore", words)

    def restorer(self, name: str, values: Mapping[str, float]) -> Restorer:
        """A model with its sliders set.

        Args:
            name: a label of `models`.
            values: value by slider; sliders that the model lacks are ignored.
        """
        from restore_lab.config.build import build
        from restore_lab.inference.restorer import Restorer

        plain = self.config(name)
        moved = [(slider, values[slider.says]) for slider in self.sliders if slider.says in values]
        words = [
            word for slider, value in moved if slider.value(plain) is not None for word in slider.words(value, plain)
        ]
        cfg = self.config(name, list(dict.fromkeys(words))) if words else plain
        if name not in self._loaded:
            while len(self._loaded) >= MAX_LOADED:
                self._loaded.popitem(last=False)
            self._loaded[name] = Restorer(plain)
        self._loaded.move_to_end(name)
        restorer = self._loaded[name]
        restorer.cfg = cfg
        restorer.module.sampler = build(cfg.sampler)
        return restorer
