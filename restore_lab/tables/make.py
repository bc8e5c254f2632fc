"""Runs a plan's missing jobs through the configured Hydra launcher, in waves whose dependencies are complete.

The launcher runs `task` once per job: in sequence by default, in parallel with `hydra/launcher=joblib`, on a cluster
with a SLURM launcher. The task starts the job's command and waits for it. A failed job leaves its log, the jobs that
depend on it are skipped, and the others continue. After an interruption the same command continues: complete artefacts
are not made again, and training resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from restore_lab.launch.job import Job, JobFailed, run
from restore_lab.storage.atomic import write_json_atomic
from restore_lab.storage.foreign import json_of
from restore_lab.tables.jobs import Plan

log = logging.getLogger(__name__)
Launch = Callable[[Sequence[str]], Sequence[str | None]]


def make(plan: Plan, *, store: Path, launch: Launch) -> dict[str, str]:
    """Run the missing jobs.

    Args:
        plan: the plan.
        store: folder of logs and facts.
        launch: runs jobs by identity and returns an error message or None for each.

    Returns:
        One line per job whose artefact is still missing, by identity.
    """
    failed: dict[str, str] = {}
    while True:
        missing = [job for job in plan.missing() if job.identity not in failed]
        blocked = [job for job in missing if any(need in failed for need in job.needs)]
        failed |= {job.identity: f"{job.kind} {job.identity}: what it needs failed" for job in blocked}
        absent = {job.identity for job in missing}
        ready = [job for job in missing if not absent.intersection(job.needs) and job.identity not in failed]
        if not ready:
            return failed
        log.info("%d of %d jobs are missing; running %d", len(missing), len(plan.jobs), len(ready))
        problems = launch([job.identity for job in ready])
        for job, problem in zip(ready, problems, strict=True):
            if problem is None and not job.done:
                problem = f"{job.kind} {job.identity}: ended without its artefact"
            if problem is not None:
                failed[job.identity] = problem
                log.warning("failed: %s", problem)


def write_jobs(plan: Plan, store: Path) -> None:
    """Write the missing jobs to the store, where tasks on any machine read them."""
    for job in plan.missing():
        write_json_atomic(store / "jobs" / f"{job.identity}.job.json", asdict(job))


def task(cfg: Any) -> str | None:
    """The launcher's task function: runs the job `cfg.job` of the store; an error message, or None."""
    store = Path(cfg.runs_dir) / cfg.name
    raw = json_of(store / "jobs" / f"{cfg.job}.job.json")
    job = Job(**{**raw, "words": tuple(raw["words"]), "needs": tuple(raw["needs"])})
    log.info("%s %s: %s", job.kind, job.identity, " ".join(job.words))
    try:
        run(job, store)
    except JobFailed as error:
        return str(error)
    return None


def hydra_launcher(cfg: Any, *, function: Callable[[Any], str | None] = task) -> Launch:
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
    """A task's return value, or the launcher's own error."""
    try:
        return returned.return_value
    except Exception as error:  # the launcher's own: the task never raises
        return f"the launcher: {' '.join(str(error).split())[:300]}"
