"""Every setting of a verb's composed config, and values that hardly any of them takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from restore_lab.cli import errors
from restore_lab.cli.main import verbs
from restore_lab.config import signatures
from restore_lab.config.arguments import arguments
from restore_lab.config.settings import verb_settings
from tests.helpers.configs import composed

VALUES: dict[str, Any] = {
    "null": None,
    "3": 3,
    "x": "x",
    "[1]": [1],
    "{}": {},
    "1e30": 1e30,
    "nan": math.nan,
    __file__: __file__,
}  # as typed, and what that is
VERBS = sorted(verbs())
LONGEST = 500  # characters of a message


@functools.cache
def config(verb: str) -> DictConfig:
    """The composed config of a verb; what it reads of Hydra's own node stands in it."""
    cfg = composed(verb)
    for name in ("name", "shipped"):
        if name in cfg:
            cfg[name] = cfg[name]
    return cfg


def settings(node: DictConfig, place: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting below a node, leaves and nodes, with its constructor's annotation; None where it is no argument."""
    target = node.get("_target_")
    takes = signatures.source_signature(target) if isinstance(target, str) else None
    for key in node:
        inner = f"{place}.{key}".lstrip(".")
        yield (
            inner,
            takes.kinds.get(str(key), takes.var_keyword) if takes and key not in signatures.HYDRA_KEYS else None,
        )
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            value = node[key]
            if isinstance(value, DictConfig):
                yield from settings(value, inner)


def kinds(verb: str) -> dict[str, Any]:
    """The annotation of each setting of a verb, by place; None inside a mapping that is annotated as a whole."""
    cfg = config(verb)
    shared = {one.place: one.kind for one in arguments(cfg) if one.is_reference}
    own = {name: kind for name, kind in verb_settings(verb).items() if name in cfg}
    return {**dict(settings(cfg)), **shared, **own}


class Changed:
    """A config with another value at a place, which is put back afterwards."""

    def __init__(self, cfg: DictConfig, place: str, value: Any) -> None:
        parent, _, self.key = place.rpartition(".")
        self.cfg, self.value = cfg, value
        self.node: Any = OmegaConf.select(cfg, parent) if parent else cfg
        plain: Any = OmegaConf.to_container(self.node, resolve=False)
        self.old = plain[self.key]

    def __enter__(self) -> DictConfig:
        with open_dict(self.cfg):
            self.node[self.key] = self.value
        return self.cfg

    def __exit__(self, *error: object) -> None:
        with open_dict(self.cfg):
            self.node[self.key] = self.old


def refusal(run: Callable[[], object]) -> str | None:
    """What a call says of bad input, in one line; None if it takes it. Whatever else it raises is a bug."""
    try:
        run()
    except Exception as error:
        if not errors.is_bad_input(error):
            raise
        text = errors.flatten(error)
        if not text or "\n" in text or len(text) > LONGEST:
            raise AssertionError(f"not one line: {text}") from error
        return text
    return None
