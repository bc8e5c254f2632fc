"""Train a method's adaptor, or a shipped prior, stage by stage; the same command resumes.

restore-lab train method=spire scale=tiny
restore-lab train experiment=priors/tiny_sd
"""

from __future__ import annotations

from typing import Any


def run(cfg: Any) -> None:
    """Train, and print the folder with the result."""
    from restore_lab.methods.fit import fit

    print(f"weights: {fit(cfg)}")
