"""`make` from a test, with the environment that runs the test in the place of .venv."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.pages import ROOT


def make(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`make WORDS` in a folder with the Makefile; no target makes an environment, since this one is there."""
    there = (f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed")
    return subprocess.run(["make", *words, *there], cwd=folder, capture_output=True, text=True, check=False)
