"""The semantic slot: where the words c_s about the picture's content come from. `prompt/semantic=none|caption|...`.

A source is called with a batch and gives one text an image; the empty string is the null condition.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restore_lab.types import Batch


class NoWords:
    """No words: every text is empty."""

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return ("",) * len(batch)


class Caption:
    """The caption that came with each image (the data source's own or its sidecar's)."""

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return batch.caption


class FromFile:
    """Captions from a table: JSON, JSONL or parquet, as data/sources/captions.py reads them, by the images' keys.

    Args:
        path: the table.

    Raises:
        ValueError: for a table that cannot be read, and when called for an image that it does not name.
    """

    def __init__(self, *, path: str) -> None:
        from restore_lab.data.sources.captions import read_table

        self.path = path
        exact = read_table(Path(path).expanduser())
        short: dict[str, set[str]] = {}  # a name without its suffix, unless two captions claim it
        for name, text in exact.items():
            short.setdefault(str(PurePosixPath(name).with_suffix("")), set()).add(text)
        alone = {name: texts.pop() for name, texts in short.items() if len(texts) == 1 and name not in exact}
        self.captions = exact | alone

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        for key in batch.key:
            if key not in self.captions:
                raise ValueError(f"{self.path}: names no image {key!r}; it names {', '.join(list(self.captions)[:3])}")
        return tuple(self.captions[key] for key in batch.key)


class Fixed:
    """The same text for every image.

    Args:
        text: what to say.
    """

    def __init__(self, *, text: str) -> None:
        self.text = text

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return (self.text,) * len(batch)


class Shuffled:
    """Each image gets another image's caption from the same batch: SPIRE Table 4's "unmatched" prompts.

    The captions move on by half the batch, so that neighbours (crops of one photograph) do not swap among themselves.

    Raises:
        ValueError: for a batch of one, which has no other caption.
    """

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        if len(batch) < 2:
            raise ValueError(
                "prompt/semantic=shuffled needs batches of at least 2 images; set datamodule.eval_batch_size"
            )
        shift = len(batch) // 2
        return batch.caption[shift:] + batch.caption[:shift]
