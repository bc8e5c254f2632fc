"""Train a method's adaptor, or a shipped prior, stage by stage; the same command resumes.

restore-lab train method=spire scale=tiny
restore-lab train experiment=priors/tiny_sd
restore-lab train trainer.fast_dev_run=true           # one step of every stage; leaves nothing
restore-lab train max_steps=8000 extend=runs/spire/adaptor-<id>
restore-lab train -m adaptor=spire,controlnet optimisation.lr=1e-4,5e-4
restore-lab train -m hydra/sweeper=optuna_seeded 'optimisation.lr=interval(1e-4,1e-3)' optimized_metric=train/loss
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: DictConfig) -> float | None:
    """Train, and print the folder of the result; each job of a sweep runs in its own process group.

    Returns:
        The objective for a sweeper, if `optimized_metric` names one.

    Raises:
        ValueError: for a debug run with `optimized_metric`, which records no losses.
    """
    from restore_lab.launch import sweep
    from restore_lab.storage.locks import first_rank
    from restore_lab.training.plan import LOSSES
    from restore_lab.training.run import fit

    folder = sweep.train_as_job(cfg) if sweep.is_sweep() else fit(cfg)
    if first_rank() and folder is not None:
        print(f"weights: {folder}")
    if cfg.optimized_metric is None:
        return None
    if folder is None:
        raise ValueError(f"optimized_metric={cfg.optimized_metric}: a debug run leaves no losses; set it to null")
    from restore_lab.training.history import last_value

    value = last_value(folder / LOSSES, cfg.optimized_metric)
    print(f"{cfg.optimized_metric}: {value:.6g}")
    return value
