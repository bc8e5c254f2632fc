"""A verb's config from Python, as the command line composes it; and the words with which a run was made.

What made a run stands in its manifest as overrides. Of these, only choices and settings of parts are taken up by
another verb: no output folders, no Hydra settings, no `_target_`, nothing with an interpolation in it. A manifest may
have come with weights from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restore_lab.config import validation
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.grammar import quote_override
from restore_lab.storage.artefacts import Manifest, place_of

MADE_BY = "made_by"  # a manifest's extra: the overrides of the command
FOLLOW_NOT = "follow=false"  # typed: the weights' own words do not count
PARTS = frozenset(
    ("method", "scale", "variant", "experiment", "backbone", "adaptor", "adaptor_reference", "prompt", "objective")
    + ("sampler", "lq_encoder", "decoder", "module")
)


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
        validation.check(cfg, verb=verb)
        OmegaConf.resolve(cfg)
    except HydraException as error:
        raise ValueError(f"{verb}: {' '.join(str(error).split())}") from error
    finally:
        HydraConfig.instance().cfg, GlobalHydra.instance().hydra = own, running
    return cfg


def made_by(weights: str | Path | None) -> list[str]:
    """The choices and settings of parts with which a run's weights were made; empty where nobody wrote them down."""
    if weights is None:
        return []
    place = place_of(str(weights))
    try:
        found = Manifest.read(place if place.is_dir() else place.parent).extra.get(MADE_BY, [])
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return []
    return [word for word in found if isinstance(word, str) and _of_a_part(word)]


def following(overrides: Sequence[str]) -> tuple[str, ...]:
    """Typed overrides, behind those that made the run that `weights=` names, of whatever was not typed anew; with
    `follow=false` what is typed alone."""
    if any(word.lower() == FOLLOW_NOT for word in overrides):
        return tuple(overrides)
    named = [word.partition("=")[2] for word in overrides if word.startswith("weights=")]
    said = {word.partition("=")[0].lstrip("+~") for word in overrides}
    known = made_by(_plain(named[-1])) if named else []
    return (*(word for word in known if word.partition("=")[0] not in said), *overrides)


def typed() -> list[str]:
    """The overrides of the running command; empty outside of one."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _plain(value: str) -> str:
    """A quoted value without its quotes."""
    quoted = re.fullmatch(r"'((?:[^'\\]|\\.)*)'", value)
    return value if quoted is None else re.sub(r"\\(['\\])", r"\1", quoted[1])


def _of_a_part(word: str) -> bool:
    match = re.fullmatch(r"(?P<root>[a-z_]+)(?P<rest>[\w./@]*)=(?P<value>.*)", word, re.DOTALL)
    if match is None or "${" in match["value"] or "_target_" in word:
        return False
    return match["root"] in PARTS and "@" not in match["rest"]
