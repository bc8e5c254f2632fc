"""Following pages (tests/helpers/doc_pages.py); every tutorial shows what its commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.doc_pages import blocks, difference, save, seen, there

TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
PAGE = """\
`my_lab/one.py`, a file:

```python
ONE = 1
```

```bash
echo "1.00 s"
```

```text
1.01 s
```

Needs `no_such_thing`, which is elsewhere:

```bash
no_such_thing
```

`photo.jpg` is a photograph. This tells so:

```python
print(1)
```

Words between.

```text
not an output
```
"""


def test_a_page_is_split_into_blocks(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    file, command, needy, code, other = blocks(page)
    assert (file.file, file.body, file.runs) == ("my_lab/one.py", "ONE = 1\n", False)
    assert (command.body, command.shown, command.runs) == ('echo "1.00 s"\n', "1.01 s\n", True)
    assert (needy.needs, needy.shown, there("no_such_thing")) == ("no_such_thing", None, False)
    assert (code.runs, code.shown) == (True, None)
    assert (other.language, other.runs) == ("text", False)
    save(tmp_path, file)
    assert (tmp_path / "my_lab/one.py").read_text() == "ONE = 1\n"


def test_a_page_needs_paths_programs_and_modules() -> None:
    assert there("pyproject.toml") and there("bash") and there("torch")


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("one\ntwo", "one\ntwo\n"),
        ("one\n...\nfour", "one\ntwo\nthree\nfour"),
        ("one\n...", "one"),
        ("...\nfour\n...", "one\nfour"),
        ("done in ... s", "done in 12 s"),
        ("| psnr | 20.65 (0.61) |\n|---|", "| psnr   | 20.66 (0.60) |\n|-------|"),
        ("+0.0012 [-0.001, +0.003]", "+0.0013 [-0.003, +0.002]"),
        ("pyiqa 0.1.16", "pyiqa 0.1.16"),
        ("lr 1.0e-4", "lr 1.01e-4"),
    ],
)
def test_equal_outputs_do_not_differ(shown, printed) -> None:
    assert difference(shown, printed) is None


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("one", "one\ntwo"),
        ("one\ntwo", "one"),
        ("one\n...\nfour", "one\ntwo"),
        ("two\n...\none", "one\ntwo"),
        ("psnr 20.65", "psnr 21.65"),
        ("psnr 20.65", "ssim 20.65"),
        ("+0.5012", "-0.5012"),
        ("n = 56", "n = 57"),
        ("pyiqa 0.1.16", "pyiqa 0.1.17"),
        ("done in ... s", "done"),
        ("", "a warning"),
    ],
)
def test_unequal_outputs_differ(shown, printed) -> None:
    assert difference(shown, printed) is not None


def test_a_line_written_over_shows_its_last_state() -> None:
    assert seen("  0%\r 50%\r100% done\n     \rpath\r\n") == "100% done\npath"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_tutorial_shows_output(page: Path) -> None:
    """Output follows the command that prints it, and is not only dots, which would match anything."""
    for block in blocks(page):
        assert block.language != "text", block
        if block.shown is not None:
            assert block.runs and any(line.strip(" .") for line in block.shown.splitlines()), block
