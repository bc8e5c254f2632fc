"""Checks a stage's module on the meta device, where tensors have shapes only, before any prior is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restore_lab.config.build import build, resolve_target
from restore_lab.config.checks import HUB_ID
from restore_lab.methods.trainable import Trainable
from restore_lab.methods.weights import WEIGHTS, weights_file
from restore_lab.storage.paths import place_of

STAGE_PREFIX = "stage:"  # of a setting that names an earlier stage's result
_NO_STAGES: Mapping[str, Mapping[str, Tensor]] = {}


def check_module(
    node: Mapping[str, Any], *, earlier: Mapping[str, Mapping[str, Tensor]] = _NO_STAGES
) -> Trainable | None:
    """Build a stage's module on the meta device and load its weights, to find errors early.

    Args:
        node: the stage's node.
        earlier: the tensors that earlier stages will export, by stage, as far as known.

    Returns:
        The module on the meta device; None if it cannot be built there, or needs the result of an earlier stage.

    Raises:
        ValueError: for anything that would fail when the stage runs.
    """
    module_node = meta_node(node["module"])
    with torch.device("meta"):
        try:
            module = None if needs_earlier_stage(module_node) else build(module_node)
        except (RuntimeError, TypeError):  # a user's part may need values
            module = None
        for part in find_parts(node["module"]):
            path = part.get("path")
            if isinstance(path, str) and not place_of(path).exists() and not HUB_ID.fullmatch(path):
                raise ValueError(f"{part['_target_'].rpartition('.')[2]}: {path}: no such file or folder")
        weights = node.get("weights")
        if module is None or not weights:
            return module
        if not str(weights).startswith(STAGE_PREFIX):
            module.load_weights(weights_file(weights))
        elif (stage := str(weights).removeprefix(STAGE_PREFIX)) in earlier:
            module.load_tensors(earlier[stage], file=Path(weights) / WEIGHTS, partial=True)
    return module


def meta_node(node: Any) -> Any:
    """The node with `meta: true` for every part that supports it, and without weights of earlier stages."""
    if isinstance(node, list):
        return [meta_node(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    changed = {name: meta_node(value) for name, value in node.items()}
    if "_target_" in node and "meta" in inspect.signature(resolve_target(node["_target_"])).parameters:
        changed["meta"] = True
    if str(node.get("weights")).startswith(STAGE_PREFIX):
        changed["weights"] = None
    return changed


def needs_earlier_stage(node: Any) -> bool:
    """Whether a node names the result of an earlier stage."""
    if isinstance(node, Mapping):
        return any(needs_earlier_stage(value) for value in node.values())
    if isinstance(node, list):
        return any(needs_earlier_stage(value) for value in node)
    return isinstance(node, str) and node.startswith(STAGE_PREFIX)


def find_parts(node: Any) -> Iterator[Mapping[str, Any]]:
    """All nodes with a `_target_`, at any depth."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from find_parts(value)
    elif isinstance(node, list):
        for value in node:
            yield from find_parts(value)
