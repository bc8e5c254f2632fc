"""Every argument that a config can give a part is read somewhere; checked over the source.

An argument counts as read if its constructor does more with it than store it or refuse it, or if the attribute that it
is stored as is read: by a method that runs for this class (one that a subclass replaces does not), or anywhere outside
the class and its bases.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.helpers.checkout import PACKAGE, ROOT

# What a kind of part is called with, and this one needs nothing of: not settings.
CALLED_WITH = {
    ("restore_lab.decoders.codec.CodecDecoder", "backbone"),
    ("restore_lab.adaptors.lq_encoder.CodecEncoder", "backbone"),
    ("restore_lab.samplers.colour.keep", "reference_BCHW"),
}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    files = PACKAGE.rglob("*.py")
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): ast.parse(file.read_text()) for file in files}


@cache
def parts() -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """What the shipped configs build, by `_target_`."""
    texts = [file.read_text() for folder in ("conf", "experiments") for file in (ROOT / folder).rglob("*.yaml")]
    named = {name for text in texts for name in re.findall(r"_target_: *(restore_lab[\w.]+)", text)}
    found = {}
    for target in sorted(named):
        home, _, name = target.rpartition(".")
        found[target] = next(node for node in definitions(modules()[home]) if node.name == name)
    return found


def definitions(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    return (node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))


@cache
def classes() -> dict[str, ast.ClassDef]:
    found = (node for tree in modules().values() for node in definitions(tree))
    return {node.name: node for node in found if isinstance(node, ast.ClassDef)}


def lineage(kind: ast.ClassDef) -> list[ast.ClassDef]:
    """The class and its bases in the package."""
    bases = [classes().get(ast.unparse(base).rpartition(".")[2]) for base in kind.bases]
    return [kind, *(one for base in bases if base is not None for one in lineage(base))]


def methods(kind: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Those that run: its own, and of its bases those that it does not replace, or calls by super()."""
    replaced: set[str] = set()
    for one in lineage(kind):
        own = [node for node in one.body if isinstance(node, ast.FunctionDef)]
        yield from (method for method in own if method.name not in replaced)
        replaced |= {method.name for method in own if f"super().{method.name}" not in ast.unparse(method)}


def attributes(node: ast.AST) -> set[str]:
    """The names of the attributes that are read in it."""
    read = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    by_name = (n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) in ("getattr", "hasattr"))
    return read | {n.args[1].value for n in by_name if isinstance(n.args[1], ast.Constant)}


@cache
def outside() -> list[tuple[str, set[str]]]:
    """What each top-level statement of the package reads, with the name of what it defines."""
    return [(getattr(node, "name", ""), attributes(node)) for tree in modules().values() for node in tree.body]


def arguments(function: ast.FunctionDef) -> list[str]:
    given = function.args
    return [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs) if one.arg not in ("self", "cls")]


def fate(init: ast.FunctionDef, name: str) -> tuple[bool, set[str], str | None]:
    """Of a constructor's argument: whether it is used at once, what it is stored as, and what the base knows it as."""
    passed_over: set[int] = set()
    stored: set[str] = set()
    handed_on = None
    for node in ast.walk(init):
        refusal = isinstance(node, ast.If) and not node.orelse and all(isinstance(n, ast.Raise) for n in node.body)
        if refusal:
            passed_over |= {id(n) for n in ast.walk(node)}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Name) and keyword.value.id == name:
                    handed_on = keyword.arg
                    passed_over.add(id(keyword.value))
        if isinstance(node, ast.Assign):
            for target, value in assigned(node):
                if isinstance(target, ast.Attribute) and name in names(value):
                    stored.add(target.attr)
                    passed_over |= {id(n) for n in ast.walk(value)}
    used = any(isinstance(n, ast.Name) and n.id == name and id(n) not in passed_over for n in ast.walk(init))
    return used, stored, handed_on


def assigned(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=True)
        else:
            yield target, node.value


def names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def unread(part: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """The arguments that nothing reads."""
    if isinstance(part, ast.FunctionDef):
        return [name for name in arguments(part) if name not in set().union(*map(names, part.body))]
    line = lineage(part)
    own = {one.name for one in line}
    read = set().union(*(attributes(method) for method in methods(part)))
    read |= set().union(*(found for name, found in outside() if name not in own))
    inits = [n for one in line for n in one.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if not inits:  # a dataclass
        fields = [n.target.id for one in line for n in one.body if isinstance(n, ast.AnnAssign)]
        return [name for name in fields if name not in read]
    return [name for name in arguments(inits[0]) if not _is_read(name, inits, read)]


def _is_read(name: str, inits: list[ast.FunctionDef], read: set[str]) -> bool:
    known: str | None = name
    for init in inits:
        if known is None or known not in arguments(init):
            return False
        used, stored, known = fate(init, known)
        if used or stored & read:
            return True
    return False


@pytest.mark.parametrize("target", parts())
def test_every_argument_of_a_part_is_read(target) -> None:
    found = [name for name in unread(parts()[target]) if (target, name) not in CALLED_WITH]
    assert found == [], f"{target} accepts {', '.join(found)} and does nothing with it; use it, or take it away"


def test_the_check_finds_an_unread_argument() -> None:
    """An argument that a base stores, and whose one reader a subclass replaces: Diff-Restorer's `lq_targets` once."""
    source = """
class Base_:
    def __init__(self, *, kept_, share_, mode_):
        if not 0 <= share_ <= 1:
            raise ValueError
        self.kept_, self.share_ = kept_, share_
        self.mode_ = str(mode_)
    def step_(self):
        return self.kept_ + self.mode_
class Child_(Base_):
    def __init__(self, *, kept_, share_, mode_, made_):
        super().__init__(kept_=kept_, share_=share_, mode_=mode_)
        self.net_ = made_()
    def step_(self):
        return self.net_
"""
    tree = ast.parse(source)
    modules()["restore_lab._example"] = tree
    classes.cache_clear()
    try:
        base, child = definitions(tree)
        assert unread(base) == ["share_"]  # checked and stored is not used
        assert unread(child) == ["kept_", "share_", "mode_"]
    finally:
        del modules()["restore_lab._example"]
        classes.cache_clear()


CHECKS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn)  # of a range, and of a choice
PLAIN_CALLS = {"get_args", "isinstance", "min", "max"}


def single_checks(part: ast.ClassDef | ast.FunctionDef, choices: set[str]) -> list[str]:
    """The ranges and choices of one argument for which a constructor raises itself; `choices` are names of some."""
    bodies = [part] if isinstance(part, ast.FunctionDef) else [node for one in lineage(part) for node in one.body]
    found = []
    for init in (node for node in bodies if isinstance(node, ast.FunctionDef)):
        if init is part or init.name in ("__init__", "__post_init__"):
            raising = [
                n for n in ast.walk(init) if isinstance(n, ast.If) and any(isinstance(m, ast.Raise) for m in n.body)
            ]
            clauses = [clause for node in raising for clause in alternatives(node.test)]
            found += [ast.unparse(one) for one in clauses if is_single(one, {*arguments(init), "self"}, choices)]
    return found


def alternatives(test: ast.expr) -> list[ast.expr]:
    """The operands of `or`."""
    return test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) else [test]


def is_single(clause: ast.expr, known: set[str], choices: set[str]) -> bool:
    """Whether a condition compares one argument, or one field of self, with constants alone."""
    fields = {ast.unparse(node) for node in ast.walk(clause) if isinstance(node, ast.Attribute)}
    used = (names(clause) | fields) - PLAIN_CALLS - choices - ({"self"} if fields else set())
    compared = any(
        isinstance(op, CHECKS) for node in ast.walk(clause) if isinstance(node, ast.Compare) for op in node.ops
    )
    return compared and len(used) == 1 and used.pop().partition(".")[0] in known


def constants(tree: ast.Module) -> set[str]:
    """The names of a module's choices: tuples of plain values, and Literals."""
    assigned_ = [n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
    return {
        n.targets[0].id
        for n in assigned_
        if ast.unparse(n.value).startswith("Literal[")
        or (isinstance(n.value, ast.Tuple) and all(isinstance(one, ast.Constant) for one in n.value.elts))
    }


@pytest.mark.parametrize("target", parts())
def test_a_constructor_leaves_to_its_annotations_what_they_can_say(target) -> None:
    found = single_checks(parts()[target], constants(modules()[target.rpartition(".")[0]]))
    assert found == [], f"{target}: say it in the argument's annotation (config/kinds.py), {' and '.join(found)}"


def test_that_check_sees_what_it_is_for() -> None:
    source = """
SIDES = ("left", "right")
class Part_:
    def __init__(self, *, share, side, low, high, backbone):
        if not 0 <= share <= 1:
            raise ValueError
        if side not in SIDES:
            raise ValueError
        if low >= high or low > backbone.most:
            raise ValueError
        if share > 0 and side is None:
            raise ValueError
        if side is None or self.low < 0:
            raise ValueError
"""
    tree = ast.parse(source)
    (part,) = definitions(tree)
    assert single_checks(part, constants(tree)) == ["not 0 <= share <= 1", "side not in SIDES", "self.low < 0"]
