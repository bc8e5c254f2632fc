"""A table whose parent, supervisor or job is killed at any moment: nothing is lost, made twice or orphaned."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restore_lab.tables.jobs import Plan
from tests.helpers.checkout import ROOT
from tests.helpers.fake_table import fake, made, six
from tests.helpers.processes import history, none_left, processes_of


def start(store: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "helpers" / "fake_table.py"), str(store)], env=environment
    )


pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for orphans in /proc")


@pytest.mark.parametrize("seed", range(2))
def test_a_table_killed_five_times_makes_every_job_once(seed, tmp_path) -> None:
    draw, store = random.Random(seed), tmp_path / "store"
    store.mkdir()
    for kill in range(5):
        parent = start(store)
        while not processes_of(store).keys() - {parent.pid} and parent.poll() is None:
            time.sleep(0.02)  # until a job is at work
        time.sleep(draw.uniform(0, 1.0))
        there = processes_of(store)
        victims = [parent.pid] if kill % 2 == 0 else [pid for pid in there if pid != parent.pid]
        if victims and parent.poll() is None:
            os.kill(draw.choice(victims), signal.SIGKILL)
        if kill % 2 == 0:
            parent.wait()
            assert none_left(store), processes_of(store)
        else:
            parent.wait()  # a killed job is a failed one: the others go on
    assert start(store).wait() == 0
    assert none_left(store)
    assert all(job.artefact.is_complete() for job in six(store).jobs.values())
    # One killed between its last act and its note of it is not in the list; none may be there twice.
    assert len(history(store, "made")) == len(set(history(store, "made"))) >= 4


def test_two_tables_at_once_make_every_job_once(tmp_path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    assert [process.wait() for process in (start(store), start(store))] == [0, 0]
    assert sorted(history(store, "begun")) == sorted(history(store, "made")) == ["a1", "a2", "a3", "b1", "b2", "b3"]
    assert none_left(store)


def test_a_failed_job_keeps_its_log_and_skips_its_dependents(tmp_path) -> None:
    jobs = [fake(tmp_path, "bad", fail=True), fake(tmp_path, "after", "bad"), fake(tmp_path, "good")]
    plan = Plan(specs=(), seeds=1, jobs={job.artefact.identity: job for job in jobs})
    failed = made(plan, tmp_path)
    assert set(failed) == {"bad", "after"} and plan.jobs["good"].artefact.is_complete()
    assert "this job fails (exit status 1" in failed["bad"] and "what it needs failed" in failed["after"]
    assert "this job fails" in (tmp_path / "jobs" / "bad.log").read_text()
    assert none_left(tmp_path)
    plan.jobs["bad"] = fake(tmp_path, "bad")  # mended: only what was missing is made
    assert made(plan, tmp_path) == {}
    assert sorted(history(tmp_path, "made")) == ["after", "bad", "good"]
