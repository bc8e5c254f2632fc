"""The layout of a public checkpoint: its keys, the source key of each tensor of this package, its licence.

A layout maps this package's names to the checkpoint's keys, so a tensor without a source is detected before reading,
and errors use the checkpoint's own key names. One file per family of layouts; recognise.py lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from restore_lab.importing.checkpoint import Checkpoint
    from restore_lab.methods.module import RestorationModule


def unchanged(value: Tensor) -> Tensor:
    """The tensor itself."""
    return value


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The source of one tensor of this package: a key, and a transform of its value."""

    key: str
    take: Callable[[Tensor], Tensor] = unchanged


def no_keys(key: str) -> bool:
    """Matches no key."""
    return False


def no_words(source: Checkpoint) -> list[str]:
    """No further overrides."""
    return []


def same_key(key: str) -> str:
    """The key itself."""
    return key


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A public layout of keys.

    Attributes:
        name: short, for folders and manifests.
        title: name for messages.
        licence: licence of the published weights, printed at import and stored in the manifest.
        words: overrides that compose its network; those of the command line win.
        parts: prefixes of this package's tensor names that it covers completely.
        matches: whether a checkpoint with these (normalised) keys has this layout.
        sources: the piece of each of this package's names; a missing name has no counterpart.
        tidy: normalises a key to the spelling of `sources`.
        base: keys of the prior or other models, which are counted but not imported.
        settings: keys that hold a setting, not a weight.
        more_words: further overrides, inferred from the checkpoint.
        setting: the setting that takes the imported folder.
    """

    name: str
    title: str
    licence: str
    words: tuple[str, ...]
    parts: tuple[str, ...]
    matches: Callable[[Collection[str]], bool]
    sources: Callable[[Iterable[str], RestorationModule, Checkpoint], Mapping[str, Piece]]
    tidy: Callable[[str], str] = same_key
    base: Callable[[str], bool] = no_keys
    settings: Callable[[str], bool] = no_keys
    more_words: Callable[[Checkpoint], list[str]] = no_words
    setting: str = "weights"


def has_prefixes(keys: Iterable[str], *prefixes: str) -> bool:
    """Whether every prefix matches at least one key."""
    listed = list(keys)
    return all(any(key.startswith(prefix) for key in listed) for prefix in prefixes)


def prior_words(text_width: int | None) -> list[str]:
    """The override of the prior that a network was trained on, from the width of its text tokens."""
    known = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
    return [f"backbone={known[text_width]}"] if text_width in known else []
