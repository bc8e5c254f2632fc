"""What a folder that somebody sends may set: exact keys with their values, options of groups that the package has.

Weights bring along the overrides with which they were trained (compose.py), and a manifest may say anything. Of it
count the settings and groups of received_schema.py: what the weights need to fit, and how their maker sampled. No path,
hub id, cache, captioner, output, `_target_` or interpolation is among them. With `trust=true`, which only the person
can type, every setting of a part counts; outputs, Hydra's settings, `_target_` and interpolations do not even then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.grammar import quote
from restore_lab.config.kinds import Unfit, fit
from restore_lab.config.received_schema import ABSENT_AT_TIMES, GROUPS, NOT_TAKEN, PARTS, SETTINGS, WRITES, Text

MAX_WORDS, MAX_LETTERS = 200, 2500  # of a manifest, and of each
WORD = re.compile(r"(?P<add>\+{0,2})(?P<key>[A-Za-z_][\w./]*)=(?P<value>.*)", re.DOTALL)
LONG_NUMBER = re.compile(r"\d{19}")  # none that a float holds
OPTION = re.compile(r"\w+(/\w+)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Received:
    """The words of a manifest, sorted.

    Attributes:
        taken: overrides that count, written anew.
        left: those of parts that do not count, as far as they can be shown.
        others: what else was typed: of the training, the data, the machine.
    """

    taken: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    others: int = 0


def sorted_words(words: Any, *, trust: bool = False) -> Received:
    """Sort what a manifest says its maker typed.

    Args:
        words: as it was read, anything at all.
        trust: whether the person typed `trust=true`.
    """
    found = list(words[:MAX_WORDS]) if isinstance(words, list) else []
    plain = [word for word in found if isinstance(word, str) and len(word) <= MAX_LETTERS]
    taken, left, others = [], [], len(found) - len(plain)
    for word in plain:
        counted = _trusted(word) if trust else _counted(word)
        if counted is not None:
            taken.append(counted)
        elif re.split(r"[./@=]", word.lstrip("+~"))[0] in PARTS:
            left.append(word)
        else:
            others += 1
    return Received(taken=tuple(taken), left=tuple(left), others=others)


def _counted(word: str) -> str | None:
    """An override, written anew, if its key is one of the schema and its value of the key's kind."""
    match = WORD.fullmatch(word)
    if match is None or "${" in word:
        return None
    key, text = match["key"], match["value"]
    if key in GROUPS:
        return word if not match["add"] and _is_option(key, text) else None
    fact = SETTINGS.get(key)
    if fact is None or (fact is not Text and LONG_NUMBER.search(text)):
        return None
    value = _value(text)
    if value is _Unread or (fact is Text and not isinstance(value, str)):
        return None
    try:
        value = fit(value, fact)
    except Unfit:
        return None
    add = "++" if key.partition(".")[0] in ABSENT_AT_TIMES else ""
    return f"{add}{key}={_written(value)}"


def _trusted(word: str) -> str | None:
    """Any setting of a part, of which the person trusts the maker."""
    match = WORD.fullmatch(word)
    if match is None or "${" in word or "_target_" in word:
        return None
    key = match["key"]
    if key in GROUPS:
        return word if not match["add"] and OPTION.fullmatch(match["value"]) else None
    known = re.split(r"[./]", key)[0] in PARTS or key in SETTINGS
    return word if known and "/" not in key else _counted(word)


def _is_option(group: str, name: str) -> bool:
    """Whether the package has an option that a manifest may choose."""
    import yaml

    if not OPTION.fullmatch(name) or (group, name) in NOT_TAKEN:
        return False
    folder = conf_dir().parent / "experiments" if group == "experiment" else conf_dir() / group
    file = folder / f"{name}.yaml"
    if not file.is_file():
        return False
    if group != "experiment":
        return True
    return not set(yaml.safe_load(file.read_text(encoding="utf-8")) or {}) & set(WRITES)


class _Unread:
    """No value: the text is none of Hydra's grammar, or a sweep."""


def _value(text: str) -> Any:
    """The value of an override, as Hydra reads it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"x={text}")
        return _Unread if override.is_sweep_override() else override.value()
    except (HydraException, ValueError, RecursionError):
        return _Unread


def _written(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(_written(one) for one in value)}]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII) else quote(value)
    return repr(value)


def said_of(received: Received, *, trust: bool) -> str:
    """One line: what the weights bring along, and what of their manifest does not count and why; empty for neither."""
    why = "never taken from a manifest" if trust else "type it again, or trust=true if you trust who made them"
    said = [f"bring along {_listed(received.taken)} (follow=false: without)"] if received.taken else []
    said += [f"leave out {_listed(received.left)} ({why})"] if received.left else []
    return f"the weights {'; '.join(said)}" if said else ""


def _listed(words: Iterable[str], most: int = 12) -> str:
    shown = [word if len(word) <= 100 else f"{word[:97]}..." for word in words]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return " ".join(shown[:most]) + more
