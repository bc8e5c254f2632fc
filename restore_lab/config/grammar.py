"""Quoting for Hydra's override grammar: free text and paths, so commas and apostrophes in them are literal.

A quoted value also stays one value under `-m`. A value that is a complete Hydra string already is unchanged, so quoting
is idempotent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from restore_lab.storage.identity import PATH_ENDINGS

TEXT_SETTINGS = frozenset(
    ("caption", "instruction", "negative", "positive", "negative_text", "positive_text", "question", "text", "title")
)
PATH_SETTINGS = frozenset(
    (
        "input",
        "output",
        "path",
        "root",
        "folder",
        "file",
        "weights",
        "checkpoint",
        "extend",
        "manifest",
        "resume",
        "picture",
        "system",
        "restored",
        "reference",
        "records",
        "sides",
        "files",
        "annotations",
        "trace",
        "words",
    )
)
# Settings with nodes by name that are groups too: Hydra would read a list as a list of options.
NODES = frozenset(("callbacks",))
ASSIGNMENT = re.compile(r"(?P<key>(\+\+|\+|~)?[A-Za-z_][\w./@:-]*)=(?P<value>.*)", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def quote_override(word: str, *, free: Sequence[str] = ()) -> str:
    """Quote the value of a `key=value` whose key holds free text or a path; most other words are unchanged.

    A key with a slash chooses from a config group (`prompt/instruction=blind`) and is never quoted. A list of nodes
    (`callbacks=[{...}]`) becomes a mapping by name.
    """
    match = ASSIGNMENT.fullmatch(word)
    if match is None:
        return word
    key, value = match["key"], match["value"]
    if key in NODES:
        nodes = _by_name(key, value)
        return f"{'++' * nodes.startswith('{')}{key}={nodes}"  # adds to the existing nodes
    name = key.lstrip("+~").rpartition(".")[2]
    is_text = name in TEXT_SETTINGS or key.lstrip("+~") in free
    if "/" in key or key.startswith("hydra.") or not (is_text or names_path(name)):
        return word
    is_list = names_path(name) and value.startswith("[") and value.endswith("]") and not Path(value).exists()
    if value in ("", "null", "???") or is_list or _QUOTED.fullmatch(value):
        return word
    return f"{key}={quote(value)}"


def names_path(key: str) -> bool:
    """Whether a setting of this name holds one or more paths."""
    return key in PATH_SETTINGS or key.endswith(PATH_ENDINGS)


def _by_name(key: str, value: str) -> str:
    """A list of nodes as a mapping by name; any other value unchanged.

    Raises:
        ValueError: for null, which would keep an experiment's nodes.
    """
    if value == "null":
        raise ValueError(f"{key}=null: no set is {key}=none, and {key}.NAME=null drops one")
    if re.fullmatch(r"\[\s*\]", value):
        return "none"
    entries, depth = [""], 0
    for token in re.findall(rf"{_QUOTED.pattern}|.", value[1:-1], re.DOTALL) if value.startswith("[") else ():
        depth += (token in "{[(") - (token in "}])")
        if token == "," and not depth:
            entries.append("")
        else:
            entries[-1] += token
    if not all(entry.strip().startswith("{") for entry in entries):
        return value
    return "{" + ",".join(f"{key}_{index}:{entry.strip()}" for index, entry in enumerate(entries)) + "}"


def quote(text: str) -> str:
    """Any text as one string of Hydra's override grammar, with OmegaConf's `${` escaped.

    Backslashes are special only before a quote (Hydra) or `${` (OmegaConf), and are doubled there.
    """
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    body = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    trailing = body[len(body.rstrip("\\")) :]
    return f"'{body}{trailing}'"
