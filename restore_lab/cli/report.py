"""Write a table's existing results as one HTML file: the table, training curves, the images under a slider.

restore-lab report spire/table6
restore-lab report spire/table6 --seeds=3 images=200 output=table6.html
restore-lab report records=[runs/a/scores-<id>,runs/b/scores-<id>]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

POSITIONAL = ("table",)
KEY_ALIASES = {"scale": "at_scale"}  # `scale` is a config group, of the jobs' configs


def run(cfg: DictConfig) -> None:
    """Write the page; runs no jobs."""
    from restore_lab.tables.page.write import write_report

    write_report(cfg)
