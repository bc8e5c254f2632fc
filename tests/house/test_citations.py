"""Every section, equation, algorithm, figure and table cited of the five papers exists (papers.json).

A citation belongs to the work named last before it in its sentence; else to the paper that its Markdown heading or its
file is named after; else to the work named last in the file. Citations of other works are not looked up.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers.checkout import ROOT

PAPERS: dict[str, Any] = json.loads((ROOT / "tests" / "house" / "papers.json").read_text(encoding="utf-8"))
PLACES = (
    "restore_lab/**/*.py",
    "conf/**/*.yaml",
    "experiments/**/*.yaml",
    "docs/*.md",
    "docs/methods/*.md",
    "docs/results/*.md",
    "tests/unit/**/*.py",
    "benchmarks/*.py",
)
# An author and year, a repository or a page: "Esser et al.", "Ho & Salimans", "StableSR".
ELSEWHERE = r"[A-Z]\w+ (?:et al\.|(?:&|and) [A-Z]\w+)|Real-ESRGAN|StableSR|OSEDiff|ControlNet"
OWN = {name: paper for paper, facts in PAPERS.items() for name in facts["names"]}
NAME = re.compile("|".join([*map(re.escape, OWN), ELSEWHERE]))
STOP = re.compile(r"(?<!al)\.\s+(?=[A-Z])|\n\s*\n|\n[#|-]|\"{3}")  # where a sentence, a row or a paragraph ends
NUMBER = r"(?:\d+(?:\.\d+)*|[IVX]+\b(?:-[A-Z]\b)?)[a-d]?"
CITED = re.compile(
    rf"\b(?P<kind>section|sec|eq|equation|table|fig|figure|algorithm)s?\.?\s+"
    rf"(?P<numbers>\(?{NUMBER}\)?(?:(?:,? and |, )\(?{NUMBER}\)?(?![\d.]*[\w-]))*)",
    re.IGNORECASE,
)
AROUND = 130  # characters on either side of a section's number that say what it is cited for
KINDS = {"sec": "section", "eq": "equation", "fig": "figure"}


class Citation(NamedTuple):
    """Where a paper is cited, what of it, and the words around."""

    place: str
    paper: str | None
    kind: str
    number: str
    around: str = ""


def work(text: str, at: int, path: Path) -> str | None:
    """The paper that a citation at a place in a text belongs to; None for other works and for none."""
    named = [(m.start(), m.group()) for m in NAME.finditer(text, 0, at)]
    if named and named[-1][0] >= max((stop.end() for stop in STOP.finditer(text, 0, at)), default=0):
        return OWN.get(named[-1][1])
    heading = re.findall(r"^#+ (.*)$", text[:at], flags=re.MULTILINE) if path.suffix == ".md" else []
    found = [OWN[name] for name in OWN if heading and name in heading[-1]]
    found += [paper for paper in PAPERS if re.search(rf"(^|[/_]){paper}([/_.]|$)", path.as_posix())]
    return found[0] if found else OWN.get(named[-1][1]) if named else None


def citations() -> Iterator[Citation]:
    for pattern in PLACES:
        for file in sorted(set(ROOT.glob(pattern)) - {Path(__file__).resolve()}):
            text, path = file.read_text(encoding="utf-8"), file.relative_to(ROOT)
            for found in CITED.finditer(text):
                kind = KINDS.get(found["kind"].lower(), found["kind"].lower())
                line = text.count("\n", 0, found.start()) + 1
                for number in re.findall(NUMBER, found["numbers"]):
                    around = text[max(0, found.start() - AROUND) : found.end() + AROUND]
                    yield Citation(f"{path}:{line}", work(text, found.start(), path), kind, number, around)


def there(citation: Citation) -> bool:
    """Whether the paper has what is cited and, of a section, whether the words around are about what stands in it."""
    facts = PAPERS[citation.paper or ""]
    topic = facts["topics"].get(citation.number, "") if citation.kind == "section" else ""
    if not re.search(topic, citation.around):
        return False
    if citation.kind in ("section", "table"):
        return citation.number in facts[f"{citation.kind}s"]
    digits = re.sub(r"[a-d]$", "", citation.number)
    return digits.isdecimal() and 1 <= int(digits) <= facts[f"{citation.kind}s"]


def test_every_citation_exists_in_its_paper() -> None:
    ours = [citation for citation in citations() if citation.paper is not None]
    assert [citation[:4] for citation in ours if not there(citation)] == []
    counts = Counter((citation.paper, citation.kind) for citation in ours)
    assert all(counts[paper, "section"] >= 4 for paper in PAPERS)  # the search finds them


@pytest.mark.parametrize(
    ("text", "name", "paper", "wrong"),
    [
        ("SUPIR (Yu et al. 2024, section 3.4 and Algorithm 1)", "x.py", "supir", ["3.4"]),
        ("SPIRE section 3.4, an encoder: see Esser et al., section 9.1", "x.py", "spire", []),
        ("A sampler. `sampler=edm` (SUPIR, Algorithm 1; Karras et al. 2022, Algorithm 2)", "x.py", "supir", []),
        ("The trunk of SUPIR (section 3.3) is a trimmed copy of the encoder.", "x.py", "supir", ["3.3"]),
        ("The words of it (section 3.9).", "conf/prompt/quality/dra.yaml", "dra", ["3.9"]),
        ("# InstantIR\nas Eqs. 7 and 8 say", "docs/x.md", "instantir", ["8"]),
        ("Diff-Restorer's decoder, section III-D, Tables II and VI", "x.py", "diff_restorer", ["VI"]),
    ],
)
def test_a_wrong_citation_is_found(text, name, paper, wrong) -> None:
    path = Path(name)
    found = [
        Citation(name, work(text, m.start(), path), KINDS.get(m["kind"].lower(), m["kind"].lower()), number, text)
        for m in CITED.finditer(text)
        for number in re.findall(NUMBER, m["numbers"])
    ]
    assert [c.number for c in found if c.paper == paper and not there(c)] == wrong
