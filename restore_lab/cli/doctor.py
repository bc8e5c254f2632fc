"""Check what a run needs before it is queued: a dataset's copy, whole or not.

restore-lab doctor data=realphoto60
restore-lab doctor data=div2k_val datasets_dir=/data
"""

from __future__ import annotations

from typing import Any


def run(cfg: Any) -> None:
    """Print what was found, missing, extra and unreadable; exit code 1 if the copy is not whole."""
    if cfg.get("data") is None:
        raise ValueError("name what to check: restore-lab doctor data=NAME")
    from restore_lab.build import build
    from restore_lab.data.known import checkup

    found = checkup(build(cfg.data))
    print("\n".join(found.says()))
    if not found.whole:
        raise SystemExit(1)
