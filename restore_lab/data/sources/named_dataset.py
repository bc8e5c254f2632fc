"""Public datasets under their own names and layouts: `eval_data=realphoto60`, `restore-lab doctor data=realphoto60`.

Each is a yaml that wraps a source and says what a whole copy holds; pooled.py and mixed.py put several together. The
folders lie under `datasets_dir` (a setting, or the environment's RESTORE_LAB_DATASETS); nothing is downloaded. A copy
that is not there is one line that says which folder is expected and where the dataset comes from.
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
SHOWN = 5


class Known:
    """A dataset by name.

    Args:
        name: its name, for what is said of it.
        data: its config: `data=div2k_val`.
        datasets_dir: the folder of all datasets; paths below it enter identities by name (storage/named.py).
        source: builds the source that reads it.
        count: pictures of a whole copy; null where copies differ.
        first, last, digits: names are numbers with so many digits, from first to last; null where they are not.
        origin: where it comes from.

    Raises:
        ValueError: if it is not there, or is laid out otherwise.
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
        """The source's."""
        return self._source.keys()

    def header(self, index: int) -> Header | None:
        """The source's."""
        return header_of(self._source, index)

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """The source's."""
        return self._source.read(index, epoch=epoch)


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What a copy of a dataset holds: pictures that can be read, and what is missing, extra or unreadable."""

    name: str
    found: int
    expected: int | None
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    unreadable: tuple[str, ...]
    problem: str = ""  # why it cannot be looked into at all

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, extra or unreadable."""
        return not (self.missing or self.extra or self.unreadable or self.problem) and self.expected in (
            None,
            self.found,
        )

    def says(self) -> list[str]:
        """The same in lines."""
        if self.problem:
            return [self.problem]
        of = "" if self.expected is None else f" of {self.expected}"
        lines = [f"{self.name}: {'whole' if self.whole else 'NOT whole'}, {self.found}{of} pictures can be read"]
        for word, names in (("missing", self.missing), ("extra", self.extra), ("unreadable", self.unreadable)):
            if names:
                more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
                lines.append(f"  {word}: {', '.join(names[:SHOWN])}{more}")
        return lines


def checkups(node: Any) -> list[Checkup]:
    """The checkup of a source's config (plain values): of each known dataset in it, or of whatever else it is."""
    parts = list(_nodes(node)) or [node]
    found = []
    for part in parts:
        try:
            found.append(checkup(build(part)))
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


def checkup(source: Source, *, name: str = "data") -> Checkup:
    """Read every picture of a source; of a known dataset say what differs from a whole copy."""
    keys, unreadable = source.keys(), []
    for index in range(len(source)):
        try:
            source.read(index, epoch=0)
        except BadImage as error:
            unreadable.append(str(error))
    if frames := describe_frames(take_frames()):
        log.warning("%s", frames)
    expected = source.expected if isinstance(source, Known) else []
    wanted = set(expected)
    stems = {key.rpartition("/")[2] for key in keys}
    return Checkup(
        name=source.name if isinstance(source, Known) else name,
        found=len(keys) - len(unreadable),
        expected=source.count if isinstance(source, Known) else None,
        missing=tuple(stem for stem in expected if stem not in stems),
        extra=tuple(sorted(stem for stem in stems if expected and stem not in wanted)),
        unreadable=tuple(unreadable),
    )


def named(node: Any) -> dict[str, tuple[str, ...]]:
    """The known datasets of a config (a list or mapping of nodes) by `data`, with their paths below `datasets_dir`."""
    return {
        known["data"]: tuple(path for path in _strings(known) if path.startswith(f"{known['datasets_dir']}/"))
        for known in _nodes(node)
    }


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """The nodes of known datasets."""
    if isinstance(node, Mapping) and str(node.get("_target_")).endswith(f".{Known.__name__}"):
        yield node
        return
    for entry in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _nodes(entry)


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for entry in node.values() if isinstance(node, Mapping) else ():
        yield from _strings(entry)
