"""Make a table of a paper: plan it, run what is missing, print measured beside published.

restore-lab table spire/table6 --plan
restore-lab table spire/table6 scale=tiny --seeds=3 --format=latex
restore-lab table --all --plan
"""

from __future__ import annotations

from typing import Any

POSITIONAL = ("table...",)
RENAMED = {"scale": "at_scale"}  # `scale` is a config group, of the jobs' configs


def run(cfg: Any) -> None:
    """Print the plan, or make what is missing and print the tables; failures are listed and end with exit code 1."""
    from restore_lab.tables.table import run as make

    if make(cfg):
        raise SystemExit(1)
