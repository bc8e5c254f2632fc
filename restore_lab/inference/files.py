"""The files of a folder's restoration: names of results, notes of restored images, and the summary.

A note (`.restored/<hash of the key>.json`) is written after an image's results. It lists them with the hash of the
photograph, the identity of the settings and the prompts, or says why the image was left out. storage/outputs.py records
which files are ours and may be overwritten.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import Image

from restore_lab.data.photograph import WRITABLE_SUFFIXES, kind_of
from restore_lab.data.sources.folder import unique_names
from restore_lab.data.word_table import PromptRow
from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.foreign import json_of
from restore_lab.storage.outputs import require_free, write_output
from restore_lab.storage.safe_names import path_inside, shorten, spreadsheet_cell

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.inference.result import Restoration

NOTES_FOLDER = ".restored"
SUMMARY = "restored.csv"
SUMMARY_COLUMNS: tuple[str, ...] = (
    ("file", "output", "status", "seconds", "instruction", "consistency_db", "consistency_of", "uncertainty")
    + ("frames",)  # of an animation or a multi-page file; the first one is restored
)


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """One image to restore.

    Attributes:
        file: its path.
        key: its path below the folder, without suffix.
        name: name of its results, without suffixes.
        words: its caption and instruction.
        note: path of its note.
    """

    file: Path
    key: str
    name: str
    words: PromptRow
    note: Path


def result_names(keys: Sequence[str], cfg: DictConfig) -> list[str]:
    """The names of the images' results, without suffixes, from the template `cfg.names`.

    With {key} in the template, names are made unique: no two results have the same file, and no file has the name of
    another's folder, also on file systems that ignore case.
    """
    names = []
    for key in keys:
        last, folder = PurePosixPath(key).name, str(PurePosixPath(key).parent)
        name = cfg.names.replace("{key}", key).replace("{name}", last).replace("{folder}", folder)
        names.append(shorten(name))
    if "{key}" not in cfg.names:  # equal names are the user's choice, refused later by `refuse_clashes`
        return names
    kinds = WRITABLE_SUFFIXES if cfg.format == "same" else (cfg.format,)
    endings = {ending for kind in kinds for ending in _endings(cfg, kind)}
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    return unique_names(names, endings=sorted(endings), folders=folders)


def output_files(job: ImageJob, cfg: DictConfig, output: Path, kind: str) -> list[Path]:
    """The output files of an image: one per seed, then comparison and uncertainty map."""
    try:
        return [path_inside(output, f"{job.name}{ending}") for ending in _endings(cfg, kind)]
    except ValueError as error:
        raise ValueError(f"names={cfg.names!r}: {error}") from error


def _endings(cfg: DictConfig, kind: str) -> list[str]:
    """The suffixes that follow the name in an image's output files."""
    ending = WRITABLE_SUFFIXES[kind if cfg.format == "same" else cfg.format]
    several = cfg.seeds > 1
    images = [f"_seed{cfg.seed + number}{ending}" for number in range(cfg.seeds)] if several else [ending]
    return [*images, *["_compare.png"] * bool(cfg.compare), *["_uncertainty.png"] * several]


def refuse_clashes(jobs: Sequence[ImageJob], cfg: DictConfig, output: Path) -> None:
    """Refuse to write two results to the same file, or one over an input.

    Raises:
        ValueError: with the first such file.
    """
    inputs = {job.file.resolve() for job in jobs}
    counts: Counter[Path] = Counter()
    for job in jobs:
        for kind in WRITABLE_SUFFIXES if cfg.format == "same" else (cfg.format,):
            files = {file.resolve() for file in output_files(job, cfg, output, kind)}
            overwritten = sorted(files & inputs)
            if overwritten:
                raise ValueError(f"output={cfg.output} would write over {overwritten[0]}; choose another folder")
            if kind == next(iter(WRITABLE_SUFFIXES)) or cfg.format != "same":
                counts.update(files)
    clashes = [file for file, count in counts.items() if count > 1]
    if clashes:
        raise ValueError(f"names={cfg.names!r} gives two results one name, {clashes[0]}; put {{key}} into it")


def refuse_foreign(jobs: Sequence[ImageJob], cfg: DictConfig, output: Path) -> None:
    """Refuse to overwrite files that are not ours.

    Raises:
        ValueError: with the first such file.
    """
    files = [file for job in jobs for file in output_files(job, cfg, output, _file_format(job.file, cfg))]
    require_free([*files, output / SUMMARY])


def _file_format(file: Path, cfg: DictConfig) -> str:
    """The format of an image's results; with format=same that of the image, from its header."""
    if cfg.format != "same":
        return cfg.format
    with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), Image.open(file) as image:
        return kind_of(image)
    return "png"


def is_done(job: ImageJob, settings: str, cfg: DictConfig, output: Path) -> bool:
    """Whether this image was restored with these settings and prompts, and all its output files exist."""
    try:
        note = json_of(job.note)
        source = hashlib.sha256(job.file.read_bytes()).hexdigest()
        same = (note["source"], note["settings"], note["words"]) == (source, settings, _words(job))
        files = [output / name for name in note["outputs"]]
        expected = [
            output_files(job, cfg, output, kind) for kind in WRITABLE_SUFFIXES
        ]  # equal lists, unless format=same
        return same and files in expected and all(file.is_file() for file in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def build_note(
    restoration: Restoration,
    job: ImageJob,
    settings: str,
    source: str,
    outputs: Sequence[Path],
    output: Path,
    *,
    frames: int,
) -> dict[str, Any]:
    """The note of a restored image: its inputs, its files, and its consistency with the LQ in dB."""
    consistencies = [restoration.consistency(number) for number in range(len(restoration))]
    return {
        "file": str(job.file),
        "source": source,
        "settings": settings,
        "words": _words(job),
        "instruction": restoration.recipe.instruction() if restoration.recipe else "",
        "outputs": [str(file.relative_to(output)) for file in outputs],
        "seconds": round(restoration.seconds, 3),
        "consistency_db": [round(db, 2) for db, _ in consistencies],
        "consistency_of": consistencies[0][1],
        "uncertainty": round(float(restoration.uncertainty().mean()), 5) if len(restoration) > 1 else None,
        "frames": frames,
    }


def _words(job: ImageJob) -> list[str | None]:
    """The caption and instruction in a note."""
    return [job.words.caption, job.words.instruction]


def write_note(path: Path, note: Mapping[str, Any]) -> None:
    """Write a note as ASCII, since file names need not be valid text, which `write_json_atomic` refuses."""
    text = json.dumps(note, indent=1, allow_nan=False)
    write_bytes_atomic(path, text.encode())


def write_summary(jobs: Sequence[ImageJob], output: Path) -> None:
    """Write `restored.csv` from the notes of all processes, one line per image and seed."""
    text = io.StringIO()
    table = csv.DictWriter(text, SUMMARY_COLUMNS, extrasaction="ignore")
    table.writeheader()
    for job in jobs:
        try:
            note = json_of(job.note)
        except (OSError, ValueError):
            continue
        if "error" in note:
            table.writerow(_cells({"file": note["file"], "status": note["error"]}))
            continue
        for name, db in zip(note["outputs"], note["consistency_db"], strict=False):
            table.writerow(_cells(note | {"output": name, "status": "restored", "consistency_db": db}))
    write_output(output / SUMMARY, text.getvalue().encode(errors="backslashreplace"))


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose cells no spreadsheet takes for formulas; file names stay valid paths."""
    cells = {key: spreadsheet_cell(value) for key, value in row.items()}
    paths = {key: f"./{row[key]}" for key in ("file", "output") if key in row and cells[key] != row[key]}
    return cells | paths
