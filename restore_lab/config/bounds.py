"""How large a config of somebody's own may be, looked at before Hydra reads it.

A few hundred bytes of YAML with an anchor in each line stand for billions of values, and so does a list that holds
itself. Package configs are not looked at.
"""

from __future__ import annotations

from pathlib import Path

from restore_lab.storage.walk import walk

VALUES = 100_000  # with every alias written out
BYTES = 2**20  # of a file
FILES = 10_000  # in a folder


def check(folder: Path) -> None:
    """Look at every YAML file in a folder of configs; what is no YAML is left for whoever reads it to say.

    Raises:
        ValueError: for a file that stands for too much, or a folder of too many.
    """
    if not folder.is_dir():  # for Hydra to say
        return
    files = [folder / name for name in walk(folder, hidden=True).files if name.endswith(".yaml")]
    if len(files) > FILES:
        raise ValueError(f"{folder}: holds {len(files)} configs, more than {FILES}; name the folder that holds yours")
    for file in files:
        if file.stat().st_size > BYTES:
            raise ValueError(f"{file}: larger than {BYTES >> 20} MiB; a config holds settings, not data")
        if values(file.read_bytes()) > VALUES:
            raise ValueError(
                f"{file}: its aliases (*name) stand for more than {VALUES} values; write out what is needed"
            )


def values(text: bytes) -> int:
    """How many values YAML stands for, aliases written out; more than `VALUES` for one that holds itself."""
    import yaml

    counts: dict[int, int] = {}

    def count(node: yaml.Node | None) -> int:
        if id(node) not in counts:
            counts[id(node)] = VALUES + 1  # what it counts for inside itself
            inner: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                inner = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                inner = node.value
            counts[id(node)] = 1 + sum(count(part) for part in inner)
        return counts[id(node)]

    try:
        return count(yaml.compose(text, Loader=yaml.SafeLoader))  # the C loader does not survive deep nesting
    except (yaml.YAMLError, UnicodeDecodeError):
        return 0
    except RecursionError:
        return VALUES + 1
