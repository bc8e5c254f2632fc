"""Hydra's launchers under tables and sweeps: each runs the jobs, and its processes end when the command is killed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restore_lab.cli.errors import _no_option
from tests.helpers.checkout import ROOT
from tests.helpers.fake_table import six
from tests.helpers.processes import history, none_left, processes_of

LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": (),
    "ray": ("+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"),
}
# Ray says nothing to its makers, keeps no token in the home folder, and its workers are as quick as others.
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
SIX = ["a1", "a2", "a3", "b1", "b2", "b3"]
pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for orphans in /proc")


def there(plugin: str) -> bool:
    try:
        return plugin == "basic" or importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False


def needs(plugin: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not there(plugin), reason=f"needs the extra {plugin}")


each = pytest.mark.parametrize(
    "launcher", [pytest.param(name, marks=needs(name.partition("_")[0])) for name in LAUNCHERS]
)


def start(runs: Path, launcher: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **RAY}
    words = [f"runs_dir={runs}", "name=store", f"hydra/launcher={launcher}", *LAUNCHERS[launcher]]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "helpers" / "fake_table_launcher.py"), *words], env=environment
    )


@each
def test_a_killed_launcher_leaves_no_process_and_resumes(launcher, tmp_path) -> None:
    store = tmp_path / "store"
    command = start(tmp_path, launcher)
    while not history(store, "made") and command.poll() is None:
        time.sleep(0.05)
    assert command.poll() is None
    command.kill()
    assert command.wait() != 0
    assert none_left(store), processes_of(store)
    assert start(tmp_path, launcher).wait() == 0
    assert none_left(store)
    assert all(job.artefact.is_complete() for job in six(store).jobs.values())
    assert sorted(set(history(store, "begun"))) == SIX
    assert len(history(store, "made")) == len(set(history(store, "made"))) >= len(SIX) - 2


def test_a_missing_launcher_plugin_is_named_with_its_extra() -> None:
    for missing, extra in [
        ("hydra/launcher/joblib", "joblib"),
        ("hydra/launcher/submitit_slurm", "submitit"),
        ("hydra/launcher/ray", "ray"),
        ("hydra/sweeper/optuna", "optuna"),
    ]:
        assert f"pip install 'restore-lab[{extra}]'" in _no_option(missing, [])
    assert "pip install" not in _no_option("hydra/launcher/jbolib", [])


@needs("submitit")
def test_slurm_gets_one_task_per_device() -> None:
    from hydra import compose

    from restore_lab.config.conf_dir import conf_dir
    from restore_lab.config.config_source import hydra_at

    words = ["hydra/launcher=slurm", "trainer.devices=4", "trainer.num_nodes=2", "hydra.launcher.partition=gpu"]
    with hydra_at(conf_dir()):
        launcher = compose(config_name="train", overrides=words, return_hydra_config=True).hydra.launcher
        alone = compose(config_name="table", overrides=words[:1], return_hydra_config=True).hydra.launcher
    asked = (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node, launcher.partition)
    assert asked == (2, 4, 4, "gpu") and launcher._target_.endswith(".SlurmLauncher")
    assert (alone.nodes, alone.tasks_per_node) == (1, 1)


@pytest.mark.skipif(importlib.util.find_spec("hydra_plugins") is None, reason="needs the extra optuna")
def test_optuna_with_a_seed_repeats_its_trials(tmp_path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    asked = [trials(tmp_path, "hydra.sweeper.n_trials=6"), trials(tmp_path, "hydra.sweeper.n_trials=7")]
    assert len(asked[0]) == 6 and asked[1][:6] == asked[0]
    assert len(set(asked[0])) == 6
    assert trials(tmp_path, "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.seed=1") != asked[0]


def trials(folder: Path, *words: str) -> list[str]:
    """The learning rates that Optuna tries, in order, where the loss is their distance from 5e-4."""
    code = (
        "import hydra\nfrom restore_lab.config.conf_dir import conf_dir\n"
        "from restore_lab.config.config_source import register\n\nregister()\n"
        "@hydra.main(version_base='1.3', config_path=str(conf_dir()), config_name='train')\n"
        "def main(cfg):\n    print('lr', cfg.optimisation.lr)\n    return abs(cfg.optimisation.lr - 5e-4)\n"
        "main()\n"
    )
    words = ("-m", "hydra/sweeper=optuna_seeded", "optimisation.lr=tag(log, interval(1e-4, 1e-3))", *words)
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line.startswith("lr ")]
