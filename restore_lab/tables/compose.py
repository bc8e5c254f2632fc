"""Composes the config of a job inside the running Hydra, as the job's own command will."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from restore_lab.config import checks


@contextmanager
def composed(verb: str, words: Sequence[str]) -> Iterator[Any]:
    """The config of a verb, inside a running Hydra; its node `hydra` is in reach of interpolations.

    Composing takes half a second, so what differs in its seed alone is composed once.

    Raises:
        ValueError: for a value that a setting cannot have, or parts that have no meaning together.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    own = HydraConfig.instance().cfg
    known = _composed.setdefault(GlobalHydra.instance().hydra, {})
    seeds = [word for word in words if word.startswith("seed=")]
    key = (verb, bool(seeds), *(word for word in words if word not in seeds))
    try:
        if key not in known:
            known[key] = _compose(verb, words)
        cfg, HydraConfig.instance().cfg = known[key]
        if seeds:
            cfg.seed = int(seeds[-1].partition("=")[2])
        yield cfg
    finally:
        HydraConfig.instance().cfg = own


_composed: WeakKeyDictionary[Any, dict[tuple[Any, ...], tuple[Any, Any]]] = (
    WeakKeyDictionary()
)  # by the Hydra that composed


def _compose(verb: str, words: Sequence[str]) -> tuple[Any, Any]:
    """The config, and Hydra's own node of it."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    cfg = compose(config_name=verb, overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    checks.check(cfg, verb=verb)
    return cfg, HydraConfig.instance().cfg
