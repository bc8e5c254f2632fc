"""These tests want torch-xla, which wants a torch of its own: `make test-xla`. Elsewhere they are not collected."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("torch_xla") else ["test_*.py"]

os.environ.setdefault("PJRT_DEVICE", "CPU")
# Toy programs run in no time however they are compiled; compiling them is what takes long.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")


@pytest.fixture(scope="session", autouse=True)
def other_kernels() -> None:
    """XLA's own: what is compared here is counted in programs too."""
