"""`make` from a test, with the running environment as .venv."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.checkout import ROOT


def make(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`make WORDS` in a folder with the Makefile; no target makes an environment, since this one is there.

    It does not know that it runs below the make of `make test`, whose recursion it would announce on both streams.
    """
    there = (f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed")
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *words, *there], cwd=folder, env=own, capture_output=True, text=True, check=False)
