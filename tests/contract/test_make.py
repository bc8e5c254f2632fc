"""Every target of the Makefile runs at its smallest: in CI, here, or in `make test-installed` and `test-extras`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.checkout import ROOT
from tests.helpers.make import make

SPEED = "--sizes=sd15 --parts=comparison --pixels=32 --restored=1 --trained=1 --steps=2 --turns=1 --warmup=0"
TWO_FILES = "ARGS=tests/slow/test_big_images.py tests/contract/test_launchers.py --collect-only --quiet"
HERE = {"help", "format", "clean", "bench", "bench-gpu", "photographs", "test-slow", "test-xla", "test-extras"}
INSTALLED = {"wheel", "docs", "quickstart", "lock", "lock-xla"}  # with the network, but for the wheel


def targets() -> set[str]:
    """Those that `make help` lists."""
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_target_is_run_somewhere() -> None:
    run = re.findall(r"make (setup)|for target in ([^;]*);", (ROOT / ".ci/run").read_text())
    ci = {name for setup, listed in run for name in (setup or listed).split()}
    assert ci >= {"setup", "lint", "test", "test-installed"}
    assert targets() == ci | HERE | INSTALLED
    assert not ci & HERE and not HERE & INSTALLED
    tests = "".join(path.read_text() for path in (ROOT / "tests/installed").glob("*.py"))
    assert all(f'"{target}"' in tests for target in INSTALLED)


def test_help_names_every_target() -> None:
    said = make("help").stdout.splitlines()
    assert {line.split()[1] for line in said} == targets()
    assert all(len(line.split()) > 2 for line in said)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a space in its name, the Makefile and one file that is not well formed."""
    folder = tmp_path / "a copy"
    (folder / "runs/keep").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "odd.py").write_text("import sys\nimport os\nprint( os,sys )\n")
    return folder


def test_format_fixes_a_file(copy: Path) -> None:
    done = make("format", folder=copy)
    assert done.returncode == 0, done.stderr
    assert (copy / "odd.py").read_text() == "import os\nimport sys\n\nprint(os, sys)\n"


def test_clean_removes_what_was_built_and_nothing_else(copy: Path) -> None:
    for place in ("dist/a.whl", "restore_lab/__pycache__/a.pyc", ".ruff_cache/a", ".venv/lib/__pycache__/a.pyc"):
        (copy / place).parent.mkdir(parents=True)
        (copy / place).touch()
    assert make("clean", folder=copy).returncode == 0
    left = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert left == {"Makefile", "pyproject.toml", "odd.py", ".venv/lib/__pycache__/a.pyc"}
    assert (copy / "runs/keep").is_dir()


def test_photographs_counts_present_tiles_and_names_missing_packages(tmp_path: Path) -> None:
    for half in ("train", "val"):
        (tmp_path / "photographs_free" / half).mkdir(parents=True)
        (tmp_path / "photographs_free" / half / "a.png").touch()
    done = make("photographs", f"DATASETS={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert f"1 tiles, 1 held out, in {tmp_path}/photographs_free" in done.stdout
    shutil.rmtree(tmp_path / "photographs_free/val")
    absent = make("photographs", f"DATASETS={tmp_path}", f"ARGS=packages={tmp_path}")
    assert absent.returncode != 0 and ": no .deb of " in absent.stderr


def test_bench_times_degradation_and_steps(tmp_path: Path) -> None:
    small = "--rounds=1 --batch=1 --size=64 --threads=1 --basicsr-python=none"
    done = make("bench", f"DEGRADATION={small}", f"SPEED={SPEED} --output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert '"benchmark": "degradation"' in done.stdout
    assert "| sampling step | " in (tmp_path / "speed.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_bench_gpu_without_a_gpu_ends_in_one_line() -> None:
    done = make("--silent", "bench-gpu")
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ")]
    assert done.returncode != 0 and not done.stdout
    assert said == ["benchmarks.speed: --device cuda, and torch finds no CUDA device here; use --device cpu"]


def test_each_ring_collects_its_own_tests() -> None:
    slow = make("test-slow", TWO_FILES)
    assert slow.returncode == 0 and "test_big_images.py" in slow.stdout, slow.stdout
    assert "test_launchers.py::" not in slow.stdout and "deselected" in slow.stdout, slow.stdout
    extras = make("test-extras", "ARGS=--collect-only --quiet")
    assert extras.returncode == 0 and "test_extras.py" in extras.stdout, extras.stdout
    dry = make("--dry-run", "test-xla")
    assert dry.returncode == 0 and "-m pytest tests/xla" in dry.stdout
