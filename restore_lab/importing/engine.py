"""Imports public checkpoints as artefacts for `weights=`; a tensor without a counterpart is an error, with its key.

The network is composed on the meta device, so importing SUPIR needs no more memory than its file. Each trainable tensor
of the network must be in the file with its shape; each key of the file must be used or belong to the prior. The output
is a folder with safetensors and a manifest: source, hash, prior, licence, coverage.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.importing.recognise import RecognisedCheckpoint
from restore_lab.inspection.describe import on_meta
from restore_lab.methods.weights import part_name, stored_fingerprint, write_weights
from restore_lab.storage.artefact import Artefact, is_complete
from restore_lab.storage.identity import identity, plain_settings
from restore_lab.storage.locks import lock
from restore_lab.storage.outputs import take_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.methods.module import RestorationModule

log = logging.getLogger(__name__)
MAX_LISTED = 3  # per kind of mismatch in an error message


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """A finished import: its folder, and its manifest's facts."""

    folder: Path
    facts: Mapping[str, Any]


def import_checkpoints(
    cfg: DictConfig, checkpoints: Sequence[RecognisedCheckpoint], *, words: Sequence[str]
) -> ImportResult:
    """Map the checkpoints onto the composed network and write the artefact.

    Args:
        cfg: the composed config of `restore-lab import`, with the network that the checkpoints belong to.
        checkpoints: with their layouts.
        words: the overrides that composed it, for the report.

    Raises:
        ValueError: with the missing keys, the unused keys and the keys of the wrong shape.
    """
    module = on_meta(cfg)
    converted: dict[str, Tensor] = {}
    sources = []
    for one in checkpoints:
        taken, base = convert(one, module)
        converted |= taken
        sources.append(_source_facts(one, taken=len(taken), base=base))
    prior = stored_fingerprint(module.backbone.denoiser, cfg.backbone.path, family=cfg.backbone.family)
    uncovered = _uncovered_parts(module, checkpoints)
    settings = {
        **plain_settings(cfg, ("adaptor", "lq_encoder", "decoder")),
        "layouts": [one.layout.name for one in checkpoints],
    }
    name = identity(settings, [source["sha256"] for source in sources] + [prior or "unknown prior"])
    folder = Path(cfg.output or Path(cfg.runs_dir) / "imported" / f"{checkpoints[0].layout.name}-{name}")
    facts = {
        "sources": sources,
        "base": prior,
        "tensors": len(converted),
        "parameters": sum(value.numel() for value in converted.values()),
        "other_parts": uncovered,
        "words": list(words),
        "setting": checkpoints[0].layout.setting,
    }
    artefact = Artefact(kind="imported", identity=name, folder=folder, settings=settings)
    write_artefact(artefact, lambda: write_weights(converted, folder, dtype=None, base=prior), facts)
    return ImportResult(folder=folder, facts=facts)


def write_artefact(artefact: Artefact, write: Callable[[], None], facts: Mapping[str, Any]) -> None:
    """Write an artefact and then its manifest with some facts, unless it exists.

    Raises:
        ValueError: if the folder holds another artefact.
    """
    folder = artefact.folder
    with lock(folder):
        if artefact.is_complete():
            return
        if is_complete(folder):
            raise ValueError(f"{folder} holds another artefact; choose another output, or delete it")
        take_folder(folder, setting="output")
        write()
        artefact.finish(**facts)


def convert(one: RecognisedCheckpoint, module: RestorationModule) -> tuple[dict[str, Tensor], int]:
    """One checkpoint's tensors under this package's names, and the number of its keys that belong to the prior.

    Raises:
        ValueError: with the keys that do not fit.
    """
    layout, tensors = one.layout, one.source.tensors
    whole = module.adaptor_state() | module.decoder_state()
    shapes = {name: tuple(t.shape) for name, t in whole.items() if part_name(name) in layout.parts}
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
        f"{len(names)} {what}: {', '.join(names[:MAX_LISTED])}{', ...' if len(names) > MAX_LISTED else ''}"
        for what, names in (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise ValueError(f"{one.source.file}: read as {layout.title}, it does not fit: {'; '.join(problems)}")
    return taken, len(base)


def _source_facts(one: RecognisedCheckpoint, *, taken: int, base: int) -> dict[str, Any]:
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


def _uncovered_parts(module: RestorationModule, checkpoints: Sequence[RecognisedCheckpoint]) -> list[str]:
    """Parts of the method that restoring with `weights=` needs and no checkpoint has."""
    if any(one.layout.setting != "weights" for one in checkpoints):
        return []
    return sorted(
        {part_name(name) for name in module.adaptor_state()} - {p for one in checkpoints for p in one.layout.parts}
    )


def report_import(done: ImportResult) -> str:
    """The import's report as text."""
    lines: list[str] = []
    for source in done.facts["sources"]:
        lines.append(f"{source['file']}: {source['title']}, recognised by its keys")
        line = f"  {source['mapped']} of {source['keys']} keys mapped to {source['tensors']} tensors"
        line += f", {source['base']} are the prior's and not imported" if source["base"] else ""
        line += f", {source['settings']} are settings" if source["settings"] else ""
        lines += [
            f"{line}; 0 missing, 0 left over",
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
