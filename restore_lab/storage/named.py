"""Things in a config that count by a name of their own, wherever they lie and whether or not they are there yet.

A named dataset (a node with `datasets_dir`) counts by its paths below that folder: nobody hashes LSDIR's 250 GB for
each job, and a plan is the same on a laptop without the data. `restore-lab doctor data=NAME` says if a copy is whole.
A made thing ("made:captions", conf/sizes) is an artefact that a table makes first. Planned, it is
"made:FOLDER/captions-0123456789abcdef/captions.json" and counts by the last folder's name, which is its identity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MADE = "made:"
_ARTEFACT = re.compile(r"[^/]+-[0-9a-f]{16}(/.*)?$")


def below_datasets(value: Any, folder: str) -> Any:
    """A dataset's node with "dataset:PATH" in the place of each path below the folder of all datasets."""
    if isinstance(value, Mapping):
        return {key: below_datasets(entry, folder) for key, entry in value.items() if key != "datasets_dir"}
    if isinstance(value, str) and value.startswith(f"{folder}/"):
        return f"dataset:{value.removeprefix(f'{folder}/')}"
    return value


def made_name(text: str) -> str:
    """What a made thing counts by: "made:captions-0123456789abcdef/captions.json"; one not planned yet: its name."""
    found = _ARTEFACT.search(text)
    return MADE + found.group() if found else text


def made_place(text: str) -> str:
    """Where a made thing lies; a path that is none comes back.

    Raises:
        ValueError: for one that nothing has made.
    """
    place = text.removeprefix(MADE)
    if place != text and not _ARTEFACT.search(place):
        raise ValueError(
            f"{text}: is made by restore-lab table; by hand: see makes.{place} of --cfg job, then give its path here"
        )
    return place
