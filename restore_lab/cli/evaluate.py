"""Degrade test images, restore them, measure: a table, a picture, and a record.

restore-lab evaluate method=spire
restore-lab evaluate eval_data=photos eval_degradation=sr4 protocol=y metrics=fidelity
"""

from __future__ import annotations

from typing import Any


def run(cfg: Any) -> None:
    """Print the table, then where record and picture are."""
    from restore_lab.evaluation.evaluate import evaluate

    done = evaluate(cfg)
    print(done.page())
    print(f"\nrecord:  {done.folder}")
    if done.picture:
        print(f"picture: {done.picture}")
