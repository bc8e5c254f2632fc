"""Composed configs: `composed("train", "adaptor=spire")` is the config of `restore-lab train adaptor=spire`."""

from __future__ import annotations

import functools
import pickle
import re
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.config_source import GROUP_ALIASES, hydra_at
from restore_lab.config.grammar import quote_override


def composed(verb: str, *overrides: str, **places: Any) -> DictConfig:
    """The config of a verb, whose `${hydra:...}` resolve although Hydra's node is not in it.

    `places` get their values after that, so that a test with a folder of its own composes nothing anew.
    """
    cfg = pickle.loads(_composed(conf_dir(), verb, overrides))
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    for name, value in places.items():
        cfg[name] = value
    return cfg


@functools.lru_cache(maxsize=256)
def _composed(conf: Path, verb: str, overrides: tuple[str, ...]) -> bytes:
    """The whole config, pickled: many tests compose the same one, and change their copy of it.

    Parts are composed once, and single settings changed in a copy, as Hydra does it.
    """
    settings = () if "hydra." in " ".join(overrides) else tuple(word for word in overrides if _is_setting(conf, word))
    with hydra_at(conf):
        cfg = pickle.loads(_parts(conf, verb, tuple(word for word in overrides if word not in settings)))
        words = OverridesParser.create().parse_overrides([quote_override(word) for word in settings])
        ConfigLoaderImpl._apply_overrides_to_config(words, cfg)
    cfg.hydra.overrides.task = [quote_override(word) for word in overrides]
    return pickle.dumps(cfg)


@functools.lru_cache(maxsize=256)
def _parts(conf: Path, verb: str, overrides: tuple[str, ...]) -> bytes:
    words = [quote_override(word) for word in overrides]
    return pickle.dumps(compose(config_name=verb, overrides=words, return_hydra_config=True))


def _is_setting(conf: Path, word: str) -> bool:
    """Whether an override sets a value (`sampler.steps=3`) and chooses no part of a group."""
    key = word.partition("=")[0].lstrip("+")
    choice = not re.fullmatch(r"[\w.]+", key) or key in ("experiment", *GROUP_ALIASES) or (conf / key).is_dir()
    return "=" in word and not choice


def part(choice: str, *overrides: str) -> DictConfig:
    """The node of a part without a verb around it: `part("eval_data=lol", "+datasets_dir=/data")`."""
    with hydra_at(conf_dir()):
        return compose(overrides=[f"+{choice}", *overrides])[choice.partition("=")[0]]


def small(folder: Path) -> tuple[str, ...]:
    """Overrides that put a toy prior in place and make images, networks and batches as small as they go."""
    return (
        f"backbone.path={folder}",
        "data.size=16",
        "crop=16",
        "batch_size=2",
        "workers=0",
        "precision=32-true",
        "adaptor.hint_widths=[4,4,8]",
        "adaptor.hint_channels=4",
        "sampler.steps=2",
        *few_photos(),
    )


def few_photos() -> tuple[str, ...]:
    """Two evaluation crops of 16 pixels."""
    return ("eval_data.names=[camera,coffee]", "eval_data.size=32", "eval_data.crop=16")
