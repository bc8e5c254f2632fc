"""DDP trainings of two processes, a rank or the parent killed at random: nothing is lost, repeated or orphaned."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from omegaconf import DictConfig
from safetensors.torch import load_file

from restore_lab.config.build import trust
from restore_lab.storage.artefact import is_complete
from restore_lab.training.run import fit
from tests.helpers.checkout import ROOT
from tests.helpers.configs import composed, small
from tests.helpers.processes import none_left, processes_of

# Other moments are the slow ring's.
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks in /proc")
FORK = multiprocessing.get_context("fork")
STEPS, WORLD, KILLS = 18, 2, 4
WORDS = (
    "name=run",
    f"max_steps={STEPS}",
    "checkpoint_every=3",
    "log_every=1",
    "progress=false",
    "ema=0.9",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.val_check_interval=1000",
    "optimisation.lr=1e-3",
    "degradation=noise",
)


def words(toy_folder: Path, runs: Path) -> list[str]:
    """The training; each rank notes which images it sees."""
    notes = f"callbacks=[{{_target_:tests.helpers.kill_callbacks.Notes,folder:{runs / 'notes'}}}]"
    return [*small(toy_folder), *WORDS, f"trainer.devices={WORLD}", f"runs_dir={runs}", notes]


@functools.cache
def config(toy_folder: Path, runs: Path) -> DictConfig:
    """What the words compose to, for all processes that this one forks."""
    return composed("train", *words(toy_folder, runs))


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def seen(runs: Path) -> dict[int, list[str]]:
    """The images of each step, of all ranks; of a step that was taken twice the second time counts."""
    last: dict[tuple[int, str], list[str]] = {}
    for file in (runs / "notes").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            step, keys = json.loads(line)
            last[step, file.stem] = keys
    return {step: sorted(key for at, keys in last.items() if at[0] == step for key in keys) for step, _ in last}


def same(runs: Path, unkilled: Path) -> None:
    """One complete run of every step once, with the images of the unkilled run, its losses and its weights.

    Two ranks may wait for each other in another order, but sum in the same: losses and weights are equal.
    """
    (folder,), (other,) = ((place / "run").glob("adaptor-*") for place in (runs, unkilled))
    assert folder.name == other.name and is_complete(folder) and len(list((folder / "state").glob("*.ckpt"))) == 1
    assert [line["step"] for line in losses(folder)] == list(range(1, STEPS + 1))
    assert seen(runs) == seen(unkilled) and len(seen(runs)) == STEPS
    for one, another in zip(losses(folder), losses(other), strict=True):
        assert one == pytest.approx(another, rel=1e-5)
    ours, theirs = (load_file(place / "adaptor.safetensors") for place in (folder, other))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5


@pytest.fixture(scope="module")
def unkilled(toy_folder, tmp_path_factory) -> Path:
    """The result of two processes that are not killed."""
    runs = tmp_path_factory.mktemp("unkilled")
    process = forked(toy_folder, runs)
    process.join(timeout=200)
    assert process.exitcode == 0
    return runs


def forked(toy_folder: Path, runs: Path) -> multiprocessing.Process:
    """The training in a forked process, which forks its other rank: they start in a moment."""
    config(toy_folder, runs)
    process = FORK.Process(target=_train, args=(toy_folder, runs))
    process.start()
    return process


def _train(toy_folder: Path, runs: Path) -> None:
    if "LOCAL_RANK" not in os.environ:
        os.setpgid(0, 0)  # by which its ranks are found
    trust(["tests"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_SubprocessScriptLauncher, "_call_children_scripts", lambda self: _fork(self, toy_folder, runs))
        fit(config(toy_folder, runs).copy())


def _fork(launcher: Any, toy_folder: Path, runs: Path) -> None:
    """What Lightning's launcher does, with a fork in the place of the command typed once more."""
    environment = launcher.cluster_environment
    os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": str(WORLD)}
    launcher.procs = [Forked(toy_folder, runs)]
    os.environ["LOCAL_RANK"] = "0"


class Forked:
    """A process as Lightning's observer looks at those that it started."""

    def __init__(self, toy_folder: Path, runs: Path) -> None:
        self.process = FORK.Process(target=_train, args=(toy_folder, runs))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        self.returncode = self.process.exitcode
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid or 0, number)


def group(parent: int | None) -> list[int]:
    """The running processes of a parent's group, itself too."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if entry.name.isdigit() and int(fields[2]) == parent and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def nobody(who: Callable[[], object], *, within: float = 20.0) -> bool:
    until = time.monotonic() + within
    while who() and time.monotonic() < until:
        time.sleep(0.02)
    return not who()


def lines(runs: Path) -> int:
    """How many losses are written."""
    return sum(len(file.read_bytes().splitlines()) for file in (runs / "run").glob("adaptor-*/losses.jsonl"))


@pytest.mark.parametrize("seed", SEEDS)
def test_ddp_training_killed_at_random_moments_equals_the_unbroken_one(seed, toy_folder, unkilled, tmp_path) -> None:
    """The parent, then a rank, and so on; each time after a random number of further losses and a random wait."""
    draw, kills = random.Random(seed), 0
    for turn in range(KILLS):
        process = forked(toy_folder, tmp_path)
        until = lines(tmp_path) + draw.randrange(4)

        def victims(parent: bool, of: int | None = process.pid) -> list[int]:
            return [pid for pid in group(of) if (pid == of) == parent]

        while process.is_alive() and (lines(tmp_path) < until or not victims(turn % 2 == 0)):
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.2))
        for pid in victims(turn % 2 == 0):
            os.kill(pid, signal.SIGKILL)
        process.join(timeout=60)
        kills += process.exitcode != 0
        assert nobody(lambda of=process.pid: group(of)), group(process.pid)
    process = forked(toy_folder, tmp_path)
    process.join(timeout=200)
    assert process.exitcode == 0 and kills >= 2
    same(tmp_path, unkilled)


def start(toy_folder: Path, runs: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "restore_lab.cli.main", "train", *words(toy_folder, runs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([*command, "trusted_packages=[tests]"], env=environment, cwd=ROOT)


@pytest.mark.slow
def test_the_typed_command_killed_leaves_no_process(toy_folder, unkilled, tmp_path) -> None:
    """`trainer=ddp` types the command again: the parent killed when it has, then a rank, then the parent at work."""
    for parent, more in ((True, 0), (False, 2), (True, 2)):
        typed = start(toy_folder, tmp_path)
        until = lines(tmp_path) + more
        while typed.poll() is None and (lines(tmp_path) < until or len(processes_of(tmp_path)) < WORLD):
            time.sleep(0.05)
        (victim,) = [pid for pid in processes_of(tmp_path) if (pid == typed.pid) == parent]
        os.kill(victim, signal.SIGKILL)
        assert typed.wait(timeout=60) != 0
        assert none_left(tmp_path, within=100), processes_of(tmp_path)  # it may still be importing
    assert start(toy_folder, tmp_path).wait(timeout=600) == 0
    assert none_left(tmp_path)
    same(tmp_path, unkilled)
