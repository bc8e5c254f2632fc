"""`restore-lab <verb> [words]`: finds the verb, passes its words to Hydra, and reports errors in one line.

A verb is a module `restore_lab/cli/<verb>.py` (a trailing underscore where Python reserves the word: `import_.py`)
with a `run(cfg)`, and a config `conf/<verb>.yaml`. The first line of its docstring is its help; `POSITIONAL` and
`FREE_TEXT` (tuples of keys) and `KEY_ALIASES` (command-line key to config key) configure the front parser; with
`FOLLOWS_WEIGHTS` it applies the overrides that the given `weights` were trained with. Nothing here imports torch; a
verb's heavy imports are inside `run`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import keyword
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from restore_lab.cli import front
from restore_lab.config import build, checks, compose
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.suggest import offer
from restore_lab.storage.locks import first_rank
from restore_lab.system import processes, xla
from restore_lab.system.faults import EXIT_CODE, Termination
from restore_lab.system.terminal import EscapedStream, escape_control

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMPLETES = re.compile(r"[^\x00-\x1f\x7f$`\\\"'()<>|&;*?{}!#]*")
NOT_VERBS = frozenset(("__init__", "main", "front", "errors"))


def main() -> None:
    """The console script.

    Exit codes: 0 success, 1 a bug (with its traceback), 2 bad input, 3 a machine fault (the same command continues),
    130 interrupted, 143 terminated.
    """
    signal.signal(signal.SIGTERM, _terminated)
    _open_streams()
    try:
        with contextlib.redirect_stdout(EscapedStream(sys.stdout)):
            _dispatch(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `restore-lab ... | head` closed the pipe; avoids a second error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # > /dev/full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"restore-lab: what was asked for cannot be printed: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None


def _open_streams() -> None:
    """Reopen standard streams that the caller closed (`>&-`), so no other file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
    sys.stdin, sys.stdout, sys.stderr = (
        stream or os.fdopen(number, mode, closefd=False)
        for number, (stream, mode) in enumerate(((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w")))
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack a caption's characters


def _terminated(number: int, frame: object) -> None:
    """End the command on SIGTERM like on an error: partial files are deleted, child processes killed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
    raise Termination(number, "; the same command continues")


def _dispatch(words: Sequence[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
    elif words[0] == "--version":
        print(f"restore-lab {metadata.version('restore-lab')}")
    elif words[0] in ("-sc", "--shell-completion"):
        _complete(words)
    else:
        module = _load(words[0])
        if "-h" in words[1:] or "--help" in words[1:]:
            print((module.__doc__ or "").strip(), end="\n\n")
        run_verb(verb=words[0], module=module, words=words[1:], conf=conf_dir())


def run_verb(*, verb: str, module: ModuleType, words: Sequence[str], conf: Path) -> None:
    """Compose the verb's config from `words` and run it; errors that the user can fix are one line and exit code 2.

    Args:
        verb: the name of the config in `conf`.
        module: has `run(cfg)`, optionally `POSITIONAL`, `FREE_TEXT` and `KEY_ALIASES`.
    """
    from restore_lab.cli import errors

    with errors.exit_with_one_line():
        _check_here()
        xla.check_versions()
        typed = front.parse(
            words,
            positional=getattr(module, "POSITIONAL", ()),
            free=getattr(module, "FREE_TEXT", ()),
            aliases=getattr(module, "KEY_ALIASES", {}),
        )
        if typed.trusted_packages:
            build.trust(typed.trusted_packages)
        if getattr(module, "FOLLOWS_WEIGHTS", False):
            found = compose.merge_overrides(typed.overrides)
            typed = replace(typed, overrides=found.words)
            if found.line and first_rank() and not processes.is_launched_rank():
                print(f"restore-lab: {escape_control(found.line)}", file=sys.stderr)
        folders = [conf, *typed.config_dirs]
        with errors.explain_override_errors(verb=verb, folders=folders, overrides=typed.overrides):
            _hydra(verb=verb, run=module.run, arguments=typed.arguments, conf=conf)


def _check_here() -> None:
    """Check that the working directory exists, since results are written below it.

    Raises:
        ValueError: if it was deleted.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise ValueError("the working directory is gone; cd to one that is there") from error


def verbs() -> dict[str, str]:
    """Each verb and the first line of its module's docstring, read without importing the module."""
    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in NOT_VERBS and not path.stem.startswith("_"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem.rstrip("_")] = doc.partition("\n")[0]
    return found


def help_text() -> str:
    """The text of `restore-lab --help`."""
    listed = verbs()
    width = max((len(verb) for verb in listed), default=0)
    lines = [f"  {verb:<{width}}  {line}" for verb, line in listed.items()]
    return "\n".join(
        ["restore-lab <verb> [key=value ...] [--flag ...]", "", "Verbs:", *lines, ""]
        + ["restore-lab <verb> --help names its settings and parts; --cfg job prints its config; -m sweeps;"]
        + ["--config-dir FOLDER adds a folder of your own configs; RESTORE_LAB_TRACEBACK=1 shows tracebacks."]
    )


def _load(verb: str) -> ModuleType:
    listed = verbs()
    if verb not in listed:
        print(f"restore-lab: no verb {verb!r}{offer(verb, listed)}", file=sys.stderr)
        raise SystemExit(2)
    return importlib.import_module(f"restore_lab.cli.{verb}{'_' if keyword.iskeyword(verb) else ''}")


def _hydra(*, verb: str, run: Callable[[DictConfig], object], arguments: Sequence[str], conf: Path) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from restore_lab.config import config_source
    from restore_lab.launch import job

    typed = list(sys.argv)
    failed: list[Exception] = []

    def task(cfg: DictConfig) -> object:
        # Lightning starts its other ranks with sys.argv, which must be the original command line.
        sys.argv = typed
        try:
            checks.check_config(cfg, verb=verb)
            checks.check_files(cfg, verb=verb)
            processes.check_device(cfg.get("device"))
            return run(cfg)  # a sweeper's objective
        except Exception as error:
            # Of a single job Hydra would print a line of its own; of a sweep's jobs it should.
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            failed.append(error)
            return None

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises exceptions instead of printing them
    sys.argv = [typed[0], *arguments]
    job.take_ownership()
    config_source.register()
    try:
        hydra.main(version_base="1.3", config_path=str(conf), config_name=verb)(task)()
    finally:
        sys.argv = typed
    if failed:
        raise failed[0]


def _complete(words: Sequence[str]) -> None:
    """Hydra's shell completion, for a command line with a verb."""
    listed = verbs()
    typed = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) > 1 and words[1].startswith("query=") and (len(typed) < 3 or typed[1] not in listed):
        print("\n".join(verb for verb in listed if verb.startswith(typed[1] if len(typed) > 1 else "")))
        return
    querying = len(typed) > 2 and typed[1] in listed
    verb = typed[1] if querying else next(iter(listed))
    if not querying:
        run_verb(verb=verb, module=_load(verb), words=words, conf=conf_dir())
        return
    os.environ["COMP_LINE"] = " ".join([typed[0], *typed[2:]])
    with contextlib.redirect_stdout(io.StringIO()) as offered:
        run_verb(verb=verb, module=_load(verb), words=words, conf=conf_dir())
    # Hydra hands these to `compgen -W`, where bash would run a file's name such as $(command).
    print(" ".join(word for word in offered.getvalue().split() if COMPLETES.fullmatch(word)))


if __name__ == "__main__":
    main()
