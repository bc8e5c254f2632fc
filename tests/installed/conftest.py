"""The built files and their environments: `make wheel`, and an environment for each file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.make import make

CPU = ("device=cpu", "sampler.steps=2")
FEW = ("eval_data.names=[camera,coffee]", "eval_data.size=32", "eval_data.crop=16", "metrics=fidelity")
TRAIN = ("max_steps=2", "batch_size=2", "workers=0", "trainer.accelerator=cpu", "logger=none", "run_dir=mine")


class Installed:
    """An environment with a built file in it, and an empty folder to work in."""

    def __init__(self, folder: Path, requirement: str) -> None:
        """Make both; packages are those of requirements.lock, linked from uv's cache where they are there.

        Args:
            folder: for the environment and the empty folder, whose name has a space.
            requirement: the file, with extras or without.
        """
        self.home, self.python = folder / "an empty folder", folder / "env/bin/python"
        self.home.mkdir(parents=True)
        uv("venv", "--quiet", "--python", sys.executable, str(folder / "env"), folder=folder)
        pins = ("--constraint", str(ROOT / "requirements.lock"))
        uv("pip", "install", "--quiet", "--python", str(self.python), *pins, requirement, folder=folder)

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """`restore-lab` in the empty folder, which has to end with `code`."""
        command = [str(self.python.with_name("restore-lab")), *words]
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RESTORE_LAB_DATASETS")}
        done = subprocess.run(command, cwd=self.home, env=kept, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def uv(*words: str, folder: Path) -> None:
    """Run uv outside of the checkout, whose settings for uv are not an installed package's."""
    command = [sys.executable, "-m", "uv", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make wheel` wrote."""
    folder = tmp_path_factory.mktemp("dist")
    done = make("wheel", f"DIST={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    """The wheel, which uv builds out of the sdist."""
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def sdist(dist: Path) -> Path:
    """The sdist."""
    (found,) = dist.glob("*.tar.gz")
    return found


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel without extras."""
    return Installed(tmp_path_factory.mktemp("bare"), str(wheel))


def photograph(folder: Path) -> str:
    """A small photograph there."""
    from PIL import Image
    from skimage import data

    Image.fromarray(data.astronaut()).resize((48, 40)).save(folder / "photo.png")
    return "photo.png"
