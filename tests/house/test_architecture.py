"""The shape of the source: import direction, sizes, empty __init__ files, light modules; where tests are."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from tests.helpers.checkout import CONF, PACKAGE, ROOT

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
MAX_LINES = 400

# Imports run towards lower ranks, or stay inside one folder.
RANKS = {
    "system": -2,  # what a run does with the computer: processes, memory, faults
    "storage": -1,  # what it keeps: artefacts by identity, locks
    "config": 0,  # what a person wrote, before anything is built
    "types": 0,
    "random": 0,
    "tracking": 0.5,
    "data": 1,
    "degradation": 1,
    "prompts": 2,
    "backbones": 3,
    "adaptors": 4,
    "decoders": 4.5,
    "objectives": 5,
    "samplers": 5,
    "methods": 6,
    "inference": 7,
    "training": 8,
    "priors": 9,
    "evaluation": 10,
    "inspection": 11,
    "prepare": 11,
    "launch": 11,
    "importing": 12,
    "tables": 12,
    "demo": 12,
    "cli": 13,
}
HEAVY = frozenset(
    ("torch", "torchvision", "lightning", "diffusers", "transformers", "peft", "torchmetrics", "pyiqa", "wandb")
    + ("skimage", "scipy", "pandas", "pyarrow", "numpy", "PIL", "matplotlib")
)
LIGHT = ("types.py", "random.py", "__init__.py", "config/", "storage/", "system/", "cli/")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax."""
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path: Path) -> str:
    """The folder or module of the package that a file belongs to: "data", "types"."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of everything that a tree imports, wherever in it."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def at_start(tree: ast.Module) -> list[tuple[int, str]]:
    """Imports that run with the module: not those in functions or for type checkers only."""
    found: list[tuple[int, str]] = []
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += imported(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            queue += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            queue += ast.iter_child_nodes(node)  # a class's body, but not its methods
    return found


def backward_imports(part: str, tree: ast.AST) -> list[str]:
    """The imports of a file of `part` that run against the direction."""
    wrong: list[str] = []
    for line, name in imported(tree):
        parts = name.split(".")
        if parts[0] != PACKAGE.name or len(parts) < 2 or parts[1] == part:
            continue
        # Two folders of one rank do not know each other; all know types.
        same_rank = RANKS[parts[1]] == RANKS[part] and parts[1] != "types"
        if RANKS[parts[1]] > RANKS[part] or same_rank:
            wrong.append(f"line {line}: {part} imports {name}")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    if path.name == "__init__.py" and path.parent == PACKAGE:
        return
    assert part_of(path) in RANKS, f"{name_of(path)}: a new folder needs a rank in tests/house/test_architecture.py"
    assert backward_imports(part_of(path), parsed(path)) == []


def module_of(path: Path) -> str:
    """The dotted name of a file of the package: "restore_lab.data.dataset"."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A chain of modules that ends where it begins, imports in functions and for type checkers too; empty for none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_two_modules_import_each_other() -> None:
    names = {module_of(path): path for path in MODULES if path.name != "__init__.py"}
    graph = {
        name: {
            target
            for _, other in imported(parsed(path))
            for target in (other, other.rpartition(".")[0])
            if target in names and target != name
        }
        for name, path in names.items()
    }
    assert circle(graph) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


# What a restored photograph never needs; each costs seconds, and Lightning brings most of the others.
FOR_TRAINING = ("lightning", "torchmetrics", "torchvision", "peft", "pyiqa", "wandb")
RESTORING = [
    path
    for path in MODULES
    if part_of(path) in RANKS and RANKS[part_of(path)] <= RANKS["inference"] and path.name != "datamodule.py"
]


@pytest.mark.parametrize("path", RESTORING, ids=name_of)
def test_restoring_imports_no_training_library_at_start(path: Path) -> None:
    heavy = [(line, name) for line, name in at_start(parsed(path)) if name.split(".")[0] in FOR_TRAINING]
    assert heavy == [], f"{name_of(path)}: import these inside a function"


def test_the_check_finds_a_backward_import_inside_a_function() -> None:
    tree = ast.parse("def f():\n    from restore_lab.cli import main\n")
    assert backward_imports("data", tree) == ["line 2: data imports restore_lab.cli.main"]
    assert backward_imports("data", ast.parse("import restore_lab.degradation.blur")) != []
    assert backward_imports("data", ast.parse("from restore_lab.types import Batch")) == []
    assert backward_imports("types", ast.parse("from restore_lab.config.build import build")) != []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_small_and_init_files_empty(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "__init__.py" and path.parent != PACKAGE:  # the package's own names what a user imports
        assert text.strip() == "", f"{name_of(path)} holds code; import from the module itself"
        return
    lines = len(text.splitlines())
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines; split it by what it says"
    assert ast.get_docstring(parsed(path)), f"{name_of(path)} does not say what it is"
    assert text.isascii(), f"{name_of(path)} is not ASCII"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.relative_to(PACKAGE).as_posix().startswith(LIGHT)], ids=name_of
)
def test_the_command_lines_start_imports_nothing_heavy(path: Path) -> None:
    tree = parsed(path)
    heavy = [(line, name) for line, name in at_start(tree) if name.split(".")[0] in HEAVY]
    assert heavy == [], f"{name_of(path)}: import these inside a function"
    if path.parent.name == "cli":
        ours = [name for _, name in at_start(tree) if name.startswith("restore_lab.")]
        light = (
            "restore_lab.cli",
            "restore_lab.config.build",
            "restore_lab.storage.artefact",
            "restore_lab.types",
            "restore_lab.random",
            "restore_lab.system.quiet",
            "restore_lab.config.compatibility",
            "restore_lab.config.conf_dir",
            "restore_lab.config.bounds",
            "restore_lab.config.grammar",
            "restore_lab.config.kinds",
            "restore_lab.config.compose",
            "restore_lab.system.xla",
            "restore_lab.system.faults",
            "restore_lab.system.terminal",
            "restore_lab.system.processes",
            "restore_lab.storage.locks",
            "restore_lab.config.suggest",
            "restore_lab.config.extras",
            "restore_lab.config.checks",
        )
        assert [name for name in ours if not name.startswith(light)] == [], "a verb imports parts inside run()"


def test_the_check_finds_a_heavy_import_and_ignores_typing() -> None:
    tree = ast.parse("if TYPE_CHECKING:\n    import torch\ntry:\n    import wandb\nexcept ImportError:\n    pass\n")
    assert at_start(tree) == [(4, "wandb")]


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """The distributions that hold each top-level module; it reads the files of all that are installed."""
    return metadata.packages_distributions()


@functools.cache
def required() -> tuple[set[str], dict[str, str]]:
    """The distributions that pyproject.toml asks for, and those of each extra, by their normal names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {normal(word): name for name, words in project["optional-dependencies"].items() for word in words}
    return {normal(word) for word in project["dependencies"]}, extras


def normal(requirement: str) -> str:
    """A distribution's name as indexes compare it: "wandb_workspaces>=0.4" is "wandb-workspaces"."""
    return re.split(r"[^\w.-]", re.sub(r"[-_.]+", "-", requirement.lower()))[0]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_are_required_or_extras_inside_functions(path: Path) -> None:
    """Nothing that somebody else's requirement happens to bring, and no extra where a module is loaded."""
    needed, extras = required()
    tree = parsed(path)
    known = distributions()
    for found, allowed in ((imported(tree), needed | extras.keys()), (at_start(tree), needed)):
        tops = {name.partition(".")[0] for _, name in found} - {PACKAGE.name} - sys.stdlib_module_names
        assert [top for top in sorted(tops) if not allowed & set(map(normal, known.get(top, [top])))] == []


def test_every_extra_that_is_named_exists() -> None:
    """In errors, configs and pages: pip install 'restore-lab[NAME]'."""
    names = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    places = (*MODULES, *CONF.rglob("*.yaml"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md")
    said = {name for path in places for name in re.findall(r"restore-lab\[(\w+)\]", path.read_text(encoding="utf-8"))}
    assert {"iqa", "demo"} <= said <= names


# What several modules may define: a logger, a console script's `main`, the interface of a verb's module. Names of one
# letter are type variables.
SHARED_NAMES = frozenset(("log", "main"))
VERB_INTERFACE = frozenset(("run", "POSITIONAL", "KEY_ALIASES", "FOLLOWS_WEIGHTS", "FREE_TEXT"))


def public_names(path: Path, tree: ast.Module) -> set[str]:
    """The public names that a module defines at its top, without those that modules may share."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            found |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    shared = SHARED_NAMES | (VERB_INTERFACE if path.parent == PACKAGE / "cli" else frozenset())
    return {name for name in found if not name.startswith("_") and len(name) > 1} - shared


def test_a_public_name_stands_in_one_module() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for name in public_names(path, parsed(path)):
            places.setdefault(name, []).append(name_of(path))
    twice = {name: found for name, found in sorted(places.items()) if len(found) > 1}
    assert twice == {}, "one name for one thing: give each a more precise name, or a private one"


def test_the_check_itself_finds_the_public_names() -> None:
    tree = ast.parse("log, A = 1, 2\nB: int = 3\nTWO, _OWN = 1, 2\ndef run(): ...\nclass Part: ...\nx.y = 1")
    assert public_names(PACKAGE / "types.py", tree) == {"TWO", "Part", "run"}
    assert public_names(PACKAGE / "cli/train.py", tree) == {"TWO", "Part"}


def configs() -> list[Path]:
    """Every shipped config, experiments included."""
    return sorted({path.resolve() for folder in (CONF, ROOT / "experiments") for path in folder.rglob("*.yaml")})


def targets(node: object) -> list[str]:
    """Every `_target_` in a config, at any depth."""
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [found for value in node.values() for found in targets(value)]
    return [found for value in node for found in targets(value)] if isinstance(node, list) else []


def exists(target: str) -> bool:
    """Whether a dotted name of ours is a module of the package and a class or function at its top (a method below)."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 1, -1):
        path = ROOT.joinpath(*parts[:length]).with_suffix(".py")
        if path.is_file():
            body: list[ast.stmt] = parsed(path).body
            for name in parts[length:]:
                named = [n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name]
                if not named:
                    return False
                body = named[0].body
            return True
    return False


@pytest.mark.parametrize("path", configs(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_target_in_a_config_exists(path: Path) -> None:
    found = targets(yaml.safe_load(path.read_text(encoding="utf-8")))
    missing = [name for name in found if name.startswith("restore_lab.") and not exists(name)]
    assert missing == [], f"{path.relative_to(ROOT)} names what does not exist"


IMPORT = re.compile(rf"^ *from ({PACKAGE.name}[.\w]*) import ([\w, ]+)$", re.MULTILINE)


@pytest.mark.parametrize("folder", ["docs", "tests", "benchmarks"])
def test_every_import_of_the_package_exists(folder) -> None:
    """Also those in pages and in scripts that a test holds as text, which no checker reads."""
    missing = [
        f"{name_of(path)}: {module}.{name}"
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".md", ".py")
        for module, names in IMPORT.findall(path.read_text(encoding="utf-8"))
        for name in names.split(",")
        if not holds(module, name.split()[0])
    ]
    assert missing == []


def holds(module: str, name: str) -> bool:
    """Whether a module's text has the name, or a package a module of that name."""
    place = ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    inner = (place / name).is_dir() or (place / f"{name}.py").is_file()
    return inner or (file.is_file() and re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) is not None)


def test_the_check_knows_existing_targets() -> None:
    assert exists("restore_lab.types.Recipe.from_json")
    assert not exists("restore_lab.types.Recipes")
    assert not exists("restore_lab.nothing.Recipe")


# The home of a config group whose name is not the plural of a package's: a module or a package.
HOMES = {
    "adaptor/reference": "methods.reference",  # it samples with the prior
    "backbone": "backbones.loading",
    "data": "data.sources",
    "degradation": "degradation",
    "data/rule": "data.sources.paired",
    "lq_encoder": "adaptors.lq_encoder",
    "memory": "inference.memory",
    "metrics": "evaluation",
    "prompt/instruction": "prompts",  # with the texts of any slot, in semantic.py
    "prompt/semantic": "prompts",
    "protocol": "evaluation.protocol",
}


def home_of(group: str) -> str:
    """The module or package that a config group's parts come from: sampler/fidelity -> samplers.fidelity."""
    first, *rest = group.split("/")
    for count in range(len(rest), -1, -1):
        known = HOMES.get("/".join([first, *rest[:count]]))
        if known is not None:
            return known
        place = ".".join([f"{first}s", *rest[:count]])
        folder = PACKAGE.joinpath(*place.split("."))
        if folder.is_dir() or folder.with_suffix(".py").is_file():
            return place
    return f"{first}s"


@functools.cache
def built() -> dict[Path, str]:
    """The options of config groups that build a part of the package, and their targets."""
    nodes = {path: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in sorted(CONF.rglob("*/*.yaml"))}
    targets = {path: node["_target_"] for path, node in nodes.items() if "_target_" in node}
    return {path: target for path, target in targets.items() if target.startswith(f"{PACKAGE.name}.")}


@pytest.mark.parametrize("path", built(), ids=lambda path: path.relative_to(CONF).as_posix())
def test_an_option_stands_where_its_part_does(path) -> None:
    """In the group of its part's package, and an option with a module's name builds that module's part."""
    home = f"{PACKAGE.name}.{home_of(path.relative_to(CONF).parent.as_posix())}."
    target = built()[path]
    assert target.startswith(home), f"{target} is not in {home}; move it, or add the group to HOMES"
    folder = PACKAGE.joinpath(*home.split(".")[1:-1])
    same_name = f"{home}{path.stem}."
    if (folder / f"{path.stem}.py").is_file() and any(other.startswith(same_name) for other in built().values()):
        assert target.startswith(same_name)


def test_the_homes_of_groups() -> None:
    assert home_of("sampler/fidelity") == "samplers.fidelity" and home_of("sampler/colour") == "samplers.colour"
    assert home_of("objective") == "objectives" and home_of("backbone/full") == "backbones.loading"


def test_every_verb_is_small_and_has_a_config() -> None:
    from restore_lab.cli.main import NOT_VERBS, verbs

    for verb, line in verbs().items():
        assert (CONF / f"{verb}.yaml").is_file(), f"restore_lab/cli/{verb}.py needs conf/{verb}.yaml"
        assert line, f"restore_lab/cli/{verb}.py needs a first docstring line, which is its help"
    for path in (PACKAGE / "cli").glob("*.py"):
        if path.stem not in NOT_VERBS:
            assert len(path.read_text(encoding="utf-8").splitlines()) < 80, (
                f"{name_of(path)}: a verb stays under 80 lines"
            )


TESTS = ROOT / "tests"
# What is named after several modules of its folder, or after what they do together.
GROUPS = {
    "degradation/test_operators.py": "blur, usm, resize, noise and jpeg",
    "degradation/test_pipelines.py": "the pipelines of conf/degradation",
    "samplers/test_release.py": "the samplers of every variant=release",
}


def module_tested_by(place: Path) -> Path | None:
    """The module or subpackage after which a test is named: edm.py for test_edm.py and test_edm_churn.py."""
    words = place.stem.removeprefix("test_").split("_")
    for length in range(len(words), 0, -1):
        module = PACKAGE / place.parent / "_".join(words[:length])
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if file.is_file():
                return file
    return None


def test_unit_tests_mirror_the_package() -> None:
    places = [path.relative_to(TESTS / "unit") for path in sorted((TESTS / "unit").rglob("*.py"))]
    assert [place for place in places if not (PACKAGE / place.parent / "__init__.py").is_file()] == []
    assert {place.as_posix() for place in places if module_tested_by(place) is None} == GROUPS.keys()
    assert module_tested_by(Path("samplers/test_edm_churn.py")) == PACKAGE / "samplers/edm.py"
    assert module_tested_by(Path("samplers/test_churn.py")) is None


def test_no_test_module_is_imported() -> None:
    """What two of them need is in tests/helpers."""
    names = {name for path in TESTS.rglob("*.py") for _, name in imported(parsed(path))}
    assert [name for name in sorted(names) if re.match(r"tests\.(\w+\.)*test_", name)] == []
