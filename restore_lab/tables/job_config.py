"""Composes a job's config inside the running Hydra, exactly as the job's own command does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from restore_lab.config import checks


@contextmanager
def job_config(verb: str, words: Sequence[str]) -> Iterator[Any]:
    """A verb's config, inside a running Hydra; interpolations can read its node `hydra`.

    Composing takes half a second, so configs that differ only in their seed are composed once.

    Raises:
        ValueError: for an invalid value of a setting, or incompatible parts.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    own = HydraConfig.instance().cfg
    cache = _CONFIGS.setdefault(GlobalHydra.instance().hydra, {})
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


_CONFIGS: WeakKeyDictionary[Any, dict[tuple[Any, ...], tuple[Any, Any]]] = WeakKeyDictionary()  # by Hydra instance


def _compose(verb: str, words: Sequence[str]) -> tuple[Any, Any]:
    """The config and its node `hydra`."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    cfg = compose(config_name=verb, overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    checks.check(cfg, verb=verb)
    return cfg, HydraConfig.instance().cfg
