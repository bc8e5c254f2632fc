"""Taps, parameters and FLOPs of a composition, without loading any weights.

restore-lab describe method=spire backbone=sd15
restore-lab describe method=spire backbone=sd15 adaptor/fusion=modulation_decoder format=json
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """Print the facts as text or JSON."""
    from restore_lab.inspection.describe import describe, render_description

    facts = describe(cfg)
    print(json.dumps(facts) if cfg.format == "json" else render_description(facts))
