"""Recognises a checkpoint's layout by its keys, never by its file name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from restore_lab.importing.checkpoint import Checkpoint, checkpoint_files, read_checkpoint
from restore_lab.importing.controlnet import CONTROLNET_LAYOUT, DIFFBIR_LAYOUT
from restore_lab.importing.instantir import ADAPTER_LAYOUT, AGGREGATOR_LAYOUT
from restore_lab.importing.layout import Layout
from restore_lab.importing.lora import LORA_LAYOUT, PREVIEWER_LAYOUT
from restore_lab.importing.stablesr import CFW_LAYOUT
from restore_lab.importing.supir import SUPIR_LAYOUT

LAYOUTS = (
    SUPIR_LAYOUT,
    ADAPTER_LAYOUT,
    AGGREGATOR_LAYOUT,
    PREVIEWER_LAYOUT,
    DIFFBIR_LAYOUT,
    CFW_LAYOUT,
    CONTROLNET_LAYOUT,
    LORA_LAYOUT,
)


@dataclass(frozen=True, kw_only=True)
class RecognisedCheckpoint:
    """A checkpoint with its layout, its keys in the layout's spelling."""

    layout: Layout
    source: Checkpoint


def recognise(places: Sequence[str]) -> list[RecognisedCheckpoint]:
    """The checkpoints at some paths.

    Raises:
        ValueError: for an unknown layout, or for checkpoints of different networks.
    """
    found = [
        _recognised(read_checkpoint(file)) for place in places for file in checkpoint_files(Path(place).expanduser())
    ]
    words = {one.layout.words for one in found}
    parts = [part for one in found for part in one.layout.parts]
    if len(words) > 1 or len(parts) != len(set(parts)):
        names = ", ".join(f"{one.source.file.name} ({one.layout.title})" for one in found)
        raise ValueError(f"{names}: these are not parts of one network; import them one by one")
    return found


def words_of(found: Sequence[RecognisedCheckpoint]) -> list[str]:
    """The overrides that compose the checkpoints' network."""
    return list(
        dict.fromkeys(word for one in found for word in (*one.layout.words, *one.layout.more_words(one.source)))
    )


def _recognised(source: Checkpoint) -> RecognisedCheckpoint:
    for layout in LAYOUTS:
        keys = {layout.tidy(key): key for key in source.tensors}
        if layout.matches(keys):
            tidied = {key: source.tensors[raw] for key, raw in keys.items()}
            if len(tidied) != len(source.tensors):
                key, raw = next((layout.tidy(key), key) for key in source.tensors if keys[layout.tidy(key)] != key)
                raise ValueError(
                    f"{source.file}: two of its keys name one tensor of {layout.title}, {raw} and {keys[key]}; import "
                    "a file of one set"
                )
            return RecognisedCheckpoint(
                layout=layout, source=Checkpoint(file=source.file, tensors=tidied, settings=source.settings)
            )
    first = ", ".join(list(source.tensors)[:3])
    known = ", ".join(layout.title for layout in LAYOUTS)
    raise ValueError(
        f"{source.file}: not recognised by its {len(source.tensors)} keys (the first: {first}); known are {known}"
    )
