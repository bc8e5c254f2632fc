"""Imports checkpoints of others into an artefact that `weights=` takes: every tensor mapped, or refused by name.

The network is composed on the meta device, so SUPIR's import needs no more memory than its file. Each tensor that the
network trains must be in the file, in its shape; each key of the file must be used, or belong to the prior. What is
written is a folder with safetensors and a manifest: where it came from, its hash, the prior, the licence, the coverage.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from restore_lab.importing.recognise import Found
from restore_lab.inspection.describe import on_meta
from restore_lab.methods.weights import part_of, stored_fingerprint, write_weights
from restore_lab.storage.artefact import Manifest, identity, is_complete
from restore_lab.storage.locks import lock
from restore_lab.storage.outputs import take_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.methods.module import RestorationModule

log = logging.getLogger(__name__)
SHOWN = 3  # names of each kind of mistake in an error's line


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An import that was written: its folder, and what its manifest says."""

    folder: Path
    facts: Mapping[str, Any]


def import_checkpoints(cfg: DictConfig, found: Sequence[Found], *, words: Sequence[str]) -> Imported:
    """Map the checkpoints onto the composed network and write the artefact.

    Args:
        cfg: the composed config of `restore-lab import`, with the network that the checkpoints belong to.
        found: the checkpoints with their layouts.
        words: what was typed to compose it, for the report.

    Raises:
        ValueError: naming each key that is missing, left over or of another shape.
    """
    module = on_meta(cfg)
    converted: dict[str, Tensor] = {}
    sources = []
    for one in found:
        taken, base = convert(one, module)
        converted |= taken
        sources.append(_described(one, taken=len(taken), base=base))
    prior = stored_fingerprint(module.backbone.denoiser, cfg.backbone.path, family=cfg.backbone.family)
    rest = _others(module, found)
    settings = {name: _plain(cfg[name]) for name in ("adaptor", "lq_encoder", "decoder")}
    settings["layouts"] = [one.layout.name for one in found]
    name = identity(settings, [source["sha256"] for source in sources] + [prior or "unknown prior"])
    folder = Path(cfg.output or Path(cfg.runs_dir) / "imported" / f"{found[0].layout.name}-{name}")
    facts = {
        "sources": sources,
        "base": prior,
        "tensors": len(converted),
        "parameters": sum(value.numel() for value in converted.values()),
        "other_parts": rest,
        "words": list(words),
        "setting": found[0].layout.setting,
    }
    manifest = Manifest(identity=name, kind="imported", settings=settings, extra=facts)
    make(folder, manifest, lambda: write_weights(converted, folder, dtype=None, base=prior))
    return Imported(folder=folder, facts=facts)


def make(folder: Path, manifest: Manifest, write: Callable[[], None]) -> None:
    """Write an artefact and then its manifest, unless it is there.

    Raises:
        ValueError: if the folder holds another.
    """
    with lock(folder):
        if is_complete(folder, identity=manifest.identity):
            return
        if is_complete(folder):
            raise ValueError(f"{folder} holds another artefact; choose another output, or delete it")
        take_folder(folder, setting="output")
        write()
        manifest.write(folder)


def convert(one: Found, module: RestorationModule) -> tuple[dict[str, Tensor], int]:
    """One checkpoint's tensors under our names, and how many of its keys are the prior's.

    Raises:
        ValueError: naming what does not fit.
    """
    layout, tensors = one.layout, one.source.tensors
    whole = module.adaptor_state() | module.decoder_state()
    shapes = {name: tuple(t.shape) for name, t in whole.items() if part_of(name) in layout.parts}
    pieces = layout.sources(shapes, module, one.source)
    odd = [name for name in shapes if name not in pieces]
    if not shapes or odd:
        lacks = f"nothing in it stands for {odd[0]}" if odd else f"it has no {' or '.join(layout.parts)}"
        raise ValueError(
            f"{one.source.file}: {layout.title} is not what is composed here ({lacks}); leave adaptor and method to "
            f"the import, or compose {' '.join(layout.words)}"
        )
    missing = sorted({piece.key for piece in pieces.values() if piece.key not in tensors})
    taken: dict[str, Tensor] = {}
    misshapen: list[str] = []
    for name, piece in pieces.items():
        if piece.key in tensors:
            value = piece.take(tensors[piece.key])
            taken[name] = value
            if tuple(value.shape) != shapes[name]:
                misshapen.append(f"{piece.key} {tuple(tensors[piece.key].shape)} for {name} {shapes[name]}")
    used = {piece.key for piece in pieces.values()}
    others = [key for key in tensors if key not in used and not layout.settings(key)]
    base = [key for key in others if layout.base(key)]
    left_over = [key for key in others if not layout.base(key)]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for what, names in (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise ValueError(f"{one.source.file}: read as {layout.title}, it does not fit: {'; '.join(problems)}")
    return taken, len(base)


def _described(one: Found, *, taken: int, base: int) -> dict[str, Any]:
    with open(one.source.file, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settings = sum(one.layout.settings(key) for key in one.source.tensors)
    return {
        "file": one.source.file.name,
        "sha256": digest,
        "layout": one.layout.name,
        "title": one.layout.title,
        "licence": one.layout.licence,
        "keys": len(one.source.tensors),
        "mapped": len(one.source.tensors) - base - settings,
        "tensors": taken,
        "base": base,
        "settings": settings,
    }


def _others(module: RestorationModule, found: Sequence[Found]) -> list[str]:
    """Parts of the method that no checkpoint holds and restoring with `weights=` needs."""
    if any(one.layout.setting != "weights" for one in found):
        return []
    return sorted({part_of(name) for name in module.adaptor_state()} - {p for one in found for p in one.layout.parts})


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def report(done: Imported) -> str:
    """What was imported, as a page of text."""
    lines: list[str] = []
    for source in done.facts["sources"]:
        lines.append(f"{source['file']}: {source['title']}, recognised by its keys")
        told = f"  {source['mapped']} of {source['keys']} keys mapped to {source['tensors']} tensors"
        told += f", {source['base']} are the prior's and not imported" if source["base"] else ""
        told += f", {source['settings']} are settings" if source["settings"] else ""
        lines += [
            f"{told}; 0 missing, 0 left over",
            f"  licence: {source['licence']}",
            f"  sha256:  {source['sha256']}",
        ]
    facts = done.facts
    if facts["other_parts"]:
        lines.append(f"not in these files: {', '.join(facts['other_parts'])}; restoring needs them too")
    base = facts["base"] or "its weights are not here; give backbone.path=FOLDER to record which it is"
    lines += [
        f"prior:    {base}",
        f"weights:  {facts['parameters'] / 1e6:.2f} M in {facts['tensors']} tensors: {done.folder}",
        f"use them: restore-lab restore {' '.join(facts['words'])} {facts['setting']}={done.folder} input=...",
    ]
    return "\n".join(lines)
