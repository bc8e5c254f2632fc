"""Composes a job's config inside the running Hydra, exactly as the job's own command does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from restore_lab.config import checks

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.conf import HydraConf
    from omegaconf import DictConfig


@contextmanager
def job_config(verb: str, words: Sequence[str]) -> Iterator[DictConfig]:
    """A verb's config, inside a running Hydra; interpolations can read its node `hydra`.

    Composing takes half a second, so configs that differ only in their seed are composed once.

    Raises:
        ValueError: for an invalid value of a setting, or incompatible parts.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    own = HydraConfig.instance().cfg
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    cache = _CONFIGS.setdefault(hydra, {})
    seeds = [word for word in words if word.startswith("seed=")]
    key = (verb, bool(seeds), *(word for word in words if word not in seeds))
    try:
        if key not in cache:
            cache[key] = _compose(verb, words)
        cfg, HydraConfig.instance().cfg = cache[key]
        if seeds:
            cfg.seed = int(seeds[-1].partition("=")[2])
        yield cfg
    finally:
        HydraConfig.instance().cfg = own


_CONFIGS: WeakKeyDictionary[Hydra, dict[tuple[object, ...], tuple[DictConfig, HydraConf | None]]] = WeakKeyDictionary()


def _compose(verb: str, words: Sequence[str]) -> tuple[DictConfig, HydraConf | None]:
    """The config and its node `hydra`."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    cfg = compose(config_name=verb, overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    checks.check_config(cfg, verb=verb)
    return cfg, HydraConfig.instance().cfg
