"""What an importer says of a public checkpoint: its keys, which of them each of our tensors comes from, its licence.

A layout goes from our names to its keys, so that a tensor without a source is found before anything is read, and a
missing key is named as the checkpoint's makers name it. One file per family of layouts; recognise.py lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from restore_lab.methods.module import RestorationModule


@dataclass(frozen=True, kw_only=True)
class Source:
    """One checkpoint as it was read: tensors by key, and settings that stood beside them (a LoRA's alpha)."""

    file: Path
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)


def as_it_is(value: Tensor) -> Tensor:
    """Most tensors are taken as they are."""
    return value


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where one tensor of ours comes from: a key, and what is done with its value."""

    key: str
    take: Callable[[Tensor], Tensor] = as_it_is


def nothing(key: str) -> bool:
    """No key at all."""
    return False


def no_words(source: Source) -> list[str]:
    """Nothing besides."""
    return []


def same_key(key: str) -> str:
    """The key as it stands."""
    return key


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A public layout of keys.

    Attributes:
        name: short, for folders and manifests.
        title: what a person calls it.
        licence: of the published weights, told at import and kept in the manifest.
        words: overrides that compose the network that it fits; what a person types counts more.
        parts: first words of our tensors' names that it covers, all of each.
        recognises: whether a checkpoint with these (tidied) keys is one.
        sources: for each of our names its piece; a name that it leaves out has no counterpart.
        tidy: spellings of a key to the one that `sources` speaks of.
        base: keys of the prior or of others besides, which are counted and not imported.
        settings: keys that hold a setting, not a weight.
        more_words: further overrides, read off the checkpoint.
        setting: what takes the imported folder.
    """

    name: str
    title: str
    licence: str
    words: tuple[str, ...]
    parts: tuple[str, ...]
    recognises: Callable[[Collection[str]], bool]
    sources: Callable[[Iterable[str], RestorationModule, Source], Mapping[str, Piece]]
    tidy: Callable[[str], str] = same_key
    base: Callable[[str], bool] = nothing
    settings: Callable[[str], bool] = nothing
    more_words: Callable[[Source], list[str]] = no_words
    setting: str = "weights"


def any_with(keys: Iterable[str], *prefixes: str) -> bool:
    """Whether every prefix begins some key."""
    listed = list(keys)
    return all(any(key.startswith(prefix) for key in listed) for prefix in prefixes)


def prior_words(text_width: int | None) -> list[str]:
    """Which prior a network was trained on, by the width of the text tokens that it reads."""
    known = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
    return [f"backbone={known[text_width]}"] if text_width in known else []
