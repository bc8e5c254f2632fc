"""A verb's config from Python, as the command line composes it; and the words with which a run was made.

What made a run stands in its manifest as overrides. A manifest may have come with weights from elsewhere, so another
verb takes up only what received.py lists.
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
from restore_lab.config.received import Received, said_of, sorted_words
from restore_lab.storage.artefact import Manifest, place_of

log = logging.getLogger(__name__)
MADE_BY = "made_by"  # a manifest's extra: the overrides of the command
FOLLOW_NOT = "follow=false"  # typed: the weights' own words do not count
TRUST = "trust=true"  # typed: whatever its maker typed for a part counts


def composed(verb: str, overrides: Sequence[str] = ()) -> Any:
    """What `restore-lab VERB OVERRIDES` would run, with every interpolation resolved; a Hydra that runs is not touched.

    Raises:
        ValueError: for a setting or part that is not there, a value that it cannot have, or parts that have no meaning
            together.
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
        checks.check(cfg, verb=verb)
        OmegaConf.resolve(cfg)
    except HydraException as error:
        raise ValueError(f"{verb}: {' '.join(str(error).split())}") from error
    finally:
        HydraConfig.instance().cfg, GlobalHydra.instance().hydra = own, running
    return cfg


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Typed overrides after those of the weights that they name, and the line that says which these are."""

    words: tuple[str, ...]
    line: str = ""


def made_by(weights: str | Path | None, *, trust: bool = False) -> Received:
    """What counts of the words with which a run's weights were made; nothing where no manifest says it.

    Raises:
        ValueError: for a manifest that is none.
    """
    if weights is None:
        return Received()
    place = place_of(str(weights))
    try:
        found = Manifest.read(place if place.is_dir() else place.parent).extra.get(MADE_BY, [])
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return Received()
    return sorted_words(found, trust=trust)


def followed(overrides: Sequence[str]) -> Followed:
    """Typed overrides after those that made the run that `weights=` names, of whatever was not typed anew; with
    `follow=false` only what is typed."""
    lowered = {word.lower() for word in overrides}
    named = [word.partition("=")[2] for word in overrides if word.startswith("weights=")]
    if FOLLOW_NOT in lowered or not named:
        return Followed(words=tuple(overrides))
    trust = TRUST in lowered
    said = {_key(word) for word in overrides}
    found = made_by(_plain(named[-1]), trust=trust)
    anew = Received(
        taken=tuple(word for word in found.taken if _key(word) not in said),
        left=tuple(word for word in found.left if _key(word) not in said),
    )
    return Followed(words=(*anew.taken, *overrides), line=said_of(anew, trust=trust))


def following(overrides: Sequence[str]) -> tuple[str, ...]:
    """The words of `followed`; its line goes to the log, for whoever composes from Python."""
    found = followed(overrides)
    if found.line:
        log.info("%s", found.line)
    return found.words


def typed() -> list[str]:
    """The overrides of the running command; empty outside of one."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _plain(value: str) -> str:
    """A quoted value without its quotes."""
    quoted = re.fullmatch(r"'((?:[^'\\]|\\.)*)'", value)
    return value if quoted is None else re.sub(r"\\(['\\])", r"\1", quoted[1])


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
