"""Long training and restoring in one process: do memory, open files, threads and processes grow?

    python -m tests.helpers.soak --minutes 30 [--output soak.md]  # rounds of training with two workers, then restoring
    python -m tests.helpers.soak --cycles 200                     # starting and stopping the data workers, no more

Each round trains the toy prior's SPIRE anew (12 steps, its checkpoints included), restores two photographs with a
`Restorer` that was loaded once, as a service would, and a file by the command. The first rounds import and build what
is built once; what is judged is the rest, in two halves. Memory is what no file backs (RssAnon).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from tests.helpers.big_image import held

WARM = 3  # rounds that count as starting up


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What this process holds after a round."""

    minutes: float
    memory: float  # MiB
    files: int
    threads: int
    children: int
    shared: int  # entries of /dev/shm


def reading(start: float) -> Reading:
    gc.collect()
    me, shm = psutil.Process(), Path("/dev/shm")
    return Reading(
        minutes=round((time.monotonic() - start) / 60, 2),
        memory=round(held(), 1),
        files=me.num_fds(),
        threads=me.num_threads(),
        children=len(me.children(recursive=True)),
        shared=len(list(shm.iterdir())) if shm.is_dir() else 0,
    )


def rounds(folder: Path, prior: Path) -> Iterator[None]:
    """Train, restore; for ever."""
    from restore_lab import Restorer
    from restore_lab.data.sources.photos import photos_folder
    from restore_lab.inference.folder import restore_folder
    from restore_lab.training.run import fit
    from tests.helpers.configs import composed, small

    words = [
        *small(prior),
        "workers=2",
        "max_steps=12",
        "checkpoint_every=5",
        "progress=false",
        "logger=none",
        "seed=0",
    ]
    words += ["trainer.accelerator=cpu", "trainer.devices=1", f"runs_dir={folder}/runs"]
    photos = sorted(photos_folder().glob("*.jpg"))[:2]
    made = fit(composed("train", *words, "name=first"))
    restorer = Restorer.load(made, device="cpu")
    for number in itertools.count():
        fit(composed("train", *words, f"name=round{number}"))
        for photo in photos:
            restorer(photo, instruction="Denoise with sigma 0.06", size=64)
        how = [*small(prior), f"input={photos[0]}", f"output={folder}/out{number}", "size=64", "device=cpu"]
        restore_folder(composed("restore", *how, f"weights={made}", "sampler.progress=false"))
        yield


def cycles(prior: Path) -> Iterator[None]:
    """Start the data workers, take a batch, stop in the middle; for ever."""
    from restore_lab.config.build import build
    from tests.helpers.configs import composed, small

    data = build(composed("train", *small(prior), "workers=2").datamodule)
    while True:
        stream = iter(data.train_dataloader())
        next(stream)
        del stream
        yield


def watched(doing: Iterator[None], enough: Callable[[int, float], bool]) -> list[Reading]:
    """A reading after each round, until `enough(rounds, seconds)`."""
    start, found = time.monotonic(), []
    for _ in doing:
        found.append(reading(start))
        if enough(len(found), time.monotonic() - start):
            return found
    raise AssertionError("the rounds have no end")


def growth(found: Sequence[Reading]) -> dict[str, float]:
    """By what: how much the median of the second half stands above that of the first, without the warm rounds."""
    rest = found[WARM:]
    halves = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    kinds = [field.name for field in fields(Reading) if field.name != "minutes"]
    first, second = ({kind: statistics.median(getattr(one, kind) for one in half) for kind in kinds} for half in halves)
    return {kind: round(second[kind] - first[kind], 1) for kind in kinds}


def table(found: Sequence[Reading], *, lines: int = 12) -> str:
    """A Markdown table of readings, evenly over the time, and what grew."""
    chosen = [found[round(i * (len(found) - 1) / (lines - 1))] for i in range(lines)] if len(found) > lines else found
    heads = ["minutes", "memory, MiB", "open files", "threads", "children", "in /dev/shm"]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    rows += ["| " + " | ".join(str(value) for value in asdict(one).values()) + " |" for one in chosen]
    grown = ", ".join(f"{kind} {value:+g}" for kind, value in growth(found).items())
    return "\n".join([*rows, "", f"{len(found)} rounds; second half above the first (medians): {grown}."])


def main(arguments: Sequence[str]) -> None:
    from tests.helpers.toy_priors import toy_unet_folder

    parser = argparse.ArgumentParser(prog="python -m tests.helpers.soak")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--cycles", type=int)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        prior = toy_unet_folder(Path(place) / "prior")
        if asked.cycles is not None:
            found = watched(cycles(prior), lambda count, _: count >= asked.cycles)
        else:
            found = watched(rounds(Path(place), prior), lambda _, seconds: seconds >= 60 * (asked.minutes or 30))
    said = table(found)
    print(said)
    if asked.output is not None:
        asked.output.write_text(f"{said}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
