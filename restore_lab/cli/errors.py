"""User-facing errors: one line on stderr and an exit code, with the valid names.

Bad input is a ValueError of this package, a missing file, or an error of Hydra or OmegaConf: exit code 2. Machine
faults (system/faults.py) exit with 3; the same command continues after the repair. Anything else is a bug and keeps its
traceback, including a ValueError inside another library. `RESTORE_LAB_TRACEBACK=1` shows every traceback.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from restore_lab.config.bounds import check_config_folder
from restore_lab.config.extras import advice
from restore_lab.config.kinds import abbreviate
from restore_lab.config.suggest import nearest, offer
from restore_lab.system.faults import EXIT_CODE, Fault, Termination, describe_bad_path, describe_fault
from restore_lab.system.terminal import escape_control

PACKAGE_FOLDER = str(Path(__file__).resolve().parents[1])
PLUGINS = ("joblib", "optuna", "ray", "submitit")  # of Hydra's, extras of this package


@contextlib.contextmanager
def exit_with_one_line() -> Iterator[None]:
    """Turn errors that the user can fix into one line on stderr and exit code 2."""
    try:
        yield
    except Termination as stop:
        print(f"restore-lab: {stop.text}", file=sys.stderr)
        raise
    except KeyboardInterrupt as stop:
        print(f"restore-lab: interrupted{f' {stop}' if str(stop) else ''}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        why = None if is_bad_input(error) else describe_fault(error)
        if os.environ.get("RESTORE_LAB_TRACEBACK") or not (why or is_bad_input(error)):
            raise
        text = f"{why}; the same command continues" if why else flatten(error)
        print(f"restore-lab: {text}{advice(text)}", file=sys.stderr)
        raise SystemExit(EXIT_CODE if why or isinstance(error, Fault) else 2) from None


@contextlib.contextmanager
def explain_override_errors(*, verb: str, folders: Sequence[Path], overrides: Sequence[str]) -> Iterator[None]:
    """Add the existing settings, parts or options to Hydra's error about an override.

    Args:
        folders: config folders: the package's, then the user's.
    """
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from yaml import YAMLError

    try:
        for folder in folders[1:]:
            check_config_folder(folder)
        _check_choices(overrides, verb=verb, folders=folders)
        yield
    except RecursionError as error:
        raise ValueError("a config or a setting is nested too deeply to be read; give it fewer levels") from error
    except YAMLError as error:
        raise ValueError(f"a config is not YAML that can be read: {flatten(error)}") from error
    except MissingConfigException as error:
        missing = error.missing_cfg_file or ""
        raise ValueError(_no_option(missing, folders) if missing else flatten(error)) from error
    except OverrideParseException as error:
        word, hint = str(error.override), "quote a value that holds , = [ ] { } ( ) or quotes: key=\"'a, b'\""
        reason = f"{flatten(error)}; {hint}" if "=" in word else "expected KEY=VALUE"
        raise ValueError(f"cannot read {word!r}: {reason}") from error
    except ConfigCompositionException as error:
        match = re.search(r"Could not override '([^']+)'", str(error))
        if match is None:
            raise
        raise ValueError(_no_setting(match[1], verb=verb, folders=folders, overrides=overrides)) from error


def is_bad_input(error: Exception) -> bool:
    """Whether the user, not a developer, can fix this error."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    hydra_folder = str(Path(hydra.__file__).parent)  # Hydra raises a plain ValueError for incompatible flags
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    if describe_bad_path(error) or isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        return True
    if isinstance(error, ModuleNotFoundError):
        return bool(advice(str(error)))  # an extra installs it
    return isinstance(error, ValueError) and _raised_in(error).startswith((PACKAGE_FOLDER, hydra_folder))


def flatten(error: BaseException) -> str:
    """The message as one line, without the details that Hydra and OmegaConf append."""
    if isinstance(error, OSError) and error.strerror:
        return escape_control(
            describe_bad_path(error) or (f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
        )
    text = re.split(r"\n\s*(?:full_key:|object_type=|See https?://|Config search path:)", str(error))[0]
    return escape_control(" ".join(text.split()))


def groups(folders: Iterable[Path]) -> dict[str, list[str]]:
    """Each config group and its options: {"prompt/semantic": ["caption", ...], "experiment": ["spire/table5", ...]}.

    A folder inside a group is a group of its own, except in `experiment`, where it is part of the option's name.
    """
    from hydra.core.object_type import ObjectType

    from restore_lab.config.config_source import FileConfigSource

    found: dict[str, set[str]] = {}
    for base in folders:
        source = FileConfigSource(provider="", path=str(base))
        queue = source.list("", ObjectType.GROUP)
        for group in queue:
            queue += [f"{group}/{name}" for name in source.list(group, ObjectType.GROUP)]
            names = group.split("/")
            depth = 1 if names[0] == "experiment" else len(names)
            options = {"/".join((*names[depth:], name)) for name in source.list(group, ObjectType.CONFIG)}
            if options:
                found.setdefault("/".join(names[:depth]), set()).update(options)
    return {group: sorted(options) for group, options in sorted(found.items())}


def _check_choices(overrides: Sequence[str], *, verb: str, folders: Sequence[Path]) -> None:
    """Refuse an override that is no valid choice of a group, or that deletes a setting.

    Raises:
        ValueError: with the valid choices, or the nearest setting.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    existing = groups(folders)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if override.is_delete() and key not in existing and "." not in key and not override.is_hydra_override():
            raise ValueError(f"~{key}: a setting cannot be taken away; give it another value: {key}=...")
        if key not in existing or override.is_delete() or override.is_sweep_override():
            continue
        value = override.value()
        if override.is_force_add() and isinstance(value, dict):  # nodes added to those of the group
            continue
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            alike = [name for name in _names(verb, folders) if name.endswith(key) and name != key]
            meant = f"; for a number write {alike[0]}={value}" if alike else ""
            raise ValueError(
                f"{key}={abbreviate(value)}: no option of that name{meant}{offer(str(value), existing[key])}"
            )


def _names(verb: str, folders: Sequence[Path]) -> list[str]:
    """The settings that a verb's own yaml names."""
    from omegaconf import OmegaConf

    file = folders[0] / f"{verb}.yaml"
    return [str(name) for name in OmegaConf.load(file)] if file.is_file() else []


def _raised_in(error: Exception) -> str:
    """The file of the line that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename if trace is not None else ""


def _no_option(missing: str, folders: Sequence[Path]) -> str:
    """`missing` is a group and an option, "data/nope"; the group is its longest part that exists."""
    existing = groups(folders)
    parts = missing.removesuffix(".yaml").split("/")
    if plugin := _plugin(parts):
        return f"{missing} needs Hydra's plugin for {plugin}: pip install 'restore-lab[{plugin}]'"
    # An option may have folders of its own (experiment=priors/tiny_sd): then the first name is the group.
    for depth in [1] if parts[0] == "experiment" else range(len(parts) - 1, 0, -1):
        group = "/".join(parts[:depth])
        if group in existing:
            return f"no option {'/'.join(parts[depth:])!r} for {group}{offer('/'.join(parts[depth:]), existing[group])}"
    return f"no config {missing!r}{offer(missing, existing)}"


def _plugin(parts: Sequence[str]) -> str | None:
    """The plugin that provides an option of one of Hydra's own groups; None if no plugin does."""
    named = parts[-1].partition("_")[0]
    return named if parts[0] == "hydra" and named in PLUGINS else None


def _no_setting(key: str, *, verb: str, folders: Sequence[Path], overrides: Sequence[str]) -> str:
    existing = groups(folders)
    if key in existing:
        return f"{verb} has no part of the group {key!r} to replace; to add one write +{key}=..."
    if "/" in key:
        return f"no group {key!r}{offer(key, existing)}"
    parent, _, name = key.rpartition(".")
    settings = _settings(verb=verb, folders=folders, overrides=overrides, groups_=existing)
    beside = [place.removeprefix(f"{parent}.") for place in settings if place.rpartition(".")[0] == parent]
    elsewhere = [place for place in settings if place.endswith(f".{name}")]
    if parent and beside:
        return f"no setting {name!r} in {parent}{offer(name, beside)}"
    close = min(elsewhere, key=len) if elsewhere and not parent else nearest(key, settings)
    if parent or elsewhere:
        return f"no setting {key!r}" + (f"; did you mean {close!r}?" if close else "")
    return f"no setting or group {name!r}{offer(name, dict.fromkeys([*beside, *existing]))}"


def _settings(
    *, verb: str, folders: Sequence[Path], overrides: Sequence[str], groups_: dict[str, list[str]]
) -> list[str]:
    """The dotted keys of all settings, with the parts chosen on the command line."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from restore_lab.config.config_source import hydra_at

    choices = [word for word in overrides if word.partition("=")[0].lstrip("+") in groups_]
    choices += [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders[1:])}]"] if folders[1:] else []
    GlobalHydra.instance().clear()
    try:
        with hydra_at(folders[0]):
            return list(_places(OmegaConf.to_container(compose(config_name=verb, overrides=choices), resolve=False)))
    except HydraException:
        return []


def _places(node: object, within: str = "") -> Iterator[str]:
    """The dotted keys of a config's nodes and values; interpolated nodes are not expanded."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{within}{key}"
        yield from _places(value, f"{within}{key}.")
