"""Composed configs for tests: `composed("train", "adaptor=spire")` is what `restore-lab train adaptor=spire` reads."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.config_source import hydra_at
from restore_lab.config.grammar import quote_override


def composed(verb: str, *overrides: str, **places: Any) -> DictConfig:
    """The config of a verb, with Hydra's own node behind `${hydra:...}` but not in it.

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
    """The whole config, pickled: many tests compose the same one, and change their copy of it."""
    with hydra_at(conf):
        words = [quote_override(word) for word in overrides]
        return pickle.dumps(compose(config_name=verb, overrides=words, return_hydra_config=True))


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
