"""One job of `restore-lab train -m` or `evaluate -m`, in its own process group.

Lightning starts the other ranks of a run by rerunning its command line, which would repeat the whole sweep in every
rank. So each job of a sweep runs as a command of its own, under a supervisor like a table's jobs: one folder per job
for any number of devices, and no process left when the sweep is killed. Complete artefacts are not made again, so the
same sweep resumes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from restore_lab.launch.job import Job, config_flags, run_job
from restore_lab.tracking import artefact_overrides

if TYPE_CHECKING:
    from omegaconf import DictConfig


def is_sweep() -> bool:
    """Whether Hydra runs in multirun mode."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def train_as_job(cfg: DictConfig) -> Path | None:
    """Run this job of a sweep; its log is `<runs_dir>/<name>/jobs/<identity>.log`.

    Returns:
        The artefact folder of the last stage; None for a debug run, which runs in this process.

    Raises:
        JobFailed: if it fails; the sweep's other jobs continue.
    """
    from restore_lab.training.run import fit, plan_training

    stage = plan_training(cfg)[-1]
    if stage.debug:
        return fit(cfg)
    job = Job(artefact=stage, words=_words("train", cfg), like=f"{stage.kind} {cfg.name}", steps=stage.steps)
    run_job(job, Path(cfg.runs_dir) / cfg.name)
    return stage.folder


def evaluate_as_job(cfg: DictConfig) -> None:
    """Make this job's record, as `train_as_job` makes weights.

    Raises:
        JobFailed: if it fails; the sweep's other jobs continue.
    """
    from restore_lab.evaluation.evaluate import plan_evaluation

    scores, steps = plan_evaluation(cfg), int(cfg.sampler.steps)
    job = Job(artefact=scores, words=_words("evaluate", cfg), like=f"{scores.kind} {cfg.name}", steps=steps)
    run_job(job, Path(cfg.runs_dir) / cfg.name, again=cfg.again)


def _words(verb: str, cfg: DictConfig) -> tuple[str, ...]:
    """This job's command line without the sweep; the logger's group names the settings that vary."""
    from hydra.core.hydra_config import HydraConfig

    varied = ", ".join(word.partition("=")[0].lstrip("+") for word in artefact_overrides())
    group = f"run.group='{cfg.name}: {varied}'"  # the same for every job and for a resumed sweep
    return (verb, *config_flags(), group, *HydraConfig.get().overrides.task, "progress=false")
