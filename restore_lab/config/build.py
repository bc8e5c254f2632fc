"""Builds objects from configs; the package's counterpart of `hydra.utils.instantiate`.

A node with `_target_` names a class or function; its other keys are the arguments, and nested nodes are built first.
`_args_`, `_partial_` and `_recursive_` work as in Hydra. Two things differ: constructors get plain Python values (a
`${` in a caption stays a `${`), and the whole tree is validated before anything is built: targets outside the
allowlist, unknown or missing arguments, and values that do not fit the constructor's annotations (kinds.py).

`trusted_packages=[my_lab]` on the command line adds your own packages to the allowlist. It reaches this module, and
every process it starts, through the environment; a stored config cannot set it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from restore_lab.config import signatures
from restore_lab.config.kinds import Kind, Mismatch, Value, coerce
from restore_lab.config.signatures import HYDRA_KEYS
from restore_lab.config.suggest import offer

TRUST_VARIABLE = "RESTORE_LAB_TRUSTED_PACKAGES"
ALLOWED = (
    "restore_lab.",
    "torch.nn.",
    "torch.optim.",
    "diffusers.schedulers.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.profilers.",
    "lightning.pytorch.strategies.",
    "lightning.pytorch.trainer.",
)
# Not parts of a model or a run: a stored config must not call them.
FORBIDDEN = ("restore_lab.cli.", "restore_lab.config.", "restore_lab.system.", "restore_lab.storage.")


class InvalidTarget(ValueError):
    """A `_target_` that is not allowed or does not exist."""


def build(config: Value, **overrides: Any) -> Any:
    """Build the objects of a config.

    Args:
        config: a DictConfig, ListConfig, dict or list; None gives None. Interpolations are resolved first.
        overrides: arguments for the outermost target, instead of the config's (which are then not built). They may be
            live objects.

    Raises:
        InvalidTarget: for a `_target_` outside the allowlist, or one that does not exist.
        ValueError: for a missing value, an unknown or a missing argument, or a value that does not fit its annotation.
    """
    node = _plain(config)
    if not (node is None or isinstance(node, dict | list)):
        raise ValueError(f"cannot build {_short(config)}: expected a config node")
    if overrides:
        if not isinstance(node, dict) or "_target_" not in node:
            raise ValueError(f"overrides {sorted(overrides)} need a config with a _target_; got {_short(node)}")
        node = {key: value for key, value in node.items() if key not in overrides}
    return _instantiate(_validated(node, where="", overridden=tuple(overrides)), overrides)


def build_nodes(config: Value, *, where: str) -> list[Any]:
    """Build each node of a setting with several nodes (`nodes_of`)."""
    return [build(node) for node in nodes_of(config, where=where)]


def nodes_of(config: Value, *, where: str) -> list[dict[str, Value]]:
    """The nodes of a setting: a mapping by name, in which null drops one, a list, or a single node.

    Args:
        config: the nodes.
        where: the setting, for errors.

    Raises:
        ValueError: for an entry without `_target_`.
    """
    node = _plain(config)
    listed = isinstance(node, list)
    named = {"": node} if isinstance(node, dict) and "_target_" in node else dict(enumerate(node)) if listed else node
    if not isinstance(named or {}, dict):
        raise ValueError(f"{where}={_short(node)}: expected nodes by name, or a list of nodes")
    for name, one in (named or {}).items():
        if one is not None and not (isinstance(one, dict) and "_target_" in one):
            raise ValueError(f"{where}.{name}={_short(one)}: expected a node with a _target_, or null to drop it")
    return [one for one in (named or {}).values() if one is not None]


def resolve_target(target: Value, *, where: str = "") -> Callable[..., Any]:
    """The class or function of a dotted `_target_`, if it is allowed.

    The module that defines it must be allowed too: `restore_lab.config.build.os.remove` is `os.remove`.
    """
    place = f"{where}: " if where else ""
    if not isinstance(target, str) or not _allowed(target):
        raise InvalidTarget(
            f"{place}_target_ {target!r} is not allowed; targets start with {', '.join(ALLOWED)} or with a package "
            "named on the command line: trusted_packages=[my_lab]"
        )
    found = _locate(target, place)
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
    if not callable(found) or not _allowed(home):
        raise InvalidTarget(f"{place}_target_ {target!r} is {home}, not a class or function of an allowed package")
    return found


def trust(packages: Sequence[str]) -> None:
    """Allow targets of these packages in this process and its children; for the command line only."""
    for name in packages:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"trusted_packages: {name!r} is not the name of a Python package")
    os.environ[TRUST_VARIABLE] = ",".join(packages)


def trusted_packages() -> tuple[str, ...]:
    """The packages named on the command line."""
    return tuple(name for name in os.environ.get(TRUST_VARIABLE, "").split(",") if name)


def _allowed(name: str) -> bool:
    if any(part.startswith("_") for part in name.split(".")[:1]) or name.startswith(FORBIDDEN):
        return False
    return name.startswith((*ALLOWED, *(f"{package}." for package in trusted_packages())))


def _locate(target: str, place: str) -> Any:
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise InvalidTarget(f"{place}_target_ {target!r} needs the module {error.name!r}: not installed") from error
        return _walk(module, parts[length:], f"{place}_target_ {target!r}")
    raise InvalidTarget(f"{place}_target_ {target!r} does not exist: no module {parts[0]!r}")


def _walk(found: object, names: Sequence[str], what: str) -> object:
    for name in names:
        if not hasattr(found, name):
            public = [other for other in vars(found) if not other.startswith("_")] if hasattr(found, "__dict__") else []
            raise InvalidTarget(f"{what} does not exist: {_label(found)} has no {name!r}{offer(name, public)}")
        found = getattr(found, name)
    return found


def _plain(config: Value) -> Value:
    """A config with interpolations resolved and OmegaConf's containers converted to dicts and lists."""
    if isinstance(config, DictConfig | ListConfig):
        try:
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ValueError(" ".join(str(error).split())) from error
    if isinstance(config, Mapping):
        return {key: _plain(value) for key, value in config.items()}
    return [_plain(value) for value in config] if isinstance(config, list | tuple) else config


def _validated(node: Value, *, where: str, overridden: Sequence[str] = ()) -> Value:
    """The validated tree, each value converted to its annotation.

    Raises:
        InvalidTarget: for a target that is not allowed.
        ValueError: for an argument or a value that does not fit.
    """
    if isinstance(node, list | tuple):
        return [_validated(value, where=f"{where}[{index}]") for index, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    kinds: Mapping[str, Kind] = {}
    if "_target_" in node:
        target = resolve_target(node["_target_"], where=where)
        _check_arguments(target, node, where=where, overridden=overridden)
        signature = signatures.source_signature(node["_target_"]) or signatures.object_signature(target)
        kinds = {} if signature is None else signature.kinds
    found = {}
    for key, value in node.items():
        place = f"{where}.{key}" if where else str(key)
        try:
            fitted = coerce(value, kinds[str(key)]) if key in kinds else value
        except Mismatch as error:
            raise error.at(place, value) from error
        found[key] = _validated(fitted, where=place)
    return found


def _check_arguments(
    target: Callable[..., Any], node: Mapping[str, Value], *, where: str, overridden: Sequence[str]
) -> None:
    try:
        signature = inspect.signature(target)
    except ValueError:
        return
    names = [key for key in node if key not in HYDRA_KEYS] + list(overridden)
    what = f"{where or 'config'} ({node['_target_']})"
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    for name in names:
        if name not in signature.parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ValueError(f"{what} takes no {name!r}{offer(name, list(signature.parameters))}")
    bind = signature.bind_partial if node.get("_partial_") else signature.bind
    try:
        bind(*node.get("_args_", ()), **dict.fromkeys(names))
    except TypeError as error:
        raise ValueError(f"{what}: {error}; it takes {', '.join(signature.parameters)}") from error


def _instantiate(node: Value, overrides: Mapping[str, Any]) -> Any:
    if isinstance(node, list | tuple):
        return [_instantiate(value, {}) for value in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: _instantiate(value, {}) for key, value in node.items()}
    nested = node.get("_recursive_", True)
    values = {key: _instantiate(value, {}) if nested else value for key, value in node.items() if key not in HYDRA_KEYS}
    positional = [_instantiate(value, {}) if nested else value for value in node.get("_args_", ())]
    target = resolve_target(node["_target_"])
    if node.get("_partial_", False):
        return functools.partial(target, *positional, **values, **overrides)
    return target(*positional, **values, **overrides)


def _label(found: object) -> str:
    return getattr(found, "__name__", type(found).__name__)


def _short(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
