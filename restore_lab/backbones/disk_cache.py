"""What frozen encoders say, kept on disk: text embeddings (`backbone.cache_dir`), latents (`backbone.cache_latents`).

An entry is a safetensors file named by the hash of all that it depends on: the input's content, the encoder's weights,
dtype, kind of device, autocast, torch's version. What is not there is encoded alone and written whole, so that a cached
value is the one that would be computed, whatever it came together with; a damaged entry counts as none. Several
processes and runs may share a folder. When it holds more than it may, the entries not asked for longest go. Files are
deleted in no other folder than one that this cache began, empty, and marked as its own (`CACHEDIR.TAG`, which backups
leave out too).
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

from restore_lab.storage.artefact import write_bytes_atomic
from restore_lab.storage.foreign import bytes_of

MARKER = "CACHEDIR.TAG"
MARK = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of restore_lab: it deletes entries of its own here.\n"
ENTRY = re.compile(r"[0-9a-f]{40}\.safetensors")
SLACK = 16  # a process looks after the size whenever it has written this part of it


class DiskCache:
    """Tuples of tensors by what they were made of.

    Args:
        folder: of the entries.
        base: what the encoders behind them are (a fingerprint of their weights).
        max_bytes: what all entries may take, give or take a sixteenth for each process that writes.

    Raises:
        ValueError: for no room at all, or a folder that holds anything that is not this cache's.
    """

    def __init__(self, folder: str | Path, *, base: str, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"{folder}: a cache of {max_bytes} bytes holds nothing; give backbone.cache_gigabytes")
        self.folder, self.base, self.max_bytes = Path(folder).expanduser(), base, max_bytes
        _claim(self.folder)
        self._written = max_bytes  # so that the first entry sees to the size

    def of(self, what: Any, module: nn.Module, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The tensors of an input, read or made.

        Args:
            what: names the input and all settings that `make` depends on (plain values).
            module: the encoder, whose dtype and device count.
            make: encodes.
        """
        one = next(module.parameters())
        kind = one.device.type
        autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
        said = [what, self.base, str(one.dtype), kind, autocast, torch.__version__]
        name = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:40]
        file = self.folder / name[:2] / f"{name}.safetensors"
        found = _read(file)
        if found is None:
            made = make()
            self._write(file, made)
            return made
        return tuple(tensor.to(one.device) for tensor in found)

    def _write(self, file: Path, tensors: tuple[Tensor, ...]) -> None:
        data = save({str(index): tensor.detach().cpu().contiguous() for index, tensor in enumerate(tensors)})
        write_bytes_atomic(file, data)
        self._written += len(data)
        if self._written * SLACK > self.max_bytes:
            self._written = 0
            self._make_room()

    def _make_room(self) -> None:
        """Let the oldest entries go until the rest may stay; others may be at it too."""
        entries: list[tuple[int, int, Path]] = []
        if not _is_ours(self.folder):  # whoever took the mark away wants the rest to stay
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
    """Mark a folder that is new or empty.

    Raises:
        ValueError: for one that holds something and no mark.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _is_ours(folder):
        return
    others = [file.name for file in folder.iterdir() if not file.name.startswith((f".{MARKER}.", MARKER))]
    if others and not _is_ours(folder):  # of several processes another may have marked it meanwhile
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
    """A name for the exact pixels of an image."""
    plain = image_CHW.detach().cpu().contiguous()
    said = f"{tuple(plain.shape)} {plain.dtype}".encode()
    return hashlib.sha256(said + plain.view(torch.uint8).numpy().tobytes()).hexdigest()


def _read(file: Path) -> tuple[Tensor, ...] | None:
    """An entry, which then counts as used just now; None for none."""
    try:
        found = load(file.read_bytes())
        os.utime(file)
        return tuple(found[str(index)] for index in range(len(found)))
    except (OSError, SafetensorError, KeyError):
        return None
