"""The annotated arguments of a `_target_`'s constructor, read from the package's source without importing it.

So configs are checked against constructors without torch. Another package's target is inspected after its import;
arguments without annotation are Any.
"""

from __future__ import annotations

import ast
import collections.abc
import functools
import importlib
import inspect
import math
import operator
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from restore_lab.config.kinds import Kind, Part, Value

_PACKAGE = Path(__file__).resolve().parents[1]
_PLAIN_KINDS: Mapping[str, Kind] = {
    **{kind.__name__: kind for kind in (int, float, bool, str, list, dict, tuple, set, frozenset, object)},
    **{name: getattr(collections.abc, name) for name in ("Sequence", "Mapping", "Collection", "Iterable")},
    **{name: getattr(typing, name) for name in ("Any", "Literal", "Annotated", "Optional", "Union")},
    **{name: getattr(pathlib, name) for name in ("Path", "PurePath")},
    "Callable": Part,
    "math": math,
}
_ARITHMETIC: Mapping[type, Callable[[Value, Value], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}
# Hydra's own keys of a node with a `_target_`.
HYDRA_KEYS: Mapping[str, Kind] = {
    "_target_": str,
    "_args_": list,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": str,
}


@dataclass(frozen=True)
class Signature:
    """Annotations by argument; `var_keyword` is that of `**kwargs`, None without them."""

    kinds: Mapping[str, Kind]
    var_keyword: Kind = None


@functools.cache
def source_signature(target: str) -> Signature | None:
    """The signature of this package's target; None for other packages and for a missing one."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if parts[0] == _PACKAGE.name and (module := _module(".".join(parts[:length]))):
            return module.signature(parts[length]) if len(parts) == length + 1 else None
    return None


def object_signature(target: Callable[..., Any]) -> Signature | None:
    """The signature of an imported target; None if it cannot be inspected."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return None
    hints = _hints(target.__init__ if isinstance(target, type) else target)
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    kinds = {name: hints[name] if name in hints and _is_plain(hints[name]) else Any for name in named}
    return Signature(kinds, Any if any(p.kind == p.VAR_KEYWORD for p in parameters) else None)


def _is_plain(kind: Kind) -> bool:
    """Whether another package's annotation is a plain kind; its own classes cannot be checked here."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(one is not type(None) and _is_plain(one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is Annotated:
        return _is_plain(typing.get_args(kind)[0])
    return typing.get_origin(kind) in (typing.Literal, list, dict, tuple) or kind in (int, float, bool, str)


def _hints(function: Callable[..., Any]) -> Mapping[str, Kind]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # another package's annotations may name missing modules
        return {}


@functools.cache
def _module(name: str) -> _Module | None:
    file = _PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
    return _Module(name, ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else None


class _Module:
    """The classes, functions, aliases and imports of a module's source."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name = name
        self.definitions: dict[str, ast.AST] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                self.imports |= {one.asname or one.name: (node.module, one.name) for one in node.names}
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.definitions[node.targets[0].id] = node.value

    def signature(self, name: str) -> Signature | None:
        """The signature of a class or function defined here or imported from this package."""
        node = self.definitions.get(name)
        if node is None and name in self.imports:
            return source_signature(".".join(self.imports[name]))
        if isinstance(node, ast.FunctionDef):
            return self._of_function(node, skip=0)
        if not isinstance(node, ast.ClassDef):
            return None
        init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
        if init is not None:
            return self._of_function(init, skip=1)
        bases = [self.signature(base.id) for base in node.bases if isinstance(base, ast.Name)]
        found = [base for base in bases if base is not None]
        if not any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            if found:
                return found[0]
            return None if node.bases else Signature({})
        fields = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
        own = {one.target.id: self.kind(one.annotation) for one in fields if isinstance(one.target, ast.Name)}
        return Signature({**{k: v for base in found for k, v in base.kinds.items()}, **own})

    def _of_function(self, node: ast.FunctionDef, *, skip: int) -> Signature:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][skip:]
        kinds = {one.arg: self.kind(one.annotation) if one.annotation else Any for one in arguments}
        return Signature(kinds, Any if node.args.kwarg else None)

    def kind(self, node: ast.expr) -> Kind:
        """The annotation of an expression; Part for anything but a plain value."""
        if isinstance(node, ast.Constant):
            return self.kind(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node.value
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return operator.or_(self.kind(node.left), self.kind(node.right))
        if isinstance(node, ast.Subscript):
            return self._generic(node)
        return self._named(node.id) if isinstance(node, ast.Name) else Part

    def _generic(self, node: ast.Subscript) -> Kind:
        outer = self.kind(node.value)
        if outer is Part:
            return Part
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer is typing.Literal:
            return typing.Literal[tuple(ast.literal_eval(one) for one in inside)]
        if outer is Annotated:
            more = [self._value(one) for one in inside[1:]]
            return Annotated[self.kind(inside[0]), *more]
        return outer[tuple(... if ast.unparse(one) == "..." else self.kind(one) for one in inside)]

    def _named(self, name: str) -> Kind:
        """The annotation of a name: plain, an alias in this package, else a part."""
        node = self.definitions.get(name)
        if isinstance(node, ast.expr):
            return self.kind(node)
        module, original = self.imports.get(name, ("", ""))
        if module.startswith(f"{_PACKAGE.name}.config."):
            return getattr(importlib.import_module(module), original)
        if (other := _module(module)) is not None and module.startswith(_PACKAGE.name):
            return other._named(original)
        return Part if node is not None else _PLAIN_KINDS.get(name, Part)

    def _value(self, node: ast.expr) -> Value:
        """The metadata in Annotated: a Range(...) or Pattern(...) of numbers and text."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            make = self._named(node.func.id)
            return make(
                *map(self._value, node.args), **{one.arg: self._value(one.value) for one in node.keywords if one.arg}
            )
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](self._value(node.left), self._value(node.right))
        return ast.literal_eval(node)
