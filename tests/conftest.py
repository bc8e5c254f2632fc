"""Settings and fixtures of all tests: one thread per process, no network, and the toy prior on disk."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

# Toy tensors gain nothing from threads, and `make test` runs one process a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers and the commands that tests start import torch, each: the first leaves its bytecode to the others.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def other_kernels() -> Iterator[None]:
    """A test that asks for the same bits of two paths fails here, not only on another processor."""
    from tests.helpers.rounding import as_elsewhere

    with as_elsewhere():
        yield


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """Interpolations are parsed once: OmegaConf's grammar is slow, and thousands of configs have the same ones."""
    from omegaconf import base

    with patch.object(base, "parse", functools.lru_cache(maxsize=None)(base.parse)):
        yield


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """What imports and caches hold is set aside: the collector walked over a million objects, again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let what was set aside end as ever."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SD-shaped prior in diffusers format; do not write into it."""
    from tests.helpers.toy_priors import toy_unet_folder

    return toy_unet_folder(tmp_path_factory.mktemp("prior"))
