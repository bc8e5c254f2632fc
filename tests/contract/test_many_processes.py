"""Evaluating, restoring, captioning, packing and caching in several processes, also killed: every image once."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.cli.evaluate import run as evaluate_verb
from restore_lab.data.image_io import write_png
from restore_lab.evaluation.evaluate import evaluate
from restore_lab.evaluation.records import read_record
from restore_lab.inference.captioning import caption_folder
from restore_lab.inference.folder import restore_folder
from restore_lab.inference.restorer import load_method
from restore_lab.prepare.encodings import fill_cache
from restore_lab.system.processes import own_parts, rank_and_world
from tests.helpers.checkout import ROOT
from tests.helpers.configs import composed, small
from tests.helpers.forked import forked, start
from tests.helpers.processes import none_left
from tests.helpers.toy_captioners import toy_captioner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks in /proc")
COUNT = 9
SLOW = ("fsim", "vif", "vsi", "piqe")  # of pyiqa's, each of which is measured as gmsd is
QUICK = "metrics=fidelity"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Nine images, their captions next to them, and two adjacent files that are no images."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        image = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        write_png(folder / f"{number}.png", image)
        (folder / f"{number}.txt").write_text(f"picture {number}")
    for name in ("3a", "3b"):
        (folder / f"{name}.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def as_rank(monkeypatch):
    """Call something as one process of several, told as torchrun or srun tells it."""

    def call(rank: int, world: int, what: Callable, *, by: str = "torchrun"):
        names = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")}[by]
        with monkeypatch.context() as patch:
            for name, value in zip(names, (rank, world), strict=True):
                patch.setenv(name, str(value))
            return what()

    return call


def killed(what: Callable[[], object], *, when: Callable[[], bool]) -> bool:
    """Run in a forked process and kill it at a moment; gives whether it was still at work."""
    process = multiprocessing.get_context("fork").Process(target=what)
    process.start()
    until = time.monotonic() + 200
    while process.is_alive() and not when() and time.monotonic() < until:
        time.sleep(0.001)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_processes_divide_the_images_among_themselves(as_rank) -> None:
    for by in ("torchrun", "srun"):
        shares = [as_rank(rank, 4, lambda: own_parts(11, done=(6).__eq__), by=by) for rank in range(4)]
        assert sorted(number for share in shares for number in share) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]
        assert as_rank(3, 4, rank_and_world, by=by) == (3, 4)
    assert rank_and_world() == (0, 1)


def test_a_slurm_batch_script_without_srun_is_one_process(monkeypatch) -> None:
    """sbatch says how many tasks a job may have; only srun starts them."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert rank_and_world() == (0, 1)


# Evaluation ----------------------------------------------------------------------------------------------------------


def scored(toy_folder: Path, photos: Path, runs: Path, *words: str):
    prior = [word for word in small(toy_folder) if not word.startswith("eval_data")]
    data = ("eval_data=folder", f"eval_data.root={photos}", "eval_crop=16", "eval_batch_size=2", "pictures=3")
    told = ("weights=null", "metrics=offline", "eval_degradation=noise", f"runs_dir={runs}", "device=cpu")
    left_out = [f"~metrics.metrics.{name}" for name in SLOW] if QUICK not in words else []
    return composed("evaluate", *prior, *data, *told, "progress=false", "name=toy", *left_out, *words)


def files(folder: Path) -> dict[str, bytes]:
    """What a record is, file by file."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.endswith(".lock")}


@pytest.fixture(scope="module")
def alone(toy_folder, photos, tmp_path_factory) -> dict[str, bytes]:
    """The record of one process."""
    done = evaluate(scored(toy_folder, photos, tmp_path_factory.mktemp("alone")))
    assert done is not None and {cell.n for cell in done.results.cells} == {COUNT}
    assert {"psnr", "tiny_fd", "tiny_clip_t"} <= {cell.metric for cell in done.results.cells}
    record = files(done.folder)
    assert {"record.json", "per_image.parquet", "pictures.png"} <= set(record)
    return record


@pytest.mark.parametrize("world", [2, 4])
def test_an_evaluation_over_processes_equals_that_of_one(world, alone, toy_folder, photos, tmp_path, as_rank) -> None:
    """Bit for bit, files and all, in whatever order the processes finish; the last of them has the table."""
    cfg = scored(toy_folder, photos, tmp_path)
    for rank in reversed(range(world)):
        done = as_rank(rank, world, lambda: evaluate(cfg))
        assert (done is None) == (rank > 0)
    assert done is not None and files(done.folder) == alone
    assert as_rank(1, world, lambda: evaluate(cfg)) is None  # it is there: the first shows it
    assert as_rank(0, world, lambda: evaluate(cfg)) is not None
    with pytest.raises(ValueError, match="again=true: of several processes each would begin anew; delete"):
        as_rank(0, world, lambda: evaluate(scored(toy_folder, photos, tmp_path, "again=true")))


def test_a_killed_evaluation_resumes(alone, toy_folder, photos, tmp_path, as_rank, capsys) -> None:
    """Killed twice, then finished by another number of processes: no part is made twice, and the record is the same."""
    cfg = scored(toy_folder, photos, tmp_path)
    made: dict[Path, int] = {}

    def parts() -> list[Path]:
        return sorted(tmp_path.rglob("parts-*/*.safetensors"))

    for wanted, rank in ((1, 0), (2, 1)):
        assert killed(lambda: as_rank(rank, 2, lambda: evaluate(cfg)), when=lambda: len(parts()) >= wanted)  # noqa: B023
        for part in parts():
            assert made.setdefault(part, part.stat().st_mtime_ns) == part.stat().st_mtime_ns
    assert 2 <= len(made) < 6 and not list(tmp_path.rglob("record.json"))
    for rank in (2, 1):
        as_rank(rank, 3, lambda: evaluate_verb(cfg))
    assert capsys.readouterr().out.count("has done its share; the last one prints the table") == 2
    assert all(part.stat().st_mtime_ns == when for part, when in made.items())
    as_rank(0, 3, lambda: evaluate_verb(cfg))
    assert "| toy" in capsys.readouterr().out
    (record,) = tmp_path.rglob("record.json")
    assert files(record.parent) == alone and not parts()


def test_parts_of_another_division_are_measured_again(alone, toy_folder, photos, tmp_path, as_rank) -> None:
    as_rank(1, 2, lambda: evaluate(scored(toy_folder, photos, tmp_path, "eval_batch_size=3")))
    assert len(list(tmp_path.rglob("parts-*/*.safetensors"))) == 2
    done = evaluate(scored(toy_folder, photos, tmp_path))
    assert done is not None and files(done.folder) == alone


def test_again_true_measures_everything_again(toy_folder, photos, tmp_path) -> None:
    first = evaluate(scored(toy_folder, photos, tmp_path, QUICK))
    assert first is not None
    before = (first.folder / "record.json").stat().st_mtime_ns
    again = evaluate(scored(toy_folder, photos, tmp_path, QUICK, "again=true"))
    assert again is not None and (again.folder / "record.json").stat().st_mtime_ns > before
    assert read_record(again.folder).results == first.results


def test_evaluate_starts_processes_and_reads_their_record(toy_folder, photos, tmp_path, as_rank, monkeypatch, capsys):
    """`devices=2`, also again; the processes are played by this one."""
    asked: list[tuple[int, tuple[str, ...], bool]] = []

    def launched(devices: int, *more: str, quiet: bool = False) -> bool:
        asked.append((devices, more, quiet))
        for rank in range(devices):
            as_rank(rank, devices, lambda: evaluate(scored(toy_folder, photos, tmp_path, QUICK, *more)))
        return True

    monkeypatch.setattr("restore_lab.system.processes.launch_ranks", launched)
    evaluate_verb(scored(toy_folder, photos, tmp_path, QUICK, "devices=2"))
    (record,) = tmp_path.rglob("record.json")
    before = record.stat().st_mtime_ns
    evaluate_verb(scored(toy_folder, photos, tmp_path, QUICK, "devices=2"))
    assert record.stat().st_mtime_ns == before
    evaluate_verb(scored(toy_folder, photos, tmp_path, QUICK, "devices=2", "again=true"))
    assert record.stat().st_mtime_ns > before
    assert asked == [(2, ("again=false",), True)] * 2 and capsys.readouterr().out.count("| toy") == 3


# Restoring -----------------------------------------------------------------------------------------------------------


def restoring(toy_folder: Path, photos: Path, output: Path, *words: str):
    told = (f"input={photos}", f"output={output}", "weights=null", "device=cpu", "sampler.progress=false")
    return composed("restore", *small(toy_folder), *told, *words)


def test_restoring_over_processes_equals_that_of_one_and_resumes(
    toy_folder, photos, tmp_path, as_rank, monkeypatch
) -> None:
    whole = restore_folder(restoring(toy_folder, photos, tmp_path / "one"))
    assert whole.written == COUNT and len(whole.bad) == 2
    cfg = restoring(toy_folder, photos, tmp_path / "three")

    def there() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "three").glob("*.png")}

    def noted() -> list[Path]:
        """The images recorded as done; a file without a record may be of an image in progress."""
        notes = (json.loads(note.read_text()) for note in (tmp_path / "three/.restored").glob("*.json"))
        return [tmp_path / "three" / name for note in notes for name in note.get("outputs", ())]

    assert killed(lambda: as_rank(0, 3, lambda: restore_folder(cfg)), when=lambda: bool(noted()))
    before = {path: path.stat().st_mtime_ns for path in noted()}
    shares = [as_rank(rank, 3, lambda: restore_folder(cfg)) for rank in (2, 0, 1)]
    assert sum(share.written for share in shares) == COUNT - len(before)
    assert sum(len(share.bad) for share in shares) == 2
    assert there() == {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.png")}
    assert before and all(path.stat().st_mtime_ns == when for path, when in before.items())
    monkeypatch.setattr(
        "restore_lab.inference.restorer.load_method", lambda cfg: pytest.fail("nothing is left to restore")
    )
    assert restore_folder(cfg).written == 0


# Captions ------------------------------------------------------------------------------------------------------------


def test_captions_over_processes_equal_those_of_one_and_resume(photos, tmp_path, as_rank) -> None:
    """Without the captioner's own cache: what a killed run had said is in its parts."""
    model = toy_captioner(tmp_path / "llava", "llava")

    def captions(name: str):
        told = (f"input={photos}", f"output={tmp_path / name}.json", f"prompt.semantic.captioner.model={model}")
        rest = ("max_new_tokens=4", "batch_size=2", "cache=null", "device=cpu", "temperature=1.0")
        return composed("caption", *told, *(f"prompt.semantic.captioner.{word}" for word in rest), "progress=false")

    whole = caption_folder(captions("one"))
    assert whole.written == COUNT and len(whole.bad) == 2

    def parts() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob(".two.json.*/*.json")}

    assert killed(lambda: as_rank(1, 2, lambda: caption_folder(captions("two"))), when=lambda: bool(parts()))
    before = parts()
    assert as_rank(1, 2, lambda: caption_folder(captions("two"))).written is None
    assert before and before.items() <= parts().items()
    assert as_rank(0, 2, lambda: caption_folder(captions("two"))).written == COUNT
    one, two = ((tmp_path / f"{name}.json").read_text(encoding="utf-8") for name in ("one", "two"))
    assert one == two and len(json.loads(one)) == COUNT and not parts()


# Caches --------------------------------------------------------------------------------------------------------------


def test_a_cache_filled_by_killed_processes_holds_whole_entries(
    toy_folder, photos, tmp_path, as_rank, monkeypatch
) -> None:
    """Nothing lost, nothing twice: in the end an entry for each caption, for no words, and for each image."""
    data = ("make=cache", "data=folder", f"data.root={photos}", "crop=16", "progress=false", "device=cpu")
    prior = (f"backbone.path={toy_folder}", f"backbone.cache_dir={tmp_path / 'cache'}", "backbone.cache_latents=true")
    cfg = composed("data", *data, *prior)

    def entries() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in (tmp_path / "cache").glob("??/*.safetensors")}

    assert killed(lambda: as_rank(1, 2, lambda: fill_cache(cfg)), when=lambda: len(entries()) >= 3)
    before = entries()
    shares = [as_rank(rank, 2, lambda: fill_cache(cfg)).samples for rank in (1, 0)]
    assert sum(shares) == COUNT and len(entries()) == COUNT + 1 + COUNT
    assert 3 <= len(before) < 10 and before.items() <= entries().items()
    monkeypatch.setattr(DiskCache, "_write", lambda *a: pytest.fail("everything is there"))
    assert fill_cache(cfg).samples == COUNT
    with pytest.raises(ValueError, match=r"fills backbone.cache_dir; give that folder"):
        fill_cache(composed("data", *data))
    with pytest.raises(ValueError, match=r"precision=bf16-true: a cache is of 32-true, 16-mixed, bf16-mixed"):
        fill_cache(composed("data", *data, f"backbone.cache_dir={tmp_path}", "precision=bf16-true"))


# devices=2, typed ----------------------------------------------------------------------------------------------------


def packing(photos: Path, output: Path) -> tuple[str, ...]:
    words = ("data", "pack", "data=folder", f"data.root={photos}", f"output={output}", "shard_size=1", "progress=false")
    return *words, "devices=2", f"hydra.run.dir={output}.hydra"


def test_packing_by_two_killed_processes_resumes_to_the_same_shards(tmp_path) -> None:
    """SIGKILL to the command at its first shards: its processes go with it; the same command ends in one's bytes.

    The command itself is a fork of this process; its two are typed.
    """
    from restore_lab.prepare.pack import pack

    photos = tmp_path / "many"
    photos.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    for number in range(40):
        Image.fromarray(np.roll(image, number)).save(photos / f"{number:02d}.png", compress_level=0)
    output = tmp_path / "shards"
    first = start(*packing(photos, output), cwd=tmp_path, paths=(ROOT,))
    until = time.monotonic() + 200
    while first.is_alive() and len(list(output.glob("*.tar"))) < 3 and time.monotonic() < until:
        time.sleep(0.001)
    first.kill()
    first.join()
    assert none_left(output)
    before = {path: path.read_bytes() for path in output.glob("*.tar")}
    assert 3 <= len(before) < 40 and not (output / ".index" / "manifest.json").exists()
    done = forked(*packing(photos, output), cwd=tmp_path, paths=(ROOT,))
    assert "40 samples in 40 shards" in done.stdout, done.stderr
    assert "has done its share of 40 shards" in done.stdout, done.stderr
    words = ("make=pack", "data=folder", f"data.root={photos}", f"output={tmp_path / 'one'}", "shard_size=1")
    pack(composed("data", *words, "progress=false"))
    one = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.tar")}
    assert {path.name: path.read_bytes() for path in output.glob("*.tar")} == one
    assert not list(output.glob(".*.part"))


def test_a_failing_process_is_named(tmp_path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no image")
    done = forked(*packing(tmp_path / "bad", tmp_path / "out"), cwd=tmp_path, paths=(ROOT,))
    assert "restore-lab: process 0 of 2 failed (status 2); the same command continues" in done.stderr


def test_load_gives_each_process_of_a_machine_a_gpu(toy_folder, monkeypatch) -> None:
    import torch

    from restore_lab.system.processes import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device("auto") == "cuda" and device("cuda:1") == "cuda:1"
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    assert device("auto") == "cuda:1" and device("cpu") == "cpu"
    monkeypatch.undo()
    assert (
        load_method(composed("restore", *small(toy_folder), "weights=null", "input=x", "device=cpu")).device.type
        == "cpu"
    )
