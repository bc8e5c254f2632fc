"""Refuses an override that a training does not read: `lora_rank=8` with an adaptor without LoRA.

Such settings are top-level keys (conf/method, or added with `+`) that reach parts by interpolation only.
The settings of every training (conf/train.yaml, conf/parts.yaml) are not checked: a table sets them for all its jobs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.kinds import Value
from restore_lab.config.suggest import nearest

ALWAYS_READ = ("train", "parts", "tracking")


def check_unused(cfg: DictConfig, *, words: Sequence[str], groups: Collection[str]) -> None:
    """Check the overrides of a training.

    Args:
        cfg: the composed config, interpolations unresolved.
        words: the overrides of the command line.
        groups: the config groups, which overrides may name too.

    Raises:
        ValueError: for the first override that no part reads.
    """
    settings = _settings_of_every_training(conf_dir())
    read: set[str] | None = None
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        root = key.partition(".")[0]
        if word.startswith("~") or "/" in key or "@" in key or root in settings or root in groups:
            continue
        read = _references(cfg) if read is None else read
        if root not in read and not _is_part(cfg, root):
            close = nearest(root, sorted(read | settings))
            hint = f"; did you mean {close!r}?" if close else ""
            raise ValueError(f"{key}={value}: nothing in this composition reads {root!r}{hint}")


@functools.cache
def _settings_of_every_training(conf: Path) -> frozenset[str]:
    """The settings and groups of the files in `ALWAYS_READ`."""
    files = [yaml.safe_load((conf / f"{own}.yaml").read_text(encoding="utf-8")) for own in ALWAYS_READ]
    return frozenset(name for file in files for name in _names(file))


def _names(node: Mapping[str, Value]) -> Iterator[str]:
    """The settings of a config file, and the groups that it lists."""
    yield from (str(key) for key in node)
    for entry in node.get("defaults", ()):
        words = next(iter(entry)) if isinstance(entry, dict) else entry
        yield re.split(r"[/@]", words.rpartition(" ")[2].lstrip("/"))[0]


def _references(cfg: DictConfig) -> set[str]:
    """The top-level keys of all interpolations."""
    return set(re.findall(r"\$\{(?:oc\.select:)?([A-Za-z_]\w*)", OmegaConf.to_yaml(cfg)))


def _is_part(cfg: DictConfig, root: str) -> bool:
    """Whether a config group of its own set a node."""
    node = cfg.get(root)
    return isinstance(node, DictConfig) and "_target_" in node
