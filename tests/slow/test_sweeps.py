"""Sweeps and `restore-lab table`, typed: a folder per job, nothing made twice, failures named.

Some forty processes, each of which imports everything: ten minutes. The parts are tested in
tests/unit/tables and in tests/contract: test_tables_killed.py, test_processes.py and test_launchers.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from restore_lab.storage.artefact import is_complete
from tests.helpers.checkout import ROOT
from tests.helpers.configs import small
from tests.helpers.fake_slurm import install
from tests.helpers.processes import none_left, processes_of

pytestmark = pytest.mark.slow
FEW = ("trainer.accelerator=cpu", "max_steps=1", "eval_degradation=noise", "weights=null", "ema=null")


def typed(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "restore_lab.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= variables
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def test_a_sweep_has_a_folder_per_job_and_resumes(toy_folder, tmp_path) -> None:
    words = ("train", "-m", *small(toy_folder), *FEW, "name=sweep", "optimisation.lr=1e-3,2e-3")
    first = typed(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    folders = sorted(place for place in (tmp_path / "runs" / "sweep").iterdir() if place.name != "jobs")
    assert len(folders) == 2 and all(is_complete(place) for place in folders)
    facts = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / "sweep" / "jobs").glob("*.json")}
    assert len(facts) == 2
    again = typed(tmp_path, *words)
    assert again.returncode == 0 and again.stdout.count("weights: ") == 2, again.stderr
    assert {file: file.stat().st_mtime_ns for file in facts} == facts


def test_a_sweep_killed_five_times_makes_every_job_once(toy_folder, tmp_path) -> None:
    """SIGKILL to the sweep or to what it started, at random moments: six artefacts in the end, none made again."""
    draw, runs = random.Random(0), tmp_path / "runs"
    words = ("train", "-m", *small(toy_folder), *FEW, f"runs_dir={runs}", "name=sweep", "seed=0,1,2,3,4,5")
    command = [sys.executable, "-m", "restore_lab.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done: dict[Path, int] = {}
    for kill in range(5):
        sweep = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        while not processes_of(runs).keys() - {sweep.pid} and sweep.poll() is None:
            time.sleep(0.1)  # until a job is at work
        time.sleep(draw.uniform(0, 40))
        victims = [sweep.pid] if kill % 2 == 0 else [pid for pid in processes_of(runs) if pid != sweep.pid]
        if victims and sweep.poll() is None:
            os.kill(draw.choice(victims), signal.SIGKILL)
        if kill % 2:
            time.sleep(5)  # its job has failed, and the sweep may be at its next
            sweep.kill()
        sweep.wait()
        assert none_left(runs), processes_of(runs)
        for manifest in runs.glob("sweep/adaptor-*/manifest.json"):
            assert done.setdefault(manifest, manifest.stat().st_mtime_ns) == manifest.stat().st_mtime_ns
    last = typed(tmp_path, *words)
    assert last.returncode == 0, last.stderr
    found = made(runs / "sweep")
    assert len(found) == 6 and all(is_complete(place) for place in found.values())
    assert all(manifest.stat().st_mtime_ns == when for manifest, when in done.items())
    assert none_left(runs)


STEPS = ("max_steps=6", "log_every=1", "batch_size=4", "ema=0.9", "trainer.val_check_interval=3")


def made(runs: Path) -> dict[str, Path]:
    """The artefacts of a sweep, by identity."""
    return {place.name: place for place in runs.iterdir() if place.name != "jobs"}


def alike(one: Path, other: Path) -> None:
    """The same training but for rounding: measured here were 1e-7 of a loss and 6e-8 in weights of up to 0.4."""
    pairs = zip(*((place / "losses.jsonl").read_text().splitlines() for place in (one, other)), strict=True)
    for line, same in pairs:
        assert json.loads(line) == pytest.approx(json.loads(same), rel=1e-5)
    here, there = (load_file(place / "adaptor.safetensors") for place in (one, other))
    apart = max(float((here[name].float() - there[name].float()).abs().max()) for name in here)
    assert apart <= 1e-6, apart


def test_four_jobs_of_two_processes_run_at_once(toy_folder, tmp_path) -> None:
    """Four folders, four artefacts, those of single processes, and no process left."""
    words = ("train", "-m", *small(toy_folder), *FEW, *STEPS, "optimisation.lr=1e-3", "seed=0,1,2,3")
    two = typed(tmp_path, *words, "name=two", "trainer.devices=2", "trainer.strategy=ddp")
    assert two.returncode == 0 and two.stdout.count("weights: ") == 4, two.stderr
    one = typed(tmp_path, *words, "name=one")
    assert one.returncode == 0, one.stderr
    by_two, by_one = made(tmp_path / "runs" / "two"), made(tmp_path / "runs" / "one")
    assert by_two.keys() == by_one.keys() and len(by_one) == 4  # devices are no part of an identity
    for name, place in by_two.items():
        assert is_complete(place)
        alike(place, by_one[name])
    assert none_left(tmp_path)


def test_optuna_resumes_its_study(toy_folder, tmp_path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    words = ("train", "-m", *small(toy_folder), *FEW, "log_every=1", "name=sweep", "hydra/sweeper=optuna_seeded")
    words += ("optimisation.lr=tag(log, interval(1e-4, 1e-3))", "optimized_metric=train/loss")
    words += ("hydra.sweep.dir=found",)
    first = typed(tmp_path, *words, "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stderr
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / "sweep" / "jobs").glob("*.json")}
    again = typed(tmp_path, *words, "hydra.sweeper.n_trials=3")
    assert again.returncode == 0, again.stderr
    assert len(before) == 2 and {file: file.stat().st_mtime_ns for file in before} == before
    assert len(made(tmp_path / "runs" / "sweep")) == 3
    told = [float(line.split()[1]) for line in again.stdout.splitlines() if line.startswith("train/loss: ")]
    best = yaml.safe_load((tmp_path / "found" / "optimization_results.yaml").read_text())
    assert len(told) == 3 and best["best_value"] == pytest.approx(min(told), rel=1e-4)


def test_slurm_starts_every_rank(toy_folder, tmp_path) -> None:
    """Two jobs of two ranks on a cluster of one machine: each rank a task, one artefact a job."""
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("needs the extra submitit")
    install(tmp_path / "bin")
    words = ("train", "-m", *small(toy_folder), *FEW, *STEPS, "optimisation.lr=1e-3", "seed=0,1")
    slurm = ("hydra/launcher=slurm", "trainer.devices=2", "trainer.strategy=ddp", "hydra.sweep.dir=sweep")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    queued = typed(tmp_path, *words, *slurm, "name=queued", PATH=path)
    assert queued.returncode == 0, queued.stderr
    one = typed(tmp_path, *words, "name=one")
    assert one.returncode == 0, one.stderr
    by_slurm, by_one = made(tmp_path / "runs" / "queued"), made(tmp_path / "runs" / "one")
    assert by_slurm.keys() == by_one.keys() and len(by_one) == 2
    for name, place in by_slurm.items():
        assert is_complete(place)
        alike(place, by_one[name])
    flags = {
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --nodes=1",
        "#SBATCH --job-name=queued",
    }
    assert all(flags <= set(file.read_text().splitlines()) for file in (tmp_path / "sweep").rglob("*.sh"))


def test_a_sweep_of_evaluations_writes_a_record_per_job(toy_folder, tmp_path) -> None:
    words = ("evaluate", "-m", *small(toy_folder), "weights=null", "metrics=fidelity", "eval_degradation=noise")
    words += ("device=cpu", "name=steps", "sampler.steps=1,2", "optimized_metric=psnr")
    first = typed(tmp_path, *words)
    assert first.returncode == 0 and first.stdout.count("record:  ") == 2, first.stderr
    records = made(tmp_path / "runs" / "steps")
    assert len(records) == 2
    before = [(place / "record.json").stat().st_mtime_ns for place in records.values()]
    again = typed(tmp_path, *words)
    assert again.returncode == 0 and again.stdout == first.stdout, again.stderr
    assert [(place / "record.json").stat().st_mtime_ns for place in records.values()] == before


def test_a_table_is_made_by_the_typed_command(toy_folder, tmp_path) -> None:
    """Two rows and one that fails: planned, made, printed; the failure is named, and the rest is not made again."""
    node = {
        "title": "learning rates",
        "source": {"paper": "Toy"},
        "columns": {"PSNR": {"metric": "psnr", "better": "more"}},
        "overrides": list(small(toy_folder)),
        "train": [word for word in FEW if not word.startswith(("eval_", "weights"))],
        "evaluate": ["metrics=fidelity", "eval_degradation=noise", "pictures=0", "device=cpu"],
        "rows": {
            "slow": {"overrides": ["optimisation.lr=1e-3"], "published": [20.0]},
            "fast": {"overrides": ["optimisation.lr=2e-3"]},
            "shrunk": {"weights": "slow", "evaluate": ["max_lq_psnr=0.1"]},
        },
    }
    file = tmp_path / "conf" / "experiment" / "toy" / "rates.yaml"
    file.parent.mkdir(parents=True)
    text = yaml.safe_dump({"defaults": [{"override /method": "spire"}, "_self_"], "table": node}, sort_keys=False)
    file.write_text("# @package _global_\n" + text)
    words = ("table", "toy/rates", f"--config-dir={tmp_path}/conf")

    planned = typed(tmp_path, *words, "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "5 artefacts, 5 missing" in planned.stdout and not (tmp_path / "runs" / "tables").exists()

    made = typed(tmp_path, *words, "--format=json")
    assert made.returncode == 1, made.stdout + made.stderr
    assert "no image was measured; none has an LQ of at most max_lq_psnr=0.1" in made.stdout.partition("failed:")[2]
    start = made.stdout.index("{\n")
    table, _ = json.JSONDecoder().raw_decode(made.stdout[start:])
    cells = {row["row"]: row["cells"][0] for row in table["rows"]}
    assert set(cells) == {"LQ", "D(E(LQ))", "D(E(HQ))", "slow", "fast", "shrunk"}
    assert cells["slow"]["n"] == 2 and cells["slow"]["published"] == 20.0 and cells["shrunk"]["measured"] is None

    logs = tmp_path / "runs" / "tables" / "jobs"
    before = {log: log.stat().st_mtime_ns for log in logs.glob("*.log")}
    again = typed(tmp_path, *words)
    assert again.returncode == 1 and "| slow | " in again.stdout and "| [20.00]" not in again.stdout
    touched = [log for log, when in before.items() if log.stat().st_mtime_ns != when]
    assert len(before) == 5 and len(touched) == 1  # the failed one is tried again, the others are there
