"""`restore-lab WORDS` in a forked process, which starts at once and can be killed.

It has the modules that the tests have imported, but rounds as ever; what it imports and sets itself ends with it.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch.nn import functional as F

from tests.helpers.rounding import LAYERS

IMPORTED = ("lightning.pytorch", "scipy.signal", "restore_lab.methods.module")  # once, and not in every process


def forked(
    *words: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    paths: tuple[Path, ...] = (),
    timeout: float = 400,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        words: its words, the verb first.
        cwd: where.
        env: further environment variables.
        paths: what PYTHONPATH names.
        timeout: in seconds; what takes longer hangs.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(*words, cwd=cwd, env=env, paths=paths, out=out, err=err)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, process.exitcode, out.read(), err.read())


def start(
    *words: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    paths: tuple[Path, ...] = (),
    out: IO[str] | None = None,
    err: IO[str] | None = None,
) -> Any:
    """A command at work, a `multiprocessing.Process`; what it says goes into the files, if they are given."""
    for name in IMPORTED:
        importlib.import_module(name)
    process = multiprocessing.get_context("fork").Process(
        target=_typed, args=(words, cwd, dict(env or {}), paths, out, err)
    )
    process.start()
    return process


def _typed(
    words: tuple[str, ...],
    cwd: Path,
    env: dict[str, str],
    paths: tuple[Path, ...],
    out: IO[str] | None,
    err: IO[str] | None,
) -> None:
    from restore_lab.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in ((1, out), (2, err)):
        if file is not None:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    os.chdir(cwd)
    os.environ.update(env)
    sys.path[:0] = map(str, paths)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    for name in LAYERS:
        setattr(F, name, inspect.unwrap(getattr(F, name)))
    sys.argv = ["restore-lab", *words]
    sys.modules["__main__"] = sys.modules[main.__module__]  # which Lightning types again for its other ranks
    try:
        main()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
