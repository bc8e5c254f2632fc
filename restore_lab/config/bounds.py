"""Size limits of user configs, checked before Hydra reads them.

A few hundred bytes of YAML with nested anchors expand to billions of values, and a list that contains itself never
ends. The package's own configs are not checked.
"""

from __future__ import annotations

from pathlib import Path

from restore_lab.storage.walk import walk

MAX_VALUES = 100_000  # with all aliases expanded
MAX_CONFIG_BYTES = 2**20  # of a file
MAX_FILES = 10_000  # in a folder


def check_config_folder(folder: Path) -> None:
    """Check every YAML file in a folder of configs; invalid YAML is left to Hydra.

    Raises:
        ValueError: for a file with too many values or bytes, or a folder with too many files.
    """
    if not folder.is_dir():  # Hydra reports it
        return
    files = [folder / name for name in walk(folder, hidden=True).files if name.endswith(".yaml")]
    if len(files) > MAX_FILES:
        raise ValueError(
            f"{folder}: holds {len(files)} configs, more than {MAX_FILES}; name the folder that holds yours"
        )
    for file in files:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{file}: larger than {MAX_CONFIG_BYTES >> 20} MiB; a config holds settings, not data")
        if count_values(file.read_bytes()) > MAX_VALUES:
            raise ValueError(
                f"{file}: its aliases (*name) stand for more than {MAX_VALUES} values; write out what is needed"
            )


def count_values(text: bytes) -> int:
    """The number of values in YAML with all aliases expanded; above `MAX_VALUES` for a recursive alias."""
    import yaml

    counts: dict[int, int] = {}

    def count(node: yaml.Node | None) -> int:
        if id(node) not in counts:
            counts[id(node)] = MAX_VALUES + 1  # its count inside itself
            inner: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                inner = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                inner = node.value
            counts[id(node)] = 1 + sum(count(part) for part in inner)
        return counts[id(node)]

    try:
        return count(yaml.compose(text, Loader=yaml.SafeLoader))  # the C loader crashes on deep nesting
    except (yaml.YAMLError, UnicodeDecodeError):
        return 0
    except RecursionError:
        return MAX_VALUES + 1
