"""The files of a folder's restoration: what results are called, and the notes that say what is done.

A note (`.restored/<hash of the key>.json`) is written after an image's results and names them, with the hash of the
photograph, the identity of the settings and the words; or it says why the image was left out. That a result is ours,
and may be written over, is noted by storage/outputs.py.
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

from restore_lab.data.photograph import ENDINGS, kind_of
from restore_lab.data.sources.folder import unique_names
from restore_lab.data.word_table import Words
from restore_lab.storage.artefact import write_bytes_atomic
from restore_lab.storage.files import path_inside, shorten, spreadsheet_cell
from restore_lab.storage.foreign import json_of
from restore_lab.storage.outputs import require_free, write_output

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.inference.result import Restoration

NOTES_FOLDER = ".restored"
SUMMARY = "restored.csv"
SUMMARY_COLUMNS = (
    ("file", "output", "status", "seconds", "instruction", "consistency_db", "consistency_of", "uncertainty")
    + ("frames",)  # of an animation or a multi-page file, of which the first is restored
)


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """One image to restore.

    Attributes:
        file: where it lies.
        key: what it is called: its path below the folder, without suffix.
        name: what its results are called, without their endings.
        words: what is said of it.
        note: where it is written down that it was restored.
    """

    file: Path
    key: str
    name: str
    words: Words
    note: Path


def result_names(keys: Sequence[str], cfg: DictConfig) -> list[str]:
    """What the results of each image are called, without endings: `cfg.names`, so that no two images make one file,
    nor one a file and the other a folder of that name, also where case does not count.
    """
    names = []
    for key in keys:
        last, folder = PurePosixPath(key).name, str(PurePosixPath(key).parent)
        name = cfg.names.replace("{key}", key).replace("{name}", last).replace("{folder}", folder)
        names.append(shorten(name))
    if "{key}" not in cfg.names:  # alike because they are named so: that is refused, not mended
        return names
    kinds = ENDINGS if cfg.format == "same" else (cfg.format,)
    endings = {ending for kind in kinds for ending in _endings(cfg, kind)}
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    return unique_names(names, endings=sorted(endings), folders=folders)


def output_files(job: ImageJob, cfg: DictConfig, output: Path, kind: str) -> list[Path]:
    """The files of an image: one a seed, then what is written beside them."""
    try:
        return [path_inside(output, f"{job.name}{ending}") for ending in _endings(cfg, kind)]
    except ValueError as error:
        raise ValueError(f"names={cfg.names!r}: {error}") from error


def _endings(cfg: DictConfig, kind: str) -> list[str]:
    """What comes after the name of an image's files."""
    ending = ENDINGS[kind if cfg.format == "same" else cfg.format]
    several = cfg.seeds > 1
    variants = [f"_seed{cfg.seed + number}{ending}" for number in range(cfg.seeds)] if several else [ending]
    return [*variants, *["_compare.png"] * bool(cfg.compare), *["_uncertainty.png"] * several]


def refuse_clashes(jobs: Sequence[ImageJob], cfg: DictConfig, output: Path) -> None:
    """Refuse, before anything runs, to write two results into one file, or one over an input or the summary."""
    inputs = {job.file.resolve() for job in jobs}
    taken: Counter[Path] = Counter()
    for job in jobs:
        for kind in ENDINGS if cfg.format == "same" else (cfg.format,):
            files = {file.resolve() for file in output_files(job, cfg, output, kind)}
            over = sorted(files & inputs)
            if over:
                raise ValueError(f"output={cfg.output} would write over {over[0]}; choose another folder")
            if kind == next(iter(ENDINGS)) or cfg.format != "same":
                taken.update(files)
    twice = [file for file, times in taken.items() if times > 1]
    if twice:
        raise ValueError(f"names={cfg.names!r} gives two results one name, {twice[0]}; put {{key}} into it")


def refuse_foreign(jobs: Sequence[ImageJob], cfg: DictConfig, output: Path) -> None:
    """Refuse, before anything runs, to write over files that are not ours.

    Raises:
        ValueError: with the first of them.
    """
    files = [file for job in jobs for file in output_files(job, cfg, output, _file_format(job.file, cfg))]
    require_free([*files, output / SUMMARY])


def _file_format(file: Path, cfg: DictConfig) -> str:
    """What format=same makes of a file, by its header."""
    if cfg.format != "same":
        return cfg.format
    with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), Image.open(file) as image:
        return kind_of(image)
    return "png"


def is_done(job: ImageJob, settings: str, cfg: DictConfig, output: Path) -> bool:
    """Whether this very image was restored with these settings and words, and all files that are wanted are there."""
    try:
        note = json_of(job.note)
        source = hashlib.sha256(job.file.read_bytes()).hexdigest()
        same = (note["source"], note["settings"], note["words"]) == (source, settings, _words(job))
        found = [output / name for name in note["outputs"]]
        wanted = [output_files(job, cfg, output, kind) for kind in ENDINGS]  # one list, unless format=same
        return same and found in wanted and all(file.is_file() for file in found)
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
    """What is noted of a restored image: what it was made of, its files, and how far it agrees with its LQ (dB)."""
    found = [restoration.consistency(number) for number in range(len(restoration))]
    return {
        "file": str(job.file),
        "source": source,
        "settings": settings,
        "words": _words(job),
        "instruction": restoration.recipe.instruction() if restoration.recipe else "",
        "outputs": [str(file.relative_to(output)) for file in outputs],
        "seconds": round(restoration.seconds, 3),
        "consistency_db": [round(db, 2) for db, _ in found],
        "consistency_of": found[0][1],
        "uncertainty": round(float(restoration.uncertainty().mean()), 5) if len(restoration) > 1 else None,
        "frames": frames,
    }


def _words(job: ImageJob) -> list[str | None]:
    return [job.words.caption, job.words.instruction]


def write_note(note: Path, what: Mapping[str, Any]) -> None:
    """Write a note as ASCII: names of files need not be valid text, which `write_json_atomic` would refuse."""
    text = json.dumps(what, indent=1, allow_nan=False)
    write_bytes_atomic(note, text.encode())


def write_summary(jobs: Sequence[ImageJob], output: Path) -> None:
    """`restored.csv`: a line an image and seed, from the notes of all processes."""
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
    """A row that a spreadsheet runs nothing of; a file's name stays the name of that file."""
    cells = {key: spreadsheet_cell(value) for key, value in row.items()}
    paths = {key: f"./{row[key]}" for key in ("file", "output") if key in row and cells[key] != row[key]}
    return cells | paths
