"""`restore-lab train -m` and `restore-lab table`, as typed: a folder a job, nothing made twice, failures named.

A dozen processes, each of which imports everything: two minutes. What they rest on stands in tests/unit/test_tables.py,
tests/unit/test_plan.py and tests/contract/test_tables_killed.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from restore_lab.artefacts import complete
from tests.composed import small

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
FEW = ("trainer.accelerator=cpu", "max_steps=1", "eval_degradation=noise", "weights=null", "ema=null")


def typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "restore_lab.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def test_a_sweep_has_a_folder_a_job_and_resumes(toy_folder, tmp_path) -> None:
    words = ("train", "-m", *small(toy_folder), *FEW, "name=sweep", "optimisation.lr=1e-3,2e-3")
    first = typed(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    folders = sorted(place for place in (tmp_path / "runs" / "sweep").iterdir() if place.name != "jobs")
    assert len(folders) == 2 and all(complete(place) for place in folders)
    facts = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / "sweep" / "jobs").glob("*.json")}
    assert len(facts) == 2
    again = typed(tmp_path, *words)
    assert again.returncode == 0 and again.stdout.count("weights: ") == 2, again.stderr
    assert {file: file.stat().st_mtime_ns for file in facts} == facts


def test_a_table_as_typed(toy_folder, tmp_path) -> None:
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
