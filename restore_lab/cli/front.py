"""The front parser: translates the command line into Hydra's flags and overrides.

Hydra's own flags pass through, moved to the front because argparse wants them together. Other flags and bare words
become overrides: `--dry-run` is `dry_run=true`, `--format=json` is `format=json`, a bare word sets the verb's next
positional key (`table spire/table5` is `table=spire/table5`). A setting with the name of a config group is renamed by
the verb, since Hydra would look for the group. Values of free-text and path keys are quoted, since commas, apostrophes,
brackets and spaces are syntax to Hydra; a quoted value also stays one value under `-m`. `caption=null` leaves a key
unset. A value that is a complete Hydra string already (`caption="'a, b'"`) is unchanged, so parsing is idempotent.
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
class CommandLine:
    """A parsed command line: Hydra's flags, overrides in Hydra's grammar, trusted packages."""

    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    trusted_packages: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Flags and overrides in the order of Hydra's argument parser."""
        return [*self.flags, *self.overrides]

    @property
    def config_dirs(self) -> list[Path]:
        """The user's config folder, if given."""
        after = [value for flag, value in pairwise(self.flags) if flag in ("-cd", "--config-dir")]
        joined = [flag.partition("=")[2] for flag in self.flags if flag.startswith("--config-dir=")]
        return [Path(value).resolve() for value in (*after, *joined)]


def parse(
    words: Sequence[str],
    *,
    positional: Sequence[str] = (),
    free: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> CommandLine:
    """Parse and quote the words after the verb.

    Args:
        words: the arguments after `restore-lab <verb>`.
        positional: keys that bare words set, in order; a last key ending in `...` takes all that are left, as a list.
        free: the verb's own keys with free text.
        aliases: command-line key to the verb's config key, where a config group has the same name.

    Raises:
        ValueError: for more bare words than positional keys.
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
    for typed, key in (aliases or {}).items():
        overrides = [f"{key}={word[len(typed) + 1 :]}" if word.startswith(f"{typed}=") else word for word in overrides]
    return CommandLine(flags=tuple(flags), overrides=tuple(overrides), trusted_packages=trusted)


def _flag_value(word: str, queue: list[str]) -> list[str]:
    """The value of a Hydra flag, removed from the queue."""
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
    """Overrides that assign bare words to the positional keys."""
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
