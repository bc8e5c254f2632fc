"""The cases of faults.py: each does one fault to one command, removes it, and gives the command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from restore_lab.data.image_io import write_png
from tests.helpers.configs import few_photos, small
from tests.helpers.faults import Command, Ended, Row, disk
from tests.helpers.kill_callbacks import fill, read_only
from tests.helpers.toy_priors import toy_unet_folder

STEPS = 8
COUNT = 8
TRAIN = (
    *("name=run", f"max_steps={STEPS}", "checkpoint_every=2", "log_every=1", "progress=false", "ema=null"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "logger=none", "trainer.val_check_interval=1000"),
    *("degradation=noise", "trusted_packages=[tests]"),
)


class Bench:
    """What all cases share: a prior, photographs, and what commands make that nothing is done to."""

    def __init__(self, place: Path) -> None:
        self.place = place / "bench"
        self.place.mkdir()
        self.prior = toy_unet_folder(self.place)
        self.photos = photos(self.place / "photos")

    def train(self, place: Path, *words: str, photos: Path | None = None) -> Command:
        """A training of `STEPS` steps on photographs; a checkpoint every second."""
        told = [word for word in small(self.prior) if not word.startswith("data.size")]
        data = ("data=folder", f"data.root={photos or self.photos}")
        return Command(self.place, "train", *data, *told, *TRAIN, f"runs_dir={place / 'runs'}", *words)

    def struck(self, place: Path, *, how: str, step: int = 5, at: object = "", **more: Path) -> Ended:
        """The training, with one of `Strike`'s faults after a step."""
        strike = f"callbacks=[{{_target_:tests.helpers.kill_callbacks.Strike,step:{step},how:{how},place:'{at}'}}]"
        return self.train(
            place, strike, "workers=1" if how in ("kill_worker", "terminate", "interrupt") else "workers=0", **more
        ).ended()

    @cached_property
    def trained(self) -> dict[str, bytes]:
        """What the training leaves."""
        done = self.train(self.place).ended()
        assert done.code == 0, done.said
        return left(self.place)

    def restore(self, place: Path, *, output: Path | None = None, photos: Path | None = None) -> Command:
        """A restoration of all photographs."""
        words = (f"input={photos or self.photos}", f"output={output or place / 'out'}", "weights=null", "device=cpu")
        told = [word for word in small(self.prior) if word.partition(".")[0] in ("backbone", "adaptor")]
        return Command(self.place, "restore", *words, *told, "sampler.steps=4", "sampler.progress=false")

    @cached_property
    def restored(self) -> dict[str, bytes]:
        """What the restoration leaves."""
        done = self.restore(self.place).ended()
        assert done.code == 0, done.said
        return pictures(self.place / "out")

    def cache(self, output: Path, *, photos: Path | None = None) -> Command:
        """Captions and photographs encoded ahead."""
        data = ("make=cache", "data=folder", f"data.root={photos or self.photos}", "crop=16", "progress=false")
        prior = (f"backbone.path={self.prior}", f"backbone.cache_dir={output}", "backbone.cache_latents=true")
        return Command(self.place, "data", *data, *prior, "device=cpu", "output=unused")

    @cached_property
    def cached(self) -> dict[str, bytes]:
        """What that leaves."""
        done = self.cache(self.place / "cache").ended()
        assert done.code == 0, done.said
        return entries(self.place / "cache")

    def evaluate(self, place: Path) -> Command:
        """A record, of two images in two parts."""
        words = (f"runs_dir={place / 'runs'}", "name=run", "weights=null", "metrics=fidelity", "device=cpu")
        told = [word for word in small(self.prior) if word.partition(".")[0] in ("backbone", "adaptor", "sampler")]
        return Command(self.place, "evaluate", *words, *told, *few_photos(), "eval_batch_size=1", "progress=false")

    @cached_property
    def evaluated(self) -> bytes:
        """The values that it records."""
        done = self.evaluate(self.place).ended()
        assert done.code == 0, done.said
        return values(self.place)


def writable(folder: Path) -> None:
    """Undo `read_only`."""
    subprocess.run(["umount", str(folder)], check=True)


def photos(folder: Path, count: int = COUNT) -> Path:
    """Small noisy images with their captions."""
    for number in range(count):
        write_png(folder / f"{number}.png", np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8))
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def run_of(place: Path) -> Path:
    """The only run's folder."""
    (folder,) = (place / "runs" / "run").glob("adaptor-*")
    return folder


def left(place: Path) -> dict[str, bytes]:
    """A complete run's weights and losses."""
    folder = run_of(place)
    assert (folder / "manifest.json").is_file() and len(list((folder / "state").glob("*.ckpt"))) == 1
    return {name: (folder / name).read_bytes() for name in ("adaptor.safetensors", "losses.jsonl")}


def checkpoints(place: Path) -> list[str]:
    """The names of a run's checkpoints; the only other files allowed are their hashes."""
    files = {file.name for file in (run_of(place) / "state").iterdir()}
    assert not [name for name in files if not name.endswith((".ckpt", ".sha256"))], files
    return sorted(name for name in files if name.endswith(".ckpt"))


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.png")}


def entries(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("??/*.safetensors")}


def record(place: Path) -> Path:
    (file,) = place.glob("runs/run/scores-*/record.json")
    return file


def values(place: Path) -> bytes:
    return record(place).with_name("per_image.parquet").read_bytes()


def ends(done: Ended, code: int, *words: str) -> str:
    """One line with these words and this exit code; what the table says of it."""
    assert done.code == code, (done.code, done.said)
    assert all(word in done.last for word in words), done.last
    said = done.last.removeprefix("restore-lab: ")
    for part in sorted({word for word in said.split() if word.startswith("/")}, key=len, reverse=True):
        said = said.replace(part, ".../" + Path(part.rstrip(":;")).name + part[len(part.rstrip(":;")) :])
    return f'exit {code}: "{said}"'


def goes_on(bench: Bench, place: Path, *words: str) -> None:
    """The same training, once more: it ends as one that nothing was done to, having gone on where it says."""
    done = bench.train(place, *words).ended()
    assert done.code == 0, done.said
    assert left(place) == bench.trained


# Training.


def train_sigkill(bench: Bench, place: Path) -> Row:
    done = bench.train(place, "callbacks=[{_target_:tests.helpers.kill_callbacks.KillAt,step:5}]").ended()
    assert done.code == -signal.SIGKILL and checkpoints(place) == ["step=2.ckpt", "step=4.ckpt"]
    goes_on(bench, place)
    return Row(where="training", fault="SIGKILL after step 5", happened="killed", lost="step 5, taken again: the same")


def train_sigterm(bench: Bench, place: Path) -> Row:
    happened = ends(bench.struck(place, how="terminate"), 143, "terminated at step 6 of 8; the same command continues")
    assert checkpoints(place)[-1] == "step=6.ckpt"
    goes_on(bench, place)
    return Row(
        where="training", fault="SIGTERM to all its processes in step 6", happened=happened, lost="nothing: the same"
    )


def train_interrupt(bench: Bench, place: Path) -> Row:
    happened = ends(bench.struck(place, how="interrupt"), 130, "interrupted at step 6 of 8; the same command continues")
    assert checkpoints(place)[-1] == "step=6.ckpt"
    goes_on(bench, place)
    return Row(where="training", fault="Ctrl-C in step 6", happened=happened, lost="nothing: the same")


def train_disk_full(bench: Bench, place: Path) -> Row:
    with disk(place / "disk") as small_disk:
        done = bench.struck(small_disk, how="fill", at=small_disk)
        happened = ends(done, 3, "No space left on device", "the same command continues after step 4")
        assert checkpoints(small_disk) == ["step=2.ckpt", "step=4.ckpt"]
        (small_disk / "filler").unlink()
        goes_on(bench, small_disk)
    return Row(
        where="training", fault="disk full after step 5", happened=happened, lost="step 5, taken again: the same"
    )


def train_no_room(bench: Bench, place: Path) -> Row:
    with disk(place / "disk", megabytes=1) as small_disk:
        happened = ends(bench.train(small_disk).ended(), 2, "the weights and 3 checkpoints take about", "are free")
    return Row(
        where="training", fault="no room from the start", happened=happened, lost="nothing: refused before step 1"
    )


def train_read_only(bench: Bench, place: Path) -> Row:
    with disk(place / "disk") as small_disk:
        done = bench.struck(small_disk, how="close", at=small_disk)
        happened = ends(done, 3, "Read-only file system", "continues after step 4")
        writable(small_disk)
        goes_on(bench, small_disk)
    return Row(
        where="training", fault="output read-only after step 5", happened=happened, lost="step 5, taken again: the same"
    )


def train_truncated_checkpoint(bench: Bench, place: Path) -> Row:
    bench.train(place, "callbacks=[{_target_:tests.helpers.kill_callbacks.KillAt,step:5}]").ended()
    newest = run_of(place) / "state" / "step=4.ckpt"
    os.truncate(newest, newest.stat().st_size // 2)
    done = bench.train(place).ended()
    assert done.code == 0 and "step=4.ckpt is damaged (its hash is another)" in done.said, done.said
    assert left(place) == bench.trained
    happened = "it says that the checkpoint is damaged, and continues from the one before"
    return Row(
        where="training",
        fault="newest checkpoint cut in half",
        happened=happened,
        lost="2 steps, taken again: the same",
    )


def train_deleted_file(bench: Bench, place: Path) -> Row:
    own = photos(place / "photos")
    done = bench.struck(place, how="delete", step=2, at=own, photos=own)
    assert done.code == 0 and "left out a bad image" in done.said and "bad image files left out: 1" in done.said, (
        done.said
    )
    left(place)
    happened = "named once, left out and counted; the next image takes its place"
    return Row(where="training", fault="an image deleted in mid-epoch", happened=happened, lost="that image")


def train_vanished_data(bench: Bench, place: Path) -> Row:
    own = photos(place / "photos")
    done = bench.struck(place, how="hide", at=own, photos=own)
    happened = ends(done, 2, "none of the 8 images can be read", "the same command continues from its last checkpoint")
    ends(bench.train(place, photos=own).ended(), 2, "data.root", "no such file or folder")
    Path(f"{own}.hidden").rename(own)
    done = bench.train(place, photos=own).ended()
    assert done.code == 0 and left(place) == bench.trained, done.said
    return Row(
        where="training",
        fault="the images' folder gone after step 5",
        happened=happened,
        lost="step 5, taken again: the same",
    )


def train_dead_worker(bench: Bench, place: Path) -> Row:
    done = bench.struck(place, how="kill_worker")
    happened = ends(done, 3, "a process that reads data was killed", "continues after step 4")
    goes_on(bench, place)
    return Row(
        where="training",
        fault="SIGKILL of a process that reads data",
        happened=happened,
        lost="step 5, taken again: the same",
    )


def train_lost_device(bench: Bench, place: Path) -> Row:
    happened = ends(bench.struck(place, how="lose_device"), 3, "the device failed", "continues after step 4")
    goes_on(bench, place)
    return Row(where="training", fault="GPU lost in step 5", happened=happened, lost="step 5, taken again: the same")


def train_out_of_memory(bench: Bench, place: Path) -> Row:
    happened = ends(bench.struck(place, how="run_out_of_memory"), 3, "out of memory", "continues after step 4")
    goes_on(bench, place)
    return Row(
        where="training", fault="GPU out of memory in step 5", happened=happened, lost="step 5, taken again: the same"
    )


# Restoring.


def _restored_after(
    bench: Bench, place: Path, output: Path, what: Callable[[Command], object], mend: Callable[[], object]
) -> Ended:
    """Do something to a restoration once two images are done; give it again; nothing is lost nor done twice."""
    command = bench.restore(place, output=output)
    notes = output / ".restored"
    done = command.when(lambda: len(list(notes.glob("*.json"))) >= 2, lambda: what(command))
    mend()
    told = [json.loads(note.read_text()) for note in notes.glob("*.json")]
    there = {name: (output / name).stat().st_ino for note in told for name in note["outputs"]}
    assert 2 <= len(there) < COUNT
    again = bench.restore(place, output=output).ended()
    assert again.code == 0 and f"{COUNT - len(there)} restored" in again.said, again.said
    assert pictures(output) == bench.restored
    assert all((output / name).stat().st_ino == number for name, number in there.items())
    return done


def restore_sigkill(bench: Bench, place: Path) -> Row:
    done = _restored_after(bench, place, place / "out", lambda c: c.process.kill(), lambda: None)
    assert done.code == -signal.SIGKILL
    return Row(
        where="restore",
        fault="SIGKILL after 2 of 8 images",
        happened="killed",
        lost="the image at work; the rest is not done twice: the same",
    )


def restore_sigterm(bench: Bench, place: Path) -> Row:
    done = _restored_after(bench, place, place / "out", lambda c: c.process.terminate(), lambda: None)
    happened = ends(done, 143, "terminated; the same command continues")
    return Row(
        where="restore", fault="SIGTERM after 2 of 8 images", happened=happened, lost="the image at work: the same"
    )


def restore_disk_full(bench: Bench, place: Path) -> Row:
    with disk(place / "disk") as small_disk:
        mend = (small_disk / "filler").unlink
        done = _restored_after(bench, place, small_disk / "out", lambda c: fill(small_disk), mend)
        happened = ends(done, 3, "No space left on device", "the same command continues from")
    return Row(
        where="restore", fault="disk full after 2 of 8 images", happened=happened, lost="the image at work: the same"
    )


def restore_read_only(bench: Bench, place: Path) -> Row:
    with disk(place / "disk") as small_disk:
        mend = partial(writable, small_disk)
        done = _restored_after(bench, place, small_disk / "out", lambda c: read_only(small_disk), mend)
        happened = ends(done, 3, "Read-only file system", "the same command continues from")
    return Row(
        where="restore",
        fault="output read-only after 2 of 8 images",
        happened=happened,
        lost="the image at work: the same",
    )


def restore_deleted_file(bench: Bench, place: Path) -> Row:
    own = photos(place / "photos")
    command, notes = bench.restore(place, photos=own), place / "out" / ".restored"
    done = command.when(lambda: notes.is_dir() and any(notes.glob("*.json")), (own / "7.png").unlink)
    happened = ends(done, 2, "1 left out; they are named above")
    assert "left out:" in done.said and "7.png: No such file" in done.said
    assert {**bench.restored, "7.png": b""} == {**pictures(place / "out"), "7.png": b""}
    return Row(where="restore", fault="an image deleted before its turn", happened=happened, lost="that image")


def restore_corrupted_note(bench: Bench, place: Path) -> Row:
    assert bench.restore(place).ended().code == 0
    note = sorted((place / "out" / ".restored").glob("*.json"))[0]
    os.truncate(note, note.stat().st_size // 2)
    done = bench.restore(place).ended()
    assert done.code == 0 and "1 restored" in done.said and f"{COUNT - 1} had been" in done.said, done.said
    assert pictures(place / "out") == bench.restored
    return Row(
        where="restore",
        fault="the note of an image cut in half",
        happened="that image is restored again",
        lost="nothing: the same",
    )


# Precomputation.


def _cached_after(
    bench: Bench, place: Path, output: Path, what: Callable[[Command], object], mend: Callable[[], object]
) -> Ended:
    """Do something to a cache that is filled once three entries are there; give it again; none is made twice."""
    command = bench.cache(output)
    done = command.when(lambda: len(entries(output)) >= 3, lambda: what(command))
    mend()
    there = {file: file.stat().st_ino for file in output.glob("??/*.safetensors")}
    assert 3 <= len(there) < len(bench.cached)
    again = bench.cache(output).ended()
    assert again.code == 0 and entries(output) == bench.cached, again.said
    assert all(file.stat().st_ino == number for file, number in there.items())
    return done


def cache_sigkill(bench: Bench, place: Path) -> Row:
    done = _cached_after(bench, place, place / "cache", lambda c: c.process.kill(), lambda: None)
    assert done.code == -signal.SIGKILL
    return Row(where="data cache", fault="SIGKILL", happened="killed", lost="the entry at work: the same")


def cache_sigterm(bench: Bench, place: Path) -> Row:
    done = _cached_after(bench, place, place / "cache", lambda c: c.process.terminate(), lambda: None)
    happened = ends(done, 143, "terminated; the same command continues")
    return Row(where="data cache", fault="SIGTERM", happened=happened, lost="the entry at work: the same")


def cache_disk_full(bench: Bench, place: Path) -> Row:
    with disk(place / "disk", megabytes=4) as small_disk:
        mend = (small_disk / "filler").unlink
        done = _cached_after(bench, place, small_disk / "cache", lambda c: fill(small_disk), mend)
        happened = ends(done, 3, "No space left on device", "the same command continues")
    return Row(where="data cache", fault="disk full", happened=happened, lost="the entry at work: the same")


def cache_read_only(bench: Bench, place: Path) -> Row:
    with disk(place / "disk", megabytes=4) as small_disk:
        mend = partial(writable, small_disk)
        done = _cached_after(bench, place, small_disk / "cache", lambda c: read_only(small_disk), mend)
        happened = ends(done, 3, "Read-only file system", "the same command continues")
    return Row(where="data cache", fault="output read-only", happened=happened, lost="the entry at work: the same")


def cache_corrupted_entry(bench: Bench, place: Path) -> Row:
    assert bench.cache(place / "cache").ended().code == 0
    file = sorted((place / "cache").glob("??/*.safetensors"))[0]
    os.truncate(file, file.stat().st_size // 2)
    assert bench.cache(place / "cache").ended().code == 0 and entries(place / "cache") == bench.cached
    return Row(
        where="data cache",
        fault="an entry cut in half",
        happened="it counts as none and is made again",
        lost="nothing: the same",
    )


# Records and tables.


def evaluate_corrupted_record(bench: Bench, place: Path) -> Row:
    assert bench.evaluate(place).ended().code == 0
    os.truncate(record(place), record(place).stat().st_size // 2)
    done = bench.evaluate(place).ended()
    assert done.code == 0, done.said
    assert values(place) == bench.evaluated
    return Row(
        where="tables (a record)",
        fault="record.json cut in half",
        happened="it counts as none and is measured again",
        lost="nothing: the same",
    )


CASES: tuple[Callable[[Bench, Path], Row], ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith(("train_", "restore_", "cache_", "evaluate_"))
)
