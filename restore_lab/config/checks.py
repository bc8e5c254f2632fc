"""Validates a composed config before anything is loaded: values, combinations of parts, and required files.

The first error is one line with the value, the expected kind and the nearest name; no torch is imported. settings.py
has the kinds of a verb's settings, constructors' annotations those of parts' arguments. Absent settings and missing
values (`???`) are skipped.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from restore_lab.config.arguments import arguments, entry
from restore_lab.config.build import nodes_of
from restore_lab.config.compatibility import check_compatibility, log_once, scale_mismatch
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.grammar import names_path
from restore_lab.config.kinds import Kind, Mismatch, Value, abbreviate, coerce
from restore_lab.config.settings import verb_settings
from restore_lab.config.suggest import offer
from restore_lab.config.unused import check_unused
from restore_lab.storage.free_space import check_names, writable_folder
from restore_lab.storage.named import PREREQUISITE
from restore_lab.storage.paths import place_of
from restore_lab.storage.walk import match
from restore_lab.system.faults import describe_bad_path

# The settings with inputs of each verb; `data` and `eval_data` stand for the folders in these nodes.
_INPUTS: Mapping[str, Sequence[str]] = {
    "train": ("weights", "extend", "backbone", "data", "eval_data"),
    "restore": ("input", "words", "weights", "backbone"),
    "evaluate": ("weights", "system", "backbone", "eval_data"),
    "caption": ("input", "data"),
    "data": ("backbone", "data"),
    "export": ("weights", "backbone"),
}
# The settings with outputs of each verb: folders, and files (whose folder is checked).
_OUTPUT_FOLDERS: Mapping[str, Sequence[str]] = {
    "train": ("run_dir", "runs_dir"),
    "restore": ("output",),
    "evaluate": ("run_dir", "runs_dir", "inputs_dir"),
    "caption": ("run_dir",),
    "data": ("output",),
    "describe": ("run_dir",),
    "export": ("output",),
    "import": ("output", "runs_dir"),
    "table": ("output", "inputs_dir", "runs_dir"),
}
_OUTPUT_FILES: Mapping[str, Sequence[str]] = {
    "caption": ("output",),
    "diff": ("trace",),
    "report": ("output",),
    "dashboard": ("output",),
}
_RUN_OUTPUTS = ("stage:", PREREQUISITE)  # an earlier stage's folder, a prerequisite of a table's job
_SOURCE_PATHS = ("root", "lq", "hq")  # a data source's input folders, files or patterns
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def check_config(cfg: DictConfig, *, verb: str) -> None:
    """Check every setting and every part's argument in a verb's config, and combinations of parts.

    Numbers in another notation (1e5 for an integer) are converted in place.

    Raises:
        ValueError: with the first error.
    """
    _check_paths(cfg, "")
    kinds = verb_settings(verb)
    for name in [name for name in cfg if name in kinds]:
        _check_setting(cfg, str(name), kinds[str(name)])
    _check_parts(cfg)
    check_compatibility(cfg)
    if verb == "train":
        _check_stages(cfg)
    if not HydraConfig.initialized():
        return
    choices = HydraConfig.get().runtime.choices
    mixed = scale_mismatch(cfg, choices)
    if mixed is not None:
        log_once(mixed)
    if verb == "train":
        nodes_of(cfg.callbacks, where="callbacks")
        check_unused(cfg, words=HydraConfig.get().overrides.task, groups={str(group) for group in choices})


def _check_stages(cfg: DictConfig) -> None:
    """Check that there is a stage to train, and that `stage` is one of them."""
    stages = _value(cfg, "stages")
    if not isinstance(stages, DictConfig):
        return
    names = [str(name) for name in stages if stages[name] is not None]
    if not names:
        raise ValueError("stages: all are null, so there is nothing to train; leave one of them as it was")
    if cfg.stage not in (*names, "all"):
        raise ValueError(f"stage={cfg.stage!r} is not known here{offer(str(cfg.stage), [*names, 'all'])}")


def check_files(cfg: DictConfig, *, verb: str) -> None:
    """Check that the verb's inputs exist and that its outputs can be written.

    Raises:
        ValueError: with the first path that fails, and its setting.
    """
    _check_outputs(cfg, verb=verb)
    if verb == "evaluate" and (cfg.explain or cfg.restored is not None):  # reads these folders only
        return
    systems = verb == "evaluate" and cfg.system is not None  # external, instead of the weights
    for setting in _INPUTS.get(verb, ()):
        if setting == "backbone":
            _check_backbone(_value(cfg, "backbone.path"))
        elif setting in ("data", "eval_data"):
            for place, text, origin in _source_inputs(_value(cfg, setting), setting, origin=""):
                if not _exists(text):
                    raise ValueError(f"{place}={text}: no such file or folder{origin}")
        else:
            value = _value(cfg, setting)
            if isinstance(value, str) and not (setting == "weights" and systems) and not _exists(value):
                raise ValueError(f"{setting}={value}: no such file or folder{_weights_advice(cfg, setting, value)}")


def _check_outputs(cfg: DictConfig, *, verb: str) -> None:
    """Check the verb's output paths; an existing folder may be complete and then is only read."""
    for setting in (*_OUTPUT_FOLDERS.get(verb, ()), *_OUTPUT_FILES.get(verb, ())):
        value = _value(cfg, setting)
        if not isinstance(value, str) or not value:
            continue
        place = Path(value).expanduser()
        is_file = setting in _OUTPUT_FILES.get(verb, ())
        try:
            check_names(place)
            if is_file and place.is_dir():
                raise ValueError("it is a folder; name a file")
            folder = place.parent if is_file else place
            if not folder.is_dir():
                writable_folder(folder)
        except (ValueError, OSError) as error:
            reason = describe_bad_path(error) or str(error)
            raise ValueError(f"{setting}={abbreviate(value)}: {reason}") from error


def _weights_advice(cfg: DictConfig, setting: str, value: str) -> str:
    """The advice for missing weights."""
    if setting != "weights":
        return ""
    none = "; none ship for this method at this scale" if value == _value(cfg, "shipped") else ""
    return f"{none}; train some with restore-lab train, then give weights=FOLDER"


def _check_setting(cfg: DictConfig, place: str, kind: Kind) -> None:
    """Check one setting against its annotation, and convert a number in another notation (1e5 for an integer).

    Raises:
        ValueError: if it does not fit.
    """
    value = _plain(_value(cfg, place), place)
    if value is _ABSENT:
        return
    coerced = _coerce(value, kind, place)
    if not isinstance(coerced, Mapping) and _types(coerced) != _types(value):
        OmegaConf.update(cfg, place, coerced)


def _types(value: Value) -> object:
    """The type of a value, or the types of a list's values."""
    return [type(one) for one in value] if isinstance(value, list) else type(value)


def _check_parts(cfg: DictConfig) -> None:
    """Check the arguments of every part.

    Raises:
        ValueError: for the first argument that does not fit, or that a constructor lacks.
    """
    for argument in arguments(cfg):
        if argument.is_reference:
            _check_setting(cfg, argument.place, argument.kind)
        else:
            _coerce(_plain(argument.value, argument.place), argument.kind, argument.place)


def _coerce(value: Value, kind: Kind, place: str) -> Value:
    """`kinds.coerce`, with the place and value in its message, and how to choose a part there."""
    try:
        return coerce(value, kind)
    except Mismatch as error:
        group = f"{place}{error.place}".replace(".", "/")
        choose = f"; choose one with {group}=NAME" if (conf_dir() / group).is_dir() else ""
        raise ValueError(f"{error.at(place, value)}{choose}") from error


_ABSENT = object()


def _value(cfg: DictConfig, place: str) -> Value:
    """The resolved value at a dotted key; _ABSENT if there is none, or it is missing (`???`)."""
    node: Value = cfg
    for key in place.split("."):
        if not isinstance(node, DictConfig) or key not in node or OmegaConf.is_missing(node, key):
            return _ABSENT
        node = entry(node, key, place)
    return node


def _plain(value: Value, place: str) -> Value:
    """A node as lists and dicts; parts stay nodes, and missing values are left out."""
    if isinstance(value, ListConfig):
        return [_plain(entry(value, n, place), place) for n in range(len(value)) if not OmegaConf.is_missing(value, n)]
    if isinstance(value, DictConfig) and "_target_" not in value:
        there = [key for key in value if not OmegaConf.is_missing(value, key)]
        return {str(key): _plain(entry(value, key, place), place) for key in there}
    return value


def _exists(text: str) -> bool:
    """Whether a file or folder exists, or a file matches a pattern; the run's own outputs count as existing."""
    if text.startswith(_RUN_OUTPUTS):
        return True
    return place_of(text).exists() or (glob.has_magic(text) and bool(match(place_of(text))[1].files))


def _check_paths(node: DictConfig, within: str) -> None:
    """Refuse an empty path, which Python takes as the working directory."""
    keys: Sequence[Value] = list(node)
    for key in keys:
        is_path = names_path(str(key)) or (key in _SOURCE_PATHS and "rule" in node)  # of a pair; a rule's are suffixes
        if OmegaConf.is_interpolation(node, key) and not is_path:
            continue
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException:  # refused where it is read
            continue
        if isinstance(value, DictConfig) and not OmegaConf.is_interpolation(node, key):
            _check_paths(value, f"{within}{key}.")
        paths = value if isinstance(value, ListConfig) else [value]
        if is_path and any(isinstance(path, str) and not path.strip() for path in paths):
            raise ValueError(f"{within}{key}= is empty (a shell variable that is not set?); give a path, or null")


def _check_backbone(path: Value) -> None:
    """Refuse local paths of which none exists; hub ids are resolved when they are read."""
    places = [path] if isinstance(path, str) else list(path) if isinstance(path, ListConfig) else []
    local = [
        str(place) for place in places if not HUB_ID.fullmatch(str(place)) and not str(place).startswith("config:")
    ]
    if local and len(local) == len(places) and not any(_exists(place) for place in local):
        raise ValueError(
            f"backbone.path={', '.join(local)}: no such file or folder; give a diffusers-format folder, a .safetensors "
            "file, or OWNER/NAME on the hub"
        )


def _source_inputs(node: Value, place: str, *, origin: str) -> Iterator[tuple[str, str, str]]:
    """The inputs of a data node: setting, path, and the origin of a public dataset."""
    if not isinstance(node, DictConfig):
        return
    if "origin" in node and "data" in node:
        origin = f"; it comes from {node.origin}; restore-lab doctor data={node.data} checks a copy"
    for key in node:
        if OmegaConf.is_missing(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            yield from _source_inputs(value, f"{place}.{key}", origin=origin)
        elif key in _SOURCE_PATHS and isinstance(value, str) and Path(value).name:
            yield f"{place}.{key}", value, origin
