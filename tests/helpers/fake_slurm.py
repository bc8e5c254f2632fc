"""A Slurm cluster of one machine: sbatch, srun and sacct as far as submitit and Lightning use them.

`install(folder)` writes the three commands there; put the folder on the PATH. A job starts at once, in the background,
its tasks as srun would start them: one process a task, told its rank by SLURM's variables.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

JOB = "4242"


def install(folder: Path) -> None:
    """Write the commands into a folder."""
    folder.mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct"):
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        file.chmod(0o755)


def sbatch(file: str) -> None:
    """Start each job of the array."""
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", Path(file).read_text(), re.MULTILINE))
    last = int(flags["array"].partition("%")[0].partition("-")[2]) if "array" in flags else None
    for index in range((last or 0) + 1):
        # A job's number is its own; within an array the first's number names them all.
        told = {"SLURM_JOB_ID": str(int(JOB) + index), "SLURM_JOB_NAME": flags["job-name"]}
        told |= {"SLURM_NTASKS": flags["ntasks-per-node"], "SLURM_NTASKS_PER_NODE": flags["ntasks-per-node"]}
        told |= {"SLURM_JOB_NUM_NODES": flags["nodes"], "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0"}
        if last is not None:
            told |= {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(index)}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(["bash", file], env={**os.environ, **told}, start_new_session=True, **quiet)
    print(f"Submitted batch job {JOB}")


def srun(*words: str) -> None:
    """Start the command once a task, its output where it was asked for."""
    rest = list(words)
    places: dict[str, str] = {}
    while rest[0].startswith("--"):
        flag = rest.pop(0)
        if flag in ("--output", "--error"):
            places[flag] = rest.pop(0)
    tasks = []
    for rank in map(str, range(int(os.environ["SLURM_NTASKS"]))):
        names = {"%A": JOB, "%a": os.environ.get("SLURM_ARRAY_TASK_ID", ""), "%j": JOB, "%t": rank}
        place = re.sub("%[Aajt]", lambda found, names=names: names[found[0]], places["--output"])
        told = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": os.environ["SLURM_NTASKS"]}
        with open(place, "ab") as log:
            tasks.append(subprocess.Popen(rest, env={**os.environ, **told}, stdout=log, stderr=log))
    raise SystemExit(max(task.wait() for task in tasks))


def sacct(*words: str) -> None:
    """Everything is always running: results are what submitit finds."""
    print("JobID|State|NodeList")
    for job in (JOB, *(f"{JOB}_{index}" for index in range(8))):
        print(f"{job}|RUNNING|127.0.0.1")


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct}[sys.argv[1]](*sys.argv[2:])
