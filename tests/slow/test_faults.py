"""Faults done to real commands (tests/helpers/faults.py): each ends in one line, and no finished work is lost."""

from __future__ import annotations

import sys

import pytest

from tests.helpers.fault_cases import CASES, Bench
from tests.helpers.faults import CannotMount

# Each case is three commands and more, of eight seconds each.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="mounts small disks")]


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_fault_ends_in_one_line_and_loses_nothing(case, bench, tmp_path) -> None:
    try:
        row = case(bench, tmp_path)
    except CannotMount as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    assert row.happened and row.lost
