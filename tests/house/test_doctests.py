"""The examples in docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.helpers.checkout import PACKAGE

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_the_restorer_has_an_example() -> None:
    assert "restore_lab.inference.restorer" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_every_docstring_example_passes(name) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
