"""The pages: links and pictures exist, commands name verbs, groups and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from restore_lab.cli.errors import groups
from restore_lab.cli.main import verbs
from restore_lab.config.conf_dir import conf_dir
from tests.helpers.checkout import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "restore_lab/assets").glob("*/README.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.replace("`", "")).strip().lower().replace(" ", "-") for title in titles)
    return set(plain)


@pytest.mark.parametrize("name", NAMES)
def test_every_link_has_a_target(name) -> None:
    page = ROOT / name
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{name}: {link}"
        assert target.is_relative_to(ROOT), f"{name}: {link}"
        assert not anchor or anchor in anchors(target), f"{name}: {link}"


def commands(page: Path) -> list[list[str]]:
    """The `restore-lab` commands in a page's blocks, as words."""
    found = []
    for block in re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("restore-lab "):
                found.append(shlex.split(line, comments=True)[1:])
    return found


def test_the_pages_have_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 50


@pytest.mark.parametrize("name", [name for name in NAMES if commands(ROOT / name)])
def test_commands_name_what_exists(name) -> None:
    """Verbs, and of every group=option both, the user's own (my_...) aside."""
    known = verbs()
    options_of = groups([conf_dir()])
    for words in commands(ROOT / name):
        assert words[0] in known or words[0].startswith("<"), f"{name}: {words}"
        if any(word.startswith("--config-dir") for word in words):
            continue
        for word in words[1:]:
            group, equals, options = word.partition("=")
            if (
                not equals
                or group not in options_of
                or group.startswith(("experiment", "hydra/"))
                or set(options) & set("<|.{")
            ):
                continue
            for option in options.strip("[]").split(","):
                assert option in ("null", *options_of[group]), f"{name}: {word}"


FILES = [
    path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts[len(ROOT.parts)]
]


@pytest.mark.parametrize("name", NAMES)
def test_every_code_file_that_a_page_names_exists(name) -> None:
    """`trunk/unet.py` or `tests/house/test_docs.py`; a package of the reader's own is my_lab."""
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)*\w+\.py)`", text))
    mine = {file for file in named if file.startswith("my_lab/") or f"`my_lab/{file}`" in text}
    gone = {file for file in named - mine if not any(f"/{path}".endswith(f"/{file}") for path in FILES)}
    assert gone == set(), f"{name}: no such file"


def test_every_file_that_a_docstring_names_exists() -> None:
    """In docstrings and comments of the package."""
    gone = []
    for path in (ROOT / "restore_lab").rglob("*.py"):
        for file in set(re.findall(r"(?<![\w./*{}<])((?:[a-z_]+/)*[a-z_]\w*\.py)\b", path.read_text(encoding="utf-8"))):
            if not file.startswith("mypkg/") and not any(f"/{other}".endswith(f"/{file}") for other in FILES):
                gone.append(f"{path.name}: {file}")
    assert gone == []
