"""Reads the parts of a prior once and copies them, for tests that build one prior many times."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from restore_lab.backbones.loading import diffusers_folder


@contextmanager
def read_once() -> Iterator[None]:
    """Every copy is of what was read first: a test that changes files of a prior has no use for this."""
    read, known = diffusers_folder.read_part, {}

    def remembered(cls: Any, folder: Path, *, dtype: Any) -> Any:
        key = (cls, folder, dtype)
        if key not in known:
            known[key] = read(cls, folder, dtype=dtype)
        return copy.deepcopy(known[key])

    with patch.object(diffusers_folder, "read_part", remembered):
        yield
