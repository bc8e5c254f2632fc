"""Composes a verb's config from Python, as the command line does; and merges the overrides stored with weights.

A run's manifest has the overrides that it was made with. Manifests come with weights from others, so another verb
applies only the overrides that manifest_overrides.py allows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restore_lab.config import checks
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.grammar import quote_override
from restore_lab.config.manifest_overrides import ManifestOverrides, filter_overrides, summary
from restore_lab.storage.artefact import Manifest
from restore_lab.storage.paths import place_of

log = logging.getLogger(__name__)
OVERRIDES_KEY = "made_by"  # a manifest's extra: the overrides of the command
NO_FOLLOW = "follow=false"  # ignores the weights' stored overrides
TRUST = "trust=true"  # accepts the manifest's overrides of every part


def compose_config(verb: str, overrides: Sequence[str] = ()) -> Any:
    """The config of `restore-lab VERB OVERRIDES`, all interpolations resolved; a running Hydra is not affected.

    Raises:
        ValueError: for an unknown setting or part, an invalid value, or incompatible parts.
    """
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict

    from restore_lab.config.config_source import hydra_at

    own, running = HydraConfig.instance().cfg, GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra_at(conf_dir()):
            words = [quote_override(word) for word in overrides]
            cfg = compose(config_name=verb, overrides=words, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        checks.check_config(cfg, verb=verb)
        OmegaConf.resolve(cfg)
    except HydraException as error:
        raise ValueError(f"{verb}: {' '.join(str(error).split())}") from error
    finally:
        HydraConfig.instance().cfg, GlobalHydra.instance().hydra = own, running
    return cfg


@dataclass(frozen=True, kw_only=True)
class MergedOverrides:
    """The given overrides after those stored with the weights, and a line that lists the stored ones."""

    words: tuple[str, ...]
    line: str = ""


def training_overrides(weights: str | Path | None, *, trust: bool = False) -> ManifestOverrides:
    """The overrides of the training of some weights, filtered by manifest_overrides.py; empty without a manifest.

    Raises:
        ValueError: for an invalid manifest.
    """
    if weights is None:
        return ManifestOverrides()
    place = place_of(str(weights))
    try:
        found = Manifest.read(place if place.is_dir() else place.parent).extra.get(OVERRIDES_KEY, [])
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ManifestOverrides()
    return filter_overrides(found, trust=trust)


def merge_overrides(overrides: Sequence[str]) -> MergedOverrides:
    """The given overrides after those stored with the weights that `weights=` names; a given key replaces a stored one.

    With `follow=false` the given overrides only.
    """
    lowered = {word.lower() for word in overrides}
    named = [word.partition("=")[2] for word in overrides if word.startswith("weights=")]
    if NO_FOLLOW in lowered or not named:
        return MergedOverrides(words=tuple(overrides))
    trust = TRUST in lowered
    given = {_key(word) for word in overrides}
    found = training_overrides(_plain(named[-1]), trust=trust)
    remaining = ManifestOverrides(
        accepted=tuple(word for word in found.accepted if _key(word) not in given),
        rejected=tuple(word for word in found.rejected if _key(word) not in given),
    )
    return MergedOverrides(words=(*remaining.accepted, *overrides), line=summary(remaining, trust=trust))


def merge_and_log(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides of `merge_overrides`, with its line logged, for callers that compose from Python."""
    found = merge_overrides(overrides)
    if found.line:
        log.info("%s", found.line)
    return found.words


def command_overrides() -> list[str]:
    """The overrides of the running command; empty outside of Hydra."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _plain(value: str) -> str:
    """A quoted value without its quotes."""
    quoted = re.fullmatch(r"'((?:[^'\\]|\\.)*)'", value)
    return value if quoted is None else re.sub(r"\\(['\\])", r"\1", quoted[1])


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
