"""Open a page in the browser: drop a photograph, choose a model, move its sliders, compare.

restore-lab demo
restore-lab demo runs_dir=runs port=8000
restore-lab demo device=cuda overrides=['scale=full']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """Serve the page until it is interrupted."""
    from restore_lab.demo.page import serve

    serve(cfg)
