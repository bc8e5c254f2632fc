"""Faults done to real commands (tests/faults.py): each ends in one line, and nothing reported as done is lost."""

from __future__ import annotations

import sys

import pytest

from tests.fault_cases import CASES, Bench
from tests.faults import CannotMount

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and mounts small disks")
# The others are the slow ring's, and the table's.
FAST = ("train_sigterm", "train_disk_full", "restore_disk_full", "cache_corrupted_entry")
MARKED = [case if case.__name__ in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("case", MARKED, ids=lambda case: case.__name__)
def test_fault(case, bench, tmp_path) -> None:
    try:
        row = case(bench, tmp_path)
    except CannotMount as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    assert row.happened and row.lost
