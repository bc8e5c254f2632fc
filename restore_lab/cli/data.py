"""Fill a folder with images of negative quality, for SUPIR's training.

restore-lab data output=negatives count=1000
restore-lab data output=negatives data=folder data.root=photos backbone=sdxl count=100000
"""

from __future__ import annotations

from typing import Any


def run(cfg: Any) -> None:
    """Make what is missing and say where it is."""
    from restore_lab.methods.negatives import fill

    print(f"{cfg.count} images in {fill(cfg)}; train with data=mixed data.sources.negatives.root={cfg.output}")
