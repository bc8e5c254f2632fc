"""A disk cache of frozen encoders' outputs: text embeddings (`backbone.cache_dir`), latents (`backbone.cache_latents`).

An entry is a safetensors file named by the hash of everything that it depends on: the input, the encoder's weights,
dtype, device type, autocast and torch's version. Inputs are encoded one by one, so an entry does not depend on a batch;
entries are written atomically, and a corrupt entry counts as missing. Several processes and runs may share a folder.
The least recently used entries are deleted when the cache is full. Files are only deleted in a folder that this cache
created or found empty, and marked (`CACHEDIR.TAG`, which backup programs skip).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.foreign import bytes_of

MARKER = "CACHEDIR.TAG"
MARK = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of restore_lab: it deletes entries of its own here.\n"
ENTRY = re.compile(r"[0-9a-f]{40}\.safetensors")
SLACK = 16  # a process checks the cache's size after writing a sixteenth of it


class DiskCache:
    """Tuples of tensors on disk, by input and encoder.

    Args:
        folder: folder of the entries.
        base: fingerprint of the encoders' weights.
        max_bytes: maximum size, exceeded by at most a sixteenth per writing process.

    Raises:
        ValueError: for a size below 1, or a folder with files that are not this cache's.
    """

    def __init__(self, folder: str | Path, *, base: str, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"{folder}: a cache of {max_bytes} bytes holds nothing; give backbone.cache_gigabytes")
        self.folder, self.base, self.max_bytes = Path(folder).expanduser(), base, max_bytes
        _claim(self.folder)
        self._written = max_bytes  # check the size after the first entry

    def get(self, what: Any, module: nn.Module, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The tensors of an input, from the cache or else from `make`.

        Args:
            what: the input and all settings that `make` depends on, as JSON values.
            module: the encoder, whose dtype and device are part of the key.
            make: encodes the input.
        """
        one = next(module.parameters())
        kind = one.device.type
        autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
        key = [what, self.base, str(one.dtype), kind, autocast, torch.__version__]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:40]
        file = self.folder / name[:2] / f"{name}.safetensors"
        cached = _read(file)
        if cached is None:
            tensors = make()
            self._write(file, tensors)
            return tensors
        return tuple(tensor.to(one.device) for tensor in cached)

    def _write(self, file: Path, tensors: tuple[Tensor, ...]) -> None:
        data = save({str(index): tensor.detach().cpu().contiguous() for index, tensor in enumerate(tensors)})
        write_bytes_atomic(file, data)
        self._written += len(data)
        if self._written * SLACK > self.max_bytes:
            self._written = 0
            self._make_room()

    def _make_room(self) -> None:
        """Delete the least recently used entries until the rest fit; other processes may do the same."""
        entries: list[tuple[int, int, Path]] = []
        if not _is_ours(self.folder):  # without the marker nothing is deleted
            return
        for file in self.folder.glob("[0-9a-f][0-9a-f]/*.safetensors"):
            if not ENTRY.fullmatch(file.name) or file.parent.is_symlink():
                continue
            with contextlib.suppress(FileNotFoundError):
                stat = file.lstat()
                entries.append((stat.st_mtime_ns, stat.st_size, file))
        total = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries):
            if total <= self.max_bytes:
                break
            file.unlink(missing_ok=True)
            total -= size


def _claim(folder: Path) -> None:
    """Mark a new or empty folder as a cache.

    Raises:
        ValueError: for a folder with files and without the marker.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _is_ours(folder):
        return
    others = [file.name for file in folder.iterdir() if not file.name.startswith((f".{MARKER}.", MARKER))]
    if others and not _is_ours(folder):  # checked again, because another process may have marked it
        raise ValueError(
            f"backbone.cache_dir={folder} holds other files, and a full cache deletes; give a new or an empty folder"
        )
    write_bytes_atomic(folder / MARKER, MARK)


def _is_ours(folder: Path) -> bool:
    try:
        return bytes_of(folder / MARKER, within=folder) == MARK
    except (OSError, ValueError):
        return False


def content(image_CHW: Tensor) -> str:
    """A hash of an image's shape, dtype and pixels."""
    plain = image_CHW.detach().cpu().contiguous()
    header = f"{tuple(plain.shape)} {plain.dtype}".encode()
    return hashlib.sha256(header + plain.view(torch.uint8).numpy().tobytes()).hexdigest()


def _read(file: Path) -> tuple[Tensor, ...] | None:
    """An entry, marked as most recently used; None if it is missing or corrupt."""
    try:
        tensors = load(file.read_bytes())
        os.utime(file)
        return tuple(tensors[str(index)] for index in range(len(tensors)))
    except (OSError, SafetensorError, KeyError):
        return None
