"""Degrade test images, restore them, measure: a table, a picture, and a record. Or score a folder of restored images.

restore-lab evaluate method=spire
restore-lab evaluate eval_data=photos eval_degradation=sr4 protocol=y metrics=fidelity
restore-lab evaluate restored=DIR reference=DIR protocol=y format=json
restore-lab evaluate system=outputs/stablesr eval_data=photos eval_degradation=sr4
restore-lab evaluate -m sampler.steps=5,10,20
restore-lab evaluate devices=4
restore-lab evaluate --explain RECORD RECORD
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

POSITIONAL = ("records...",)
FOLLOWS_WEIGHTS = True


def run(cfg: DictConfig) -> float | None:
    """Print the table and the paths of record and picture, or everything as JSON, or the difference of two records.

    Returns:
        The objective for a sweeper, if `optimized_metric` names one.
    """
    if cfg.explain:
        if len(cfg.records or ()) != 2:
            raise ValueError("--explain compares two records; give two of their folders")
        from restore_lab.evaluation.explain import explain_records

        print("\n".join(explain_records(*cfg.records)))
        return None
    if cfg.records:
        words = cfg.records if isinstance(cfg.records, str) else " ".join(cfg.records)
        raise ValueError(f"cannot place {words!r}: evaluate takes settings as key=value, and records with --explain")
    if cfg.reference is not None and cfg.restored is None:
        raise ValueError("reference= holds the originals of restored=: give both; test images are eval_data=")
    if cfg.inputs_dir is not None:
        from restore_lab.evaluation.degraded import write_inputs

        print(f"{write_inputs(cfg, Path(cfg.inputs_dir))} images: {cfg.inputs_dir}")
        return None
    from restore_lab.evaluation.evaluate import evaluate, plan_evaluation
    from restore_lab.evaluation.parts import delete_record
    from restore_lab.launch import sweep
    from restore_lab.storage.locks import first_rank
    from restore_lab.system.processes import launch_ranks, rank_and_world

    if sweep.is_sweep():
        sweep.evaluate_as_job(cfg)  # in its own process group; the code below reads its record
        cfg.again = False
        if not first_rank():  # the launcher's first task ran the job
            return None
    elif cfg.restored is None and cfg.devices > 1 and rank_and_world()[1] == 1:
        scores = plan_evaluation(cfg)
        if cfg.again:
            delete_record(scores)
        if not scores.is_complete():
            launch_ranks(cfg.devices, "again=false", quiet=True)
        cfg.again = False
    done = evaluate(cfg)
    if done is None:
        print(
            f"process {rank_and_world()[0]} of {rank_and_world()[1]} has done its share; the last one prints the table"
        )
        return None
    places = ["", f"record:  {done.folder}", *([f"picture: {done.picture}"] if done.picture else [])]
    print(done.as_json() if cfg.format == "json" else "\n".join([done.page(), *places]))
    return done.mean(cfg.optimized_metric) if cfg.optimized_metric else None
