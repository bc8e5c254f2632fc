"""Paths in a config that enter an identity by name, not by content; they need not exist yet.

A named dataset (a node with `datasets_dir`) enters by its paths below that folder: LSDIR's 250 GB are not hashed per
job, and a plan is the same on a laptop without the data. `restore-lab doctor data=NAME` checks a copy. A prerequisite
("made:captions", conf/method/*/full.yaml) is an artefact that a table makes first. In a plan it is
"made:FOLDER/captions-0123456789abcdef/captions.json" and enters by the last folder's name, which holds its identity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PREREQUISITE = "made:"
_ARTEFACT = re.compile(r"[^/]+-[0-9a-f]{16}(/.*)?$")


def below_datasets(value: Any, folder: str) -> Any:
    """A dataset's node with "dataset:PATH" in place of each path below the datasets folder."""
    if isinstance(value, Mapping):
        return {key: below_datasets(entry, folder) for key, entry in value.items() if key != "datasets_dir"}
    if isinstance(value, str) and value.startswith(f"{folder}/"):
        return f"dataset:{value.removeprefix(f'{folder}/')}"
    return value


def prerequisite_name(text: str) -> str:
    """A prerequisite's name in an identity: "made:captions-0123456789abcdef/captions.json"; unplanned, its own name."""
    found = _ARTEFACT.search(text)
    return PREREQUISITE + found.group() if found else text


def prerequisite_path(text: str) -> str:
    """The path of a prerequisite; any other path unchanged.

    Raises:
        ValueError: for a prerequisite that has not been made.
    """
    place = text.removeprefix(PREREQUISITE)
    if place != text and not _ARTEFACT.search(place):
        raise ValueError(
            f"{text}: is made by restore-lab table; by hand: see makes.{place} of --cfg job, then give its path here"
        )
    return place
