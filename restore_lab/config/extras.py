"""The package's extras that install optional libraries (pyproject.toml, optional-dependencies)."""

from __future__ import annotations

import re
from importlib import metadata

DISTRIBUTION = "restore-lab"
_REQUIREMENT = re.compile(r"(?P<library>[\w.-]+).*\bextra\s*==\s*['\"](?P<extra>[\w-]+)['\"]")


def extras() -> dict[str, str]:
    """Each optional library and its first extra; empty if this package is not installed."""
    try:
        listed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, str] = {}
    for match in filter(None, map(_REQUIREMENT.fullmatch, listed)):
        found.setdefault(match["library"], match["extra"])
    needed = {match[0] for match in map(re.compile(r"[\w.-]+").match, listed) if match and ";" not in match.string}
    return {library: extra for library, extra in found.items() if library not in needed}


def advice(text: str) -> str:
    """The install hint to append to an error, unless it names an extra or a lock file itself."""
    if (
        f"{DISTRIBUTION}[" in text
        or ".lock" in text
        or not re.search(r"pip install|not installed|No module named", text)
    ):
        return ""
    for library, extra in extras().items():
        name = "[-_.]".join(map(re.escape, re.split("[-_.]", library)))
        if re.search(rf"(?<![\w-]){name}(?![\w-])", text, re.IGNORECASE):
            return f"; pip install '{DISTRIBUTION}[{extra}]'"
    return ""
