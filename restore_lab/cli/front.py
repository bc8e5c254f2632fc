"""The front parser: what a person types becomes what Hydra's grammar reads.

Three kinds of words pass here. Hydra's own flags go through (first, because argparse wants them together). Other
flags and bare words become overrides: `--dry-run` is `dry_run=true`, `--format=json` is `format=json`, a bare word is
the verb's next positional name (`table spire/table5` is `table=spire/table5`). A setting that has the name of a config
group goes by the one that the verb gives it, since Hydra would look for the group. And the values of free-text and path
keys are quoted, since Hydra would stumble over a comma, an apostrophe, a bracket or a space; quoted they also stay
one value under `-m`. Leave a key unset with `caption=null`. A value that is one whole Hydra string already
(`caption="'a, b'"`) is left as it is, so parsing twice changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from restore_lab.config.grammar import ASSIGNMENT, quote, quote_override

HYDRA_FLAGS = frozenset(
    ("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun")
    + ("-sc", "--shell-completion")
)
HYDRA_FLAGS_WITH_VALUE = frozenset(
    ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir")
    + ("--experimental-rerun",)
)
INFO_TOPICS = frozenset(("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"))


@dataclass(frozen=True, kw_only=True)
class Words:
    """What was typed, sorted: Hydra's flags, overrides in Hydra's grammar, packages to trust."""

    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    trusted: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Flags and overrides in the order that Hydra's argument parser takes."""
        return [*self.flags, *self.overrides]

    @property
    def config_dirs(self) -> list[Path]:
        """The user's config folder, if one was given."""
        after = [value for flag, value in pairwise(self.flags) if flag in ("-cd", "--config-dir")]
        joined = [flag.partition("=")[2] for flag in self.flags if flag.startswith("--config-dir=")]
        return [Path(value).resolve() for value in (*after, *joined)]


def parse(
    words: Sequence[str],
    *,
    positional: Sequence[str] = (),
    free: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> Words:
    """Sort and quote what follows the verb.

    Args:
        words: the arguments after `restore-lab <verb>`.
        positional: keys that bare words set, in order; a last key ending in `...` takes all that are left, as a list.
        free: further keys whose values are free text, the verb's own.
        renamed: what a typed key is called in the verb's config, where a config group has its name.

    Raises:
        ValueError: for a bare word too many.
    """
    flags: list[str] = []
    overrides: list[str] = []
    bare: list[str] = []
    trusted: tuple[str, ...] = ()
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word in HYDRA_FLAGS or word.split("=")[0] in HYDRA_FLAGS_WITH_VALUE or word in ("-i", "--info"):
            flags += [word, *_flag_value(word, queue)]
        elif word.startswith("-"):
            overrides.append(_flag_override(word, free))
        elif word.startswith("trusted_packages="):
            trusted = tuple(name.strip() for name in word.partition("=")[2].strip("[]").split(",") if name.strip())
        elif ASSIGNMENT.fullmatch(word) or word.startswith("~"):
            overrides.append(quote_override(word, free=free))
        else:
            bare.append(word)
    overrides += _place(bare, positional)
    for typed, key in (renamed or {}).items():
        overrides = [f"{key}={word[len(typed) + 1 :]}" if word.startswith(f"{typed}=") else word for word in overrides]
    return Words(flags=tuple(flags), overrides=tuple(overrides), trusted=trusted)


def _flag_value(word: str, queue: list[str]) -> list[str]:
    """The word that belongs to a Hydra flag, taken off the queue."""
    if word in HYDRA_FLAGS or "=" in word or not queue:
        return []
    if word in ("-i", "--info") and queue[0] not in INFO_TOPICS:
        return []
    return [queue.pop(0)]


def _flag_override(word: str, free: Sequence[str]) -> str:
    name, equals, value = word.lstrip("-").partition("=")
    key = name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        raise ValueError(f"cannot read {word!r}: flags look like --plan or --format=json")
    return quote_override(f"{key}={value}", free=free) if equals else f"{key}=true"


def _place(bare: Sequence[str], positional: Sequence[str]) -> list[str]:
    """Bare words onto the positional keys."""
    placed: list[str] = []
    rest = list(bare)
    for key in positional:
        if key.endswith("...") and rest:
            placed.append(f"{key[:-3]}=[{','.join(quote(word) for word in rest)}]")
            rest = []
        elif rest:
            word = rest.pop(0)
            plain = re.fullmatch(r"[\w./-]+", word) is not None
            placed.append(f"{key}={word}" if plain and not _is_number(word) else f"{key}={quote(word)}")
    if rest:
        takes = f"takes {', '.join(key.rstrip('.') for key in positional)} and " if positional else "takes "
        raise ValueError(f"cannot place {rest[0]!r}: this verb {takes}settings as key=value")
    return placed


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[\d._+-]+(e[\d+-]+)?|true|false|null|inf|nan", word, re.IGNORECASE) is not None
