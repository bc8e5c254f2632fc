"""Train a method's adaptor, or a shipped prior, stage by stage; the same command resumes.

restore-lab train method=spire scale=tiny
restore-lab train experiment=priors/tiny_sd
restore-lab train -m adaptor=spire,controlnet optimisation.lr=1e-4,5e-4
"""

from __future__ import annotations

from typing import Any


def run(cfg: Any) -> None:
    """Train, and print the folder with the result; a sweep's jobs each in a process group of their own."""
    from restore_lab.methods.fit import fit
    from restore_lab.tables import sweep

    print(f"weights: {sweep.train(cfg) if sweep.sweeping() else fit(cfg)}")
