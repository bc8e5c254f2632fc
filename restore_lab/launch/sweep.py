"""One job of `restore-lab train -m` or `evaluate -m`, in a process group of its own.

Lightning starts the other ranks of a run by typing its command line again; within a sweep that would repeat the whole
sweep in every rank. So each job of a sweep is the command of that job only, under a supervisor as a table's jobs are:
one folder per job however many devices it has, and nothing left over when the sweep is killed. What is complete is not
made again, so the same sweep resumes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restore_lab.launch.job import SCORES, Job, config_flags, run
from restore_lab.tracking import typed


def sweeping() -> bool:
    """Whether Hydra runs several jobs."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def train(cfg: Any) -> Path | None:
    """Run this job of a sweep; its log is `<runs_dir>/<name>/jobs/<identity>.log`.

    Returns:
        The artefact folder of the last stage; None for a debug run, which runs in this process.

    Raises:
        JobFailed: if it fails; the others of the sweep go on.
    """
    from restore_lab.training.run import fit, plan

    stage = plan(cfg)[-1]
    if stage.debug:
        return fit(cfg)
    job = Job(
        identity=stage.identity,
        kind=stage.name,
        folder=str(stage.folder),
        words=_words("train", cfg),
        like=f"{stage.name} {cfg.name}",
        steps=stage.steps,
    )
    run(job, Path(cfg.runs_dir) / cfg.name)
    return stage.folder


def evaluate(cfg: Any) -> None:
    """Make this job's record, as `train` makes weights.

    Raises:
        JobFailed: if it fails; the others of the sweep go on.
    """
    from restore_lab.evaluation import evaluate, folders

    scores = evaluate.planned(cfg) if cfg.restored is None else folders.planned(cfg)
    job = Job(
        identity=scores.identity,
        kind=SCORES,
        folder=str(scores.folder),
        words=_words("evaluate", cfg),
        like=f"{SCORES} {cfg.name}",
        steps=int(cfg.sampler.steps),
    )
    run(job, Path(cfg.runs_dir) / cfg.name, again=cfg.again)


def _words(verb: str, cfg: Any) -> tuple[str, ...]:
    """This job's command, without the sweep around it; a logger groups the jobs by what varies."""
    from hydra.core.hydra_config import HydraConfig

    varied = ", ".join(word.partition("=")[0].lstrip("+") for word in typed())
    group = f"run.group='{cfg.name}: {varied}'"  # the same for each job, and for a sweep that goes on
    return (verb, *config_flags(), group, *HydraConfig.get().overrides.task, "progress=false")
