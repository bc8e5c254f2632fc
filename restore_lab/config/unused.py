"""Refuses a number that is typed for a training in which nothing reads it: `lora_rank=8` with an adaptor without LoRA.

Such numbers stand at the top of the config (conf/sizes, conf/method, or added by `+`) and reach parts by interpolation
alone. What every training has (conf/train.yaml, conf/parts.yaml) is not looked at: a table gives it to all its jobs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.suggest import nearest

OWN = ("train", "parts", "tracking")


def check(cfg: DictConfig, *, words: Sequence[str], groups: Collection[str]) -> None:
    """Look at the words of a training.

    Args:
        cfg: the composed config, with its interpolations.
        words: what was typed.
        groups: the config groups, whose options are words too.

    Raises:
        ValueError: for the first word that nothing reads.
    """
    known = _known(conf_dir())
    read: set[str] | None = None
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        root = key.partition(".")[0]
        if word.startswith("~") or "/" in key or "@" in key or root in known or root in groups:
            continue
        read = _references(cfg) if read is None else read
        if root not in read and not _is_part(cfg, root):
            close = nearest(root, sorted(read | known))
            hint = f"; did you mean {close!r}?" if close else ""
            raise ValueError(f"{key}={value}: nothing in this composition reads {root!r}{hint}")


@functools.cache
def _known(conf: Path) -> frozenset[str]:
    """The settings and groups of the files in `OWN`."""
    files = [yaml.safe_load((conf / f"{own}.yaml").read_text(encoding="utf-8")) for own in OWN]
    return frozenset(name for file in files for name in _names(file))


def _names(node: dict[str, Any]) -> Iterator[str]:
    """The settings of a config file, and the groups that it lists."""
    yield from (str(key) for key in node)
    for entry in node.get("defaults", ()):
        words = next(iter(entry)) if isinstance(entry, dict) else entry
        yield re.split(r"[/@]", words.rpartition(" ")[2].lstrip("/"))[0]


def _references(cfg: Any) -> set[str]:
    """The first names of all interpolations."""
    return set(re.findall(r"\$\{(?:oc\.select:)?([A-Za-z_]\w*)", OmegaConf.to_yaml(cfg)))


def _is_part(cfg: DictConfig, root: str) -> bool:
    """Whether a node was put there by a group of its own."""
    node = cfg.get(root)
    return isinstance(node, DictConfig) and "_target_" in node
