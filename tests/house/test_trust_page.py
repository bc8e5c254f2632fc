"""Every claim of docs/trust.md names the tests that attack it, and these exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.helpers.checkout import ROOT

PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
MARK = re.compile(r"`(test_\w+)::(test_\w+)`")
CLAIMS = [line for line in PAGE.splitlines() if line.startswith("- ")]


def names_in(module: str) -> set[str]:
    (file,) = ROOT.glob(f"tests/**/{module}.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim[2:50])
def test_every_claim_is_one_sentence_and_names_its_tests(claim) -> None:
    sentence = re.fullmatch(r"- (?P<said>.+?\.)(?P<marks>( `test_\w+::test_\w+`)+)", claim)
    assert sentence is not None, claim
    assert not re.search(r"[.!?] [A-Z]", sentence["said"]), "one sentence a claim"


def test_every_test_that_the_page_names_exists() -> None:
    found = MARK.findall(PAGE)
    assert len(found) >= len(CLAIMS) > 30
    for module, name in found:
        assert name in names_in(module), f"{module}::{name}"


def test_every_attack_is_named_on_the_page() -> None:
    """A guard that the page leaves out is lost at the next change."""
    named = {name for _, name in MARK.findall(PAGE)}
    of_the_schema = {
        "test_every_listed_setting_is_one_of_the_configs",
        "test_every_sampler_setting_is_accepted",
    }
    assert names_in("test_received_folder") | names_in("test_manifest_overrides") <= named | of_the_schema
