"""Public datasets under their own names and layouts: `eval_data=realphoto60`, `restore-lab doctor data=realphoto60`.

Each is a yaml that wraps a source and lists the content of a complete copy; pooled.py and mixed.py combine several. The
folders are below `datasets_dir` (a setting, or the environment variable RESTORE_LAB_DATASETS); nothing is downloaded.
The error for a missing dataset gives the expected folder and where to download it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from restore_lab.config.build import build
from restore_lab.data.dataset import Source, header_of
from restore_lab.data.frames import describe_frames, take_frames
from restore_lab.data.image_io import BadImage, Header
from restore_lab.types import Picture

log = logging.getLogger(__name__)
MAX_REPORTED = 5  # per line of a report


class NamedDataset:
    """A public dataset.

    Args:
        name: in messages.
        data: its config group option, such as div2k_val.
        datasets_dir: folder of all datasets; paths below it enter identities by name (storage/named.py).
        source: factory of the source that reads it.
        count: images of a complete copy; null if copies differ.
        first, last, digits: file names are the numbers from first to last, zero-padded to `digits`; null otherwise.
        origin: where to download it.

    Raises:
        ValueError: if it is missing, or has another layout.
    """

    def __init__(
        self,
        *,
        name: str,
        data: str,
        datasets_dir: str,
        source: Callable[[], Source],
        count: int | None,
        origin: str,
        first: int | None = None,
        last: int | None = None,
        digits: int = 0,
    ) -> None:
        self.name, self.count, self.origin = name, count, origin
        self.expected = [] if first is None or last is None else [f"{i:0{digits}d}" for i in range(first, last + 1)]
        try:
            self._source = source()
        except ValueError as error:
            where = f"it comes from {origin}; restore-lab doctor data={data} datasets_dir={datasets_dir} checks a copy"
            raise ValueError(f"{name}: {error}; {where}") from error

    def __len__(self) -> int:
        return len(self._source)

    def keys(self) -> list[str]:
        """The keys of the source."""
        return self._source.keys()

    def header(self, index: int) -> Header | None:
        """An image's size, without decoding it."""
        return header_of(self._source, index)

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode one image or pair."""
        return self._source.read(index, epoch=epoch)


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """The check of a copy of a dataset: number of readable images; missing, extra and unreadable ones."""

    name: str
    found: int
    expected: int | None
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    unreadable: tuple[str, ...]
    problem: str = ""  # why the dataset cannot be opened

    @property
    def whole(self) -> bool:
        """Whether the copy is complete, without extra or unreadable images."""
        return not (self.missing or self.extra or self.unreadable or self.problem) and self.expected in (
            None,
            self.found,
        )

    def lines(self) -> list[str]:
        """The check as lines of text."""
        if self.problem:
            return [self.problem]
        of = "" if self.expected is None else f" of {self.expected}"
        lines = [f"{self.name}: {'whole' if self.whole else 'NOT whole'}, {self.found}{of} pictures can be read"]
        for word, names in (("missing", self.missing), ("extra", self.extra), ("unreadable", self.unreadable)):
            if names:
                more = f", ... ({len(names)} in all)" if len(names) > MAX_REPORTED else ""
                lines.append(f"  {word}: {', '.join(names[:MAX_REPORTED])}{more}")
        return lines


def checkups(node: Any) -> list[Checkup]:
    """The checks of a source's config (plain values): of each named dataset in it, or else of the source."""
    parts = list(_nodes(node)) or [node]
    found = []
    for part in parts:
        try:
            found.append(check_source(build(part)))
        except ValueError as error:
            if len(parts) == 1:
                raise
            nothing: tuple[str, ...] = ()
            name = str(part["name"])
            found.append(
                Checkup(
                    name=name,
                    found=0,
                    expected=None,
                    missing=nothing,
                    extra=nothing,
                    unreadable=nothing,
                    problem=str(error),
                )
            )
    return found


def check_source(source: Source, *, name: str = "data") -> Checkup:
    """Read every image of a source; a named dataset is compared with a complete copy."""
    keys, unreadable = source.keys(), []
    for index in range(len(source)):
        try:
            source.read(index, epoch=0)
        except BadImage as error:
            unreadable.append(str(error))
    if frames := describe_frames(take_frames()):
        log.warning("%s", frames)
    expected = source.expected if isinstance(source, NamedDataset) else []
    wanted = set(expected)
    stems = {key.rpartition("/")[2] for key in keys}
    return Checkup(
        name=source.name if isinstance(source, NamedDataset) else name,
        found=len(keys) - len(unreadable),
        expected=source.count if isinstance(source, NamedDataset) else None,
        missing=tuple(stem for stem in expected if stem not in stems),
        extra=tuple(sorted(stem for stem in stems if expected and stem not in wanted)),
        unreadable=tuple(unreadable),
    )


def dataset_paths(node: Any) -> dict[str, tuple[str, ...]]:
    """The paths below `datasets_dir` of each named dataset in a config (a list or mapping of nodes), by `data`."""
    return {
        found["data"]: tuple(path for path in _strings(found) if path.startswith(f"{found['datasets_dir']}/"))
        for found in _nodes(node)
    }


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """The nodes of named datasets."""
    if isinstance(node, Mapping) and str(node.get("_target_")).endswith(f".{NamedDataset.__name__}"):
        yield node
        return
    for entry in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _nodes(entry)


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for entry in node.values() if isinstance(node, Mapping) else ():
        yield from _strings(entry)
