"""Degrade test images, restore them, measure: a table, a picture, and a record. Or score a folder of restored images.

restore-lab evaluate method=spire
restore-lab evaluate eval_data=photos eval_degradation=sr4 protocol=y metrics=fidelity
restore-lab evaluate restored=DIR reference=DIR protocol=y format=json
restore-lab evaluate system=outputs/stablesr eval_data=photos eval_degradation=sr4
restore-lab evaluate --explain RECORD RECORD
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

POSITIONAL = ("records...",)


def run(cfg: Any) -> None:
    """Print the table, then where record and picture are; or everything as JSON; or why two records differ."""
    if cfg.explain:
        if len(cfg.records or ()) != 2:
            raise ValueError("--explain compares two records; give two of their folders")
        from restore_lab.evaluation.explain import explain

        print("\n".join(explain(*cfg.records)))
        return
    if cfg.inputs_dir is not None:
        from restore_lab.evaluation.batches import write_inputs

        print(f"{write_inputs(cfg, Path(cfg.inputs_dir))} images: {cfg.inputs_dir}")
        return
    if cfg.format not in ("text", "json"):
        raise ValueError(f"format={cfg.format!r} is not known; one of text, json")
    from restore_lab.evaluation.evaluate import Evaluation, evaluate
    from restore_lab.evaluation.folders import score

    if cfg.restored is None:
        done = evaluate(cfg)
    else:
        folder, results = score(cfg)
        done = Evaluation(folder=folder, results=results, picture=None)
    if cfg.format == "json":
        print(done.as_json())
        return
    print(done.page())
    print(f"\nrecord:  {done.folder}")
    if done.picture:
        print(f"picture: {done.picture}")
