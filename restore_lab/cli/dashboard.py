"""Write a wandb workspace and a report for a table whose jobs ran with logger=wandb.

restore-lab table spire/table6 'overrides=[logger=wandb]'
restore-lab dashboard spire/table6
restore-lab dashboard spire/table6 output=dashboard.json
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

POSITIONAL = ("table",)
KEY_ALIASES = {"scale": "at_scale"}  # `scale` is a config group, of the jobs' configs


def run(cfg: DictConfig) -> None:
    """Print the addresses of workspace and report, their JSON, or the path of the written file."""
    from restore_lab.tables.dashboard import publish_dashboard

    print(publish_dashboard(cfg))
