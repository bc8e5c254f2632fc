"""Make a paper's table: plan it, run the missing jobs, print measured and published numbers.

restore-lab table spire/table6 --plan
restore-lab table spire/table6 scale=tiny --seeds=3 --format=latex
restore-lab table --all --plan
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

POSITIONAL = ("table...",)
KEY_ALIASES = {"scale": "at_scale"}  # `scale` is a config group, of the jobs' configs


def run(cfg: DictConfig) -> None:
    """Print the plan, or run the missing jobs and print the tables; failures are listed, with exit code 1."""
    from restore_lab.tables.table import make_tables

    if make_tables(cfg):
        raise SystemExit(1)
