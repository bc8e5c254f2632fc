"""Hydra's config source for a folder, with aliases of groups.

`eval_data` takes the options of the group `data`, and `eval_degradation` those of `degradation`, without files of their
own; a folder with an `eval_data/` of its own is searched there first. `method_scale`, `method_variant` and
`method_stages` take those of `method`, because a defaults list may name each group once: conf/method/supir/tiny.yaml,
release.yaml and stages.yaml. conf_dir.py locates the group `experiment`.

Hydra composes a command's config twice (first to find `hydra.mode`) and a table's once per row. So parsed files are
cached until they change, and so is what a list of them is merged into, before the overrides of single settings. The map
of all choices, which Hydra builds at every node of its defaults tree, is built only where a default uses a choice
(`optional method_scale: ${method}/${scale}`).
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra import initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from restore_lab.config.conf_dir import experiments_dir
from restore_lab.storage.walk import walk

_hydra_map_choices = defaults_list._create_interpolation_map
_hydra_merge = ConfigLoaderImpl._compose_config_from_defaults_list
GROUP_ALIASES = {
    "eval_data": "data",
    "eval_degradation": "degradation",
    **dict.fromkeys(("method_scale", "method_variant", "method_stages"), "method"),
}


@dataclass
class VersionedConfig(ConfigResult):
    """The config of a file, with the file's path, inode, time and size."""

    version: tuple[str | int, ...] = ()


class FileConfigSource(file_config_source.FileConfigSource):
    """A folder as Hydra's config source.

    It has the class name of Hydra's own: a launcher's worker gets this registry and then registers Hydra's sources
    again, and Hydra keeps the first of two classes for one scheme only if their names are equal.
    """

    # Pickles of this process, nine times faster than deepcopy.
    parsed: ClassVar[dict[tuple[str | int, ...], bytes]] = {}

    def load_config(self, config_path: str) -> ConfigResult:
        place = self._place(config_path)
        try:
            file = Path(self.path, self._normalize_file_name(place)).stat()
        except OSError:
            return super().load_config(place)  # raises for a missing file
        key = (self.path, self.provider, place, file.st_ino, file.st_mtime_ns, file.st_size)
        if key not in self.parsed:
            self.parsed[key] = pickle.dumps(VersionedConfig(**vars(super().load_config(place)), version=key))
        return pickle.loads(self.parsed[key])  # a copy, since Hydra modifies it

    def is_group(self, config_path: str) -> bool:
        """Whether the folder has options; an empty folder does not shadow a setting."""
        groups = (place for place in self._places(config_path) if super(FileConfigSource, self).is_group(place))
        return any(not place or _has_options(Path(self.path, place)) for place in groups)

    def is_config(self, config_path: str) -> bool:
        return any(super(FileConfigSource, self).is_config(place) for place in self._places(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        groups = [place for place in self._places(config_path) if super(FileConfigSource, self).is_group(place)]
        found = {name for place in groups for name in super(FileConfigSource, self).list(place, results_filter)}
        if not config_path and results_filter != ObjectType.CONFIG:
            found.update(name for name in ("experiment", *GROUP_ALIASES) if self.is_group(name))
        return sorted(found)

    def _place(self, config_path: str) -> str:
        """The path of an option."""
        options = (place for place in self._places(config_path) if super(FileConfigSource, self).is_config(place))
        return next(options, config_path)

    def _places(self, config_path: str) -> tuple[str, ...]:
        """The candidate paths of a group or an option, relative to the folder."""
        first, slash, rest = config_path.partition("/")
        if first == "experiment":
            folder = os.path.relpath(experiments_dir(Path(self.path)), self.path)
            return (f"{folder}{slash}{rest}",)
        return (config_path, *([f"{GROUP_ALIASES[first]}{slash}{rest}"] if first in GROUP_ALIASES else []))


def _has_options(folder: Path) -> bool:
    return any(name.endswith(".yaml") for name in walk(folder).files)


def _map_choices(overrides: defaults_list.Overrides, defaults: list[InputDefault], self_added: bool) -> DictConfig:
    """Hydra's map of all choices where a default uses one, else an empty map."""
    named = any(default.is_interpolation() for default in defaults)
    return _hydra_map_choices(overrides, defaults, self_added) if named else DictConfig({})


_merged: dict[tuple[Any, ...], bytes] = {}


def _merge(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
    """Hydra's merge of a defaults list, made once for the same versions of the same files."""
    key = tuple((one.config_path, one.package, one.primary, _version(one, repo)) for one in defaults)
    if key not in _merged:
        _merged[key] = pickle.dumps(_hydra_merge(self, defaults, repo))
    return pickle.loads(_merged[key])


def _version(default: ResultDefault, repo: IConfigRepository) -> tuple[str | int, ...]:
    assert default.config_path is not None
    result = repo.load_config(default.config_path)
    assert result is not None
    return result.version if isinstance(result, VersionedConfig) else (result.provider, result.path)


def register() -> None:
    """Register this source with Hydra, in this process and those that its launchers start."""
    defaults_list._create_interpolation_map = _map_choices
    ConfigLoaderImpl._compose_config_from_defaults_list = _merge
    Plugins.instance()  # loads Hydra's own sources first
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource


def hydra_at(folder: Path) -> initialize_config_dir:
    """Context manager of Hydra's compose API over a config folder."""
    register()
    return initialize_config_dir(config_dir=str(folder), version_base="1.3")
