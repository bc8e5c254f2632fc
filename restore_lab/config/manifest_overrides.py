"""Filters the overrides in an untrusted manifest: an allowlist of keys with their kinds, and of group options.

Weights come with the overrides of their training (compose.py), and a manifest may contain anything. Only the settings
and groups of manifest_schema.py are accepted: those that the weights' network needs, and its author's sampling
settings. Paths, hub ids, caches, captioners, outputs, `_target_` and interpolations are not among them. With
`trust=true`, which only the command line can set, every setting of a part is accepted; outputs, Hydra's settings,
`_target_` and interpolations never are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.grammar import quote
from restore_lab.config.kinds import Mismatch, Value, coerce
from restore_lab.config.manifest_schema import (
    EXCLUDED_OPTIONS,
    GROUPS,
    OPTIONAL_SETTINGS,
    OUTPUT_SETTINGS,
    PART_GROUPS,
    SETTINGS,
    Text,
)

MAX_OVERRIDES, MAX_CHARACTERS = 200, 2500  # overrides per manifest, and characters of each
WORD = re.compile(r"(?P<add>\+{0,2})(?P<key>[A-Za-z_][\w./]*)=(?P<value>.*)", re.DOTALL)
LONG_NUMBER = re.compile(r"\d{19}")  # more digits than a float holds
_UNPARSED = object()  # text that is no value in Hydra's grammar, or is a sweep
OPTION = re.compile(r"\w+(/\w+)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ManifestOverrides:
    """The overrides of a manifest, filtered.

    Attributes:
        accepted: accepted overrides, in normal form.
        rejected: rejected overrides of parts.
        others: number of all other overrides: of training, data and machine.
    """

    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    others: int = 0


def filter_overrides(words: Value, *, trust: bool = False) -> ManifestOverrides:
    """Filter the overrides of a manifest.

    Args:
        words: the manifest's entry, of any type.
        trust: whether the command line has `trust=true`.
    """
    found = list(words[:MAX_OVERRIDES]) if isinstance(words, list) else []
    plain = [word for word in found if isinstance(word, str) and len(word) <= MAX_CHARACTERS]
    accepted, rejected, others = [], [], len(found) - len(plain)
    for word in plain:
        override = _trusted_override(word) if trust else _allowed_override(word)
        if override is not None:
            accepted.append(override)
        elif re.split(r"[./@=]", word.lstrip("+~"))[0] in PART_GROUPS:
            rejected.append(word)
        else:
            others += 1
    return ManifestOverrides(accepted=tuple(accepted), rejected=tuple(rejected), others=others)


def _allowed_override(word: str) -> str | None:
    """An override in normal form if the schema has its key and its value fits; else None."""
    match = WORD.fullmatch(word)
    if match is None or "${" in word:
        return None
    key, text = match["key"], match["value"]
    if key in GROUPS:
        return word if not match["add"] and _is_option(key, text) else None
    kind = SETTINGS.get(key)
    if kind is None or (kind is not Text and LONG_NUMBER.search(text)):
        return None
    value = _value(text)
    if value is _UNPARSED or (kind is Text and not isinstance(value, str)):
        return None
    try:
        value = coerce(value, kind)
    except Mismatch:
        return None
    add = "++" if key.partition(".")[0] in OPTIONAL_SETTINGS else ""
    return f"{add}{key}={_override_text(value)}"


def _trusted_override(word: str) -> str | None:
    """An override of any part's setting, for a trusted manifest; else None."""
    match = WORD.fullmatch(word)
    if match is None or "${" in word or "_target_" in word:
        return None
    key = match["key"]
    if key in GROUPS:
        return word if not match["add"] and OPTION.fullmatch(match["value"]) else None
    of_part = re.split(r"[./]", key)[0] in PART_GROUPS or key in SETTINGS
    return word if of_part and "/" not in key else _allowed_override(word)


def _is_option(group: str, name: str) -> bool:
    """Whether the package has an option that a manifest may choose."""
    import yaml

    if not OPTION.fullmatch(name) or (group, name) in EXCLUDED_OPTIONS:
        return False
    folder = conf_dir().parent / "experiments" if group == "experiment" else conf_dir() / group
    file = folder / f"{name}.yaml"
    if not file.is_file():
        return False
    if group != "experiment":
        return True
    return not set(yaml.safe_load(file.read_text(encoding="utf-8")) or {}) & set(OUTPUT_SETTINGS)


def _value(text: str) -> Value:
    """The value of an override, parsed by Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"x={text}")
        return _UNPARSED if override.is_sweep_override() else override.value()
    except (HydraException, ValueError, RecursionError):
        return _UNPARSED


def _override_text(value: Value) -> str:
    """A plain value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(_override_text(one) for one in value)}]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII) else quote(value)
    return repr(value)


def summary(overrides: ManifestOverrides, *, trust: bool) -> str:
    """One line with the accepted and the rejected overrides and the reason; "" if there are none."""
    why = "never taken from a manifest" if trust else "type it again, or trust=true if you trust who made them"
    parts = [f"bring along {_listed(overrides.accepted)} (follow=false: without)"] if overrides.accepted else []
    parts += [f"leave out {_listed(overrides.rejected)} ({why})"] if overrides.rejected else []
    return f"the weights {'; '.join(parts)}" if parts else ""


def _listed(words: Iterable[str], most: int = 12) -> str:
    short = [word if len(word) <= 100 else f"{word[:97]}..." for word in words]
    more = f" and {len(short) - most} more" if len(short) > most else ""
    return " ".join(short[:most]) + more
