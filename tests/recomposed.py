"""Composed configs for tests that compose the same words again and again, for another place each time."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tests.composed import composed


def recomposed(verb: str, *words: str, **places: Any) -> DictConfig:
    """`composed`, once for the same words; `places` are settings that get their value after that."""
    kept, HydraConfig.instance().cfg = _composed(verb, *words)
    cfg = copy.deepcopy(kept)
    for name, value in places.items():
        cfg[name] = value
    return cfg


@lru_cache(maxsize=64)
def _composed(verb: str, *words: str) -> tuple[DictConfig, Any]:
    return composed(verb, *words), HydraConfig.instance().cfg
