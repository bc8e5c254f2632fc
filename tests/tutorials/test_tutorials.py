"""docs/tutorials/, followed: each page in a copy of the checkout, block by block (see tests/helpers/doc_pages.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.doc_pages import Followed, blocks, difference, save, there

PAGES = sorted((ROOT / "docs/tutorials").glob("*.md"))
pytestmark = pytest.mark.tutorial


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_prints_what_its_page_shows(page: Path, tmp_path) -> None:
    """What is said after a block that needs something absent (an XLA environment) is followed all the same."""
    copy = Followed(tmp_path / "copy")
    for number, block in enumerate(blocks(page), 1):
        if block.needs and not there(block.needs):
            continue
        if block.file:
            save(copy.folder, block)
        elif block.runs:
            code, printed = copy.run(block)
            assert code == 0, f"{page.name}, block {number}: {block.body}\n{printed}"
            wrong = difference(block.shown or "", printed)
            assert wrong is None, f"{page.name}, block {number}: {block.body}\n{wrong}"
