"""The semantic slot: sources of the text prompt c_s, the image's content. `prompt/semantic=none|caption|...`.

A source maps a batch to one text per image; the empty string is the null condition.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restore_lab.types import Batch


class NoText:
    """The empty string for every image."""

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return ("",) * len(batch)


class Caption:
    """Each image's caption from its data source (its own or a sidecar file's)."""

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return batch.caption


class FromFile:
    """Captions from a table (JSON, JSONL or parquet, read by data/sources/captions.py) by the images' keys.

    Args:
        path: the table.

    Raises:
        ValueError: for a table that cannot be read, and at a call for an image without an entry.
    """

    def __init__(self, *, path: str) -> None:
        from restore_lab.data.sources.captions import read_table

        self.path = path
        exact = read_table(Path(path).expanduser())
        short: dict[str, set[str]] = {}  # by name without suffix
        for name, text in exact.items():
            short.setdefault(str(PurePosixPath(name).with_suffix("")), set()).add(text)
        unique = {name: texts.pop() for name, texts in short.items() if len(texts) == 1 and name not in exact}
        self.captions = exact | unique

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        for key in batch.key:
            if key not in self.captions:
                raise ValueError(f"{self.path}: names no image {key!r}; it names {', '.join(list(self.captions)[:3])}")
        return tuple(self.captions[key] for key in batch.key)


class FixedText:
    """The same text for every image.

    Args:
        text: the prompt.
    """

    def __init__(self, *, text: str) -> None:
        self.text = text

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return (self.text,) * len(batch)


class ShuffledCaption:
    """Each image gets another image's caption from the same batch: SPIRE Table 4's "unmatched" prompts.

    Captions are rotated by half the batch, so that neighbours, often crops of one photograph, do not exchange theirs.

    Raises:
        ValueError: for a batch of one image.
    """

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        if len(batch) < 2:
            raise ValueError(
                "prompt/semantic=shuffled needs batches of at least 2 images; set datamodule.eval_batch_size"
            )
        shift = len(batch) // 2
        return batch.caption[shift:] + batch.caption[:shift]
