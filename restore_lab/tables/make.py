"""Runs a plan's missing jobs through the configured Hydra launcher, in waves whose dependencies are complete.

The launcher runs `task` once per job: in sequence by default, in parallel with `hydra/launcher=joblib`, on a cluster
with a SLURM launcher. The task starts the job's command and waits for it. A failed job leaves its log, the jobs that
depend on it are skipped, and the others continue. After an interruption the same command continues: complete artefacts
are not made again, and training resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.launch.job import JobFailed, read_job, run_job, write_job
from restore_lab.tables.jobs import Plan

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
Launch = Callable[[Sequence[str]], Sequence[str | None]]


def make_artefacts(plan: Plan, *, launch: Launch) -> dict[str, str]:
    """Run the missing jobs.

    Args:
        plan: the plan.
        launch: runs jobs by identity and returns an error message or None for each.

    Returns:
        One line per artefact that is still missing, by identity.
    """
    failed: dict[str, str] = {}
    while True:
        missing = {job.artefact.identity: job for job in plan.missing() if job.artefact.identity not in failed}
        for identity, job in missing.items():
            if any(need in failed for need in job.needs):
                failed[identity] = f"{job.artefact}: what it needs failed"
        ready = [i for i, job in missing.items() if not missing.keys() & job.needs and i not in failed]
        if not ready:
            return failed
        log.info("%d of %d jobs are missing; running %d", len(missing), len(plan.jobs), len(ready))
        for identity, problem in zip(ready, launch(ready), strict=True):
            artefact = plan.jobs[identity].artefact
            if problem is None and not artefact.is_complete():
                problem = f"{artefact}: ended without its artefact"
            if problem is not None:
                failed[identity] = problem
                log.warning("failed: %s", problem)


def write_jobs(plan: Plan, store: Path) -> None:
    """Write the missing jobs to the store, where tasks on any machine read them."""
    for job in plan.missing():
        write_job(job, store)


def task(cfg: DictConfig) -> str | None:
    """The launcher's task function: runs the job `cfg.job` of the store; an error message, or None."""
    store = Path(cfg.runs_dir) / cfg.name
    job = read_job(cfg.job, store)
    log.info("%s: %s", job.artefact, " ".join(job.words))
    try:
        run_job(job, store)
    except JobFailed as error:
        return str(error)
    return None


def hydra_launcher(cfg: DictConfig, *, function: Callable[[DictConfig], str | None] = task) -> Launch:
    """The configured launcher of the running Hydra; it runs `function` once per job."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    own: Any = HydraConfig.instance().cfg

    def launch(identities: Sequence[str]) -> list[str | None]:
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(own))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=function, config=own)
        words = [f"runs_dir={cfg.runs_dir}", f"name={cfg.name}"]
        returned = launcher.launch([[*words, f"job={identity}"] for identity in identities], initial_job_idx=0)
        return [_problem(one) for one in returned]

    return launch


def _problem(returned: Any) -> str | None:
    """A task's return value, or the error of the launcher itself."""
    try:
        return returned.return_value
    except Exception as error:  # of the launcher, since the task never raises
        return f"the launcher: {' '.join(str(error).split())[:300]}"
