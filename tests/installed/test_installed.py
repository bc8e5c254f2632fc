"""Wheel and sdist hold the tree's files, and work in an empty folder without extras."""

from __future__ import annotations

import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restore_lab.cli.main import verbs
from restore_lab.config.conf_dir import conf_dir
from tests.helpers.checkout import ROOT
from tests.installed.conftest import CPU, FEW, TRAIN, Installed, photograph

pytestmark = pytest.mark.installed
IN_THE_WHEEL = {"restore_lab": "restore_lab", "conf": "restore_lab/conf", "experiments": "restore_lab/experiments"}
TABLE = """# @package _global_
defaults:
  - override /eval_degradation: noise
  - _self_
table:
  title: what the installed package measures
  source: {paper: mine}
  columns: {PSNR: {metric: psnr, better: more}}
  evaluate: ["eval_data.names=[camera]", eval_data.size=32, eval_data.crop=16, metrics=fidelity]
  rows:
    theirs: {title: another system, system: theirs}
"""


def tracked() -> set[str]:
    """The files of the tree that git would keep."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an archive has no list of its files")
def test_the_files_hold_everything_and_nothing_foreign(wheel: Path, sdist: Path) -> None:
    tree = tracked()
    parts = {name: name.partition("/") for name in tree}
    expected = {f"{IN_THE_WHEEL[top]}/{rest}" for top, _, rest in parts.values() if top in IN_THE_WHEEL}
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in inside if ".dist-info/" not in name} == expected
    with tarfile.open(sdist) as tar:
        assert not [member.name for member in tar if not member.isfile()]
        assert {name.partition("/")[2] for name in tar.getnames()} == tree | {"PKG-INFO"}


def test_the_wheel_without_extras_restores_trains_measures_and_plans(bare: Installed) -> None:
    assert all(verb in bare.run("--help").stdout for verb in verbs())
    assert "eval_degradation" in bare.run("evaluate", "--help").stdout
    bare.run("restore", f"input={photograph(bare.home)}", *CPU)
    assert np.asarray(Image.open(bare.home / "restored/photo.png")).shape == (40, 48, 3)
    bare.run("train", *TRAIN)
    scores = bare.run("evaluate", "weights=mine", *CPU, *FEW, "run_dir=scores", "pictures=1", "format=json")
    assert json.loads(scores.stdout)["record"] == "scores"
    assert "artefacts" in bare.run("table", "spire/table6", "--plan").stdout
    assert bare.run("describe").stdout and bare.run("doctor", "method=spire").stdout
    shipped = {path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml")}
    found = next((bare.python.parents[1] / "lib").glob("*/site-packages/restore_lab/conf"))
    assert {path.relative_to(found) for path in found.rglob("*.yaml")} == shipped


def test_a_table_without_weights_is_made(bare: Installed) -> None:
    file = bare.home / "my_conf/experiment/mine/theirs.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(TABLE)
    words = ("table", "mine/theirs", "--config-dir=my_conf")
    bare.run(*words, "inputs_dir=lq")
    (lq,) = (bare.home / "lq").rglob("*.png")
    theirs = bare.home / "systems/theirs" / lq.name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(lq.read_bytes())
    assert "| another system | " in bare.run(*words, "systems_dir=systems").stdout


def test_the_sdist_installs_and_restores(sdist: Path, tmp_path: Path) -> None:
    """The wheel above is built out of it, so what it holds is known."""
    made = Installed(tmp_path, str(sdist))
    made.run("restore", f"input={photograph(made.home)}", *CPU)
    assert (made.home / "restored/photo.png").is_file()


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("restore", "input=photo.png", "memory=nf4", *CPU), "quant"),
        (("restore", "input=photo.png", "memory=int8", *CPU), "torchao"),
        (("evaluate", "system=photo.safetensors", *FEW), "systems"),
        (("demo",), "demo"),
        (("dashboard", "spire/table6", "output=board.json"), "wandb"),
        (
            ("train", *(word for word in TRAIN if word != "logger=none"), "run_dir=a", "logger=tensorboard"),
            "tensorboard",
        ),
        (("train", *TRAIN, "run_dir=b", "trainer=deepspeed"), "deepspeed"),
        (("train", "-m", "max_steps=1,2", "hydra/launcher=joblib"), "joblib"),
        (("train", "-m", "max_steps=1,2", "hydra/sweeper=optuna"), "optuna"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_needs_an_extra_names_it_in_one_line(bare: Installed, words: tuple[str, ...], extra: str) -> None:
    photograph(bare.home)
    (bare.home / "photo.safetensors").touch()
    said = bare.run(*words, code=2).stderr.strip().splitlines()[-1]
    assert said.startswith("restore-lab: ") and f"pip install 'restore-lab[{extra}]'" in said
