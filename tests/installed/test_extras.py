"""Each extra in the installed wheel, and the make targets that fetch packages: `make test-extras`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.make import make
from tests.installed.conftest import CPU, FEW, TRAIN, Installed, photograph

pytestmark = [pytest.mark.installed, pytest.mark.slow]
TOGETHER = ("iqa", "systems", "figures", "demo", "wandb", "quant", "torchao", "tensorboard", "joblib", "submitit")
FIGURE = """# @package _global_
table:
  title: what a picture needs
  source: {paper: mine}
  columns: {PSNR: {metric: psnr, better: more}, SSIM: {metric: ssim, better: more}}
  figure: {kind: frontier, fidelity: PSNR, quality: SSIM, knob: Knob, value: Value, reference: {tiny: [10, 0]}}
  evaluate: [metrics=fidelity, "eval_data.names=[camera]", eval_data.size=32, eval_data.crop=16, sampler.steps=1]
  rows:
    one: {title: SPIRE, labels: {Knob: default}, weights: shipped, published: [20.0, 0.5]}
    two: {title: SPIRE, labels: {Knob: steps, Value: 2}, weights: shipped, evaluate: [sampler.steps=2]}
"""
NETWORK = """
import torch
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN
network = ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=4)
save_file({name: value.contiguous() for name, value in network.state_dict().items()}, "theirs.safetensors")
"""
PAGE = """
from restore_lab.config.compose import compose_config
from restore_lab.demo.page import build_page
print(type(build_page(compose_config("demo", ["device=cpu"]))).__name__)
"""


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel with the extras that go together."""
    return Installed(tmp_path_factory.mktemp("full"), f"{wheel}[{','.join(TOGETHER)}]")


def python(place: Installed, code: str) -> str:
    """What a script prints in the empty folder."""
    command = [str(place.python), "-c", code]
    return subprocess.run(command, cwd=place.home, capture_output=True, text=True, check=True).stdout


def test_iqa_measures_by_pyiqa(full: Installed) -> None:
    (full.home / "pictures").mkdir()
    photograph(full.home / "pictures")
    words = ("restored=pictures", "reference=pictures", "metrics=offline", "device=cpu", "format=json")
    cells = json.loads(full.run("evaluate", *words, "run_dir=iqa").stdout)
    assert "fsim" in json.dumps(cells)


def test_systems_runs_a_network_of_another_project(full: Installed) -> None:
    python(full, NETWORK)
    found = full.run("evaluate", "system=theirs.safetensors", *FEW, "device=cpu", "run_dir=theirs", "format=json")
    assert json.loads(found.stdout)["record"] == "theirs"


def test_figures_draws_a_tables_picture(full: Installed) -> None:
    file = full.home / "my_conf/experiment/mine/figure.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(FIGURE)
    full.run("table", "mine/figure", "--config-dir=my_conf", "output=out")
    assert [path for path in (full.home / "out").rglob("*") if path.suffix in (".svg", ".png", ".pdf")]


def test_demo_builds_its_page(full: Installed) -> None:
    assert python(full, PAGE).strip() == "Blocks"


def test_wandb_writes_a_dashboard_without_an_account(full: Installed) -> None:
    assert json.loads(full.run("dashboard", "spire/table6", "--dry-run").stdout)


@pytest.mark.parametrize("memory", ["nf4", "int8", "fp8"])
def test_quant_and_torchao_keep_the_prior_in_fewer_bits(full: Installed, memory: str) -> None:
    full.run("restore", f"input={photograph(full.home)}", f"memory={memory}", f"output={memory}", *CPU)
    assert (full.home / memory / "photo.png").is_file()


def test_tensorboard_gets_a_run(full: Installed) -> None:
    full.run("train", *(word for word in TRAIN if not word.startswith("logger")), "logger=tensorboard")
    assert list((full.home / "runs/tensorboard").rglob("events.*"))


def test_joblib_launches_a_sweep(full: Installed) -> None:
    words = ("trainer.accelerator=cpu", "logger=none", "batch_size=2", "workers=0", "progress=false")
    full.run("train", "-m", "max_steps=1,2", *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert len(list((full.home / "runs/spire").glob("adaptor-*/adaptor.safetensors"))) == 2


@pytest.mark.parametrize("extra", ["optuna", "ray", "deepspeed"])
def test_an_extra_that_pins_old_versions_installs_where_it_can(wheel: Path, tmp_path: Path, extra: str) -> None:
    """They pin old versions of what they stand on, which not every Python has wheels of."""
    try:
        made = Installed(tmp_path, f"{wheel}[{extra}]")
    except AssertionError as error:
        pytest.skip(" ".join(str(error).split())[-300:])
    assert made.run("--help").stdout


@pytest.mark.parametrize("target", ["lock", "lock-xla"])
def test_a_lock_is_written_and_names_no_index(target: str, tmp_path: Path) -> None:
    name = "requirements.lock" if target == "lock" else "requirements-xla.lock"
    for file in ("Makefile", "pyproject.toml", "README.md", name):
        shutil.copy(ROOT / file, tmp_path)
    done = make(target, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / name).read_text()
    assert "torch==" in text and "://" not in text


def test_an_archive_unpacked_in_a_path_with_a_space_sets_itself_up_and_runs(tmp_path: Path) -> None:
    """`git archive`, `make setup`, the site, and the first command of the README at its smallest."""
    folder = tmp_path / "a copy"
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive, check=True)
    small = ("TRAIN=max_steps=1 trainer.accelerator=cpu batch_size=2", "EVALUATE=device=cpu sampler.steps=1")
    for words in (("setup",), ("docs",), ("quickstart", *small)):
        done = subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert (folder / "dist/site/index.html").is_file() and sys.prefix not in str(folder)
    assert list((folder / "runs").rglob("pictures.png"))
