"""MS-COCO with its captions, or a random subset (SPIRE tests on 3000 images). `eval_data=coco_val`."""

from __future__ import annotations

from pathlib import Path

from restore_lab.data.image_io import Header
from restore_lab.data.sources.captions import MAX_TABLE_BYTES
from restore_lab.data.sources.folder import FolderSource
from restore_lab.random import rng
from restore_lab.storage.foreign import json_of
from restore_lab.types import Picture


class CocoSource:
    """Images of a COCO folder, each with its first caption.

    Args:
        root: the folder of the images.
        annotations: captions_*.json, with `images` (id, file_name) and `annotations` (image_id, caption).
        count: size of a random subset; null for all images.
        seed: of the draw.

    Raises:
        ValueError: if the folder or the file is missing or malformed, or there are fewer than `count` images.
    """

    def __init__(self, *, root: str | Path, annotations: str | Path, count: int | None, seed: int = 0) -> None:
        self._images = FolderSource(root, captions=None)
        self._captions = _captions(Path(annotations).expanduser())
        chosen = [index for index, key in enumerate(self._images.keys()) if key in self._captions]
        if count is not None:
            if count > len(chosen):
                raise ValueError(f"{root}: has {len(chosen)} captioned images, fewer than count={count}")
            chosen = sorted(rng(seed, "coco").permutation(chosen)[:count].tolist())
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def keys(self) -> list[str]:
        """File names without suffix."""
        keys = self._images.keys()
        return [keys[index] for index in self._chosen]

    def header(self, index: int) -> Header:
        """An image's size, without decoding it.

        Raises:
            BadImage: the file cannot be read.
        """
        return self._images.header(self._chosen[index])

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode one image; `epoch` is ignored.

        Raises:
            BadImage: the file cannot be read.
        """
        picture = self._images.read(self._chosen[index], epoch=epoch)
        return Picture(hq_HWC=picture.hq_HWC, lq_HWC=None, caption=self._captions[picture.key], key=picture.key)


def _captions(file: Path) -> dict[str, str]:
    """First captions by file name without suffix."""
    try:
        raw = json_of(file, limit=MAX_TABLE_BYTES)
        names = {image["id"]: Path(image["file_name"]).stem for image in raw["images"]}
        found: dict[str, str] = {}
        for entry in raw["annotations"]:
            found.setdefault(names[entry["image_id"]], entry["caption"].strip())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: no COCO captions ({error}); expected captions_val2017.json or its like") from error
    return found
