"""Write a wandb workspace and a report for a table whose jobs ran with logger=wandb.

restore-lab table spire/table6 'overrides=[logger=wandb]'
restore-lab dashboard spire/table6
restore-lab dashboard spire/table6 output=dashboard.json
"""

from __future__ import annotations

from typing import Any

POSITIONAL = ("table",)
RENAMED = {"scale": "at_scale"}  # `scale` is a config group, of the jobs' configs


def run(cfg: Any) -> None:
    """Print where workspace and report are, or their JSON, or the file that it went to."""
    from restore_lab.tables.dashboard import run as dashboard

    print(dashboard(cfg))
