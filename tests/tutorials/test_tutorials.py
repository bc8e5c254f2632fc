"""docs/tutorials/, followed: each page in a copy of the checkout, block by block (the convention: tests/pages.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import ROOT, Block, Followed, blocks, difference, save, there

PAGES = sorted((ROOT / "docs/tutorials").glob("*.md"))


def named(block: Block) -> str:
    """What a block is called in pytest's output."""
    return (block.file or block.body.strip().split("\n")[0])[:60]


STEPS = [
    pytest.param(page, block, id=f"{page.stem}-{number}: {named(block)}", marks=pytest.mark.xdist_group(page.stem))
    for page in PAGES
    for number, block in enumerate(blocks(page), 1)
    if block.file or block.runs
]
pytestmark = pytest.mark.tutorial


@pytest.fixture(scope="session")
def followed(tmp_path_factory) -> dict[Path, Followed | None]:
    """The copies in which pages are followed; None for a page of which a block failed."""
    return {}


@pytest.mark.parametrize(("page", "block"), STEPS)
def test_a_tutorial_is_true(page: Path, block: Block, followed, tmp_path_factory) -> None:
    if page not in followed:
        followed[page] = Followed(tmp_path_factory.mktemp(page.stem))
    copy, followed[page] = followed[page], None
    if copy is None:
        pytest.skip("a block before this one failed")
    if block.needs and not there(block.needs):
        followed[page] = copy
        pytest.skip(f"needs {block.needs}")
    if block.file:
        save(copy.folder, block)
    else:
        code, printed = copy.run(block)
        assert code == 0, printed
        wrong = difference(block.shown or "", printed)
        assert wrong is None, wrong
    followed[page] = copy
