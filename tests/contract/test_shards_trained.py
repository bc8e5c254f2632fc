"""Training from shards: two and four processes train the weights of one, and a kill within an epoch loses no sample."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessException

from restore_lab.config.build import build
from restore_lab.data.image_io import write_png
from restore_lab.prepare.pack import pack
from restore_lab.training.checkpoints import last_state
from restore_lab.training.history import History
from restore_lab.training.module import TrainingModule
from tests.helpers.configs import composed, small
from tests.helpers.kill_callbacks import KillAt, Notes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
SAMPLES, BATCH, STEPS = 18, 4, 9  # two epochs of four and a half batches
WORDS = ("data=shards", f"batch_size={BATCH}", "optimisation.lr=1e-3", "degradation=real_esrgan")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """18 captioned images in 4 tars."""
    place = tmp_path_factory.mktemp("data")
    for number in range(SAMPLES):
        image = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        write_png(place / "photos" / f"{number:02d}.png", image)
        (place / "photos" / f"{number:02d}.txt").write_text(f"picture {number}")
    words = ("make=pack", "data=folder", f"data.root={place / 'photos'}", f"output={place / 'shards'}", "shard_size=5")
    return pack(composed("data", *words, "progress=false")).output


def train(
    toy_folder: Path, shards: Path, place: Path, *, world: int, workers: int = 0, kill: int | None = None
) -> bool:
    """Train, from the last checkpoint if there is one; gives whether no process was killed."""
    settings = {"world": world, "workers": workers, "kill": kill}
    if world == 1:
        process = multiprocessing.get_context("fork").Process(
            target=_train, args=(toy_folder, shards, place), kwargs=settings
        )
        process.start()
        process.join(timeout=250)
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode == 0
    try:
        _train(toy_folder, shards, place, **settings)  # Lightning forks its ranks
    except ProcessException:  # one was killed, or missed one that was
        return False
    return True


def _train(toy_folder: Path, shards: Path, place: Path, *, world: int, workers: int, kill: int | None) -> None:
    words = [word for word in small(toy_folder) if not word.startswith(("data.size", "batch_size", "workers"))]
    cfg = composed("train", *words, *WORDS, f"workers={workers}", f"data.root={shards}")
    L.seed_everything(0, verbose=False)
    module, data = build(cfg.module), build(cfg.datamodule)
    saved = L.pytorch.callbacks.ModelCheckpoint(dirpath=place / "state", filename="{step}", every_n_train_steps=2)
    callbacks = [History(file=place / "losses.jsonl", every=1), Notes(folder=str(place / "notes")), saved]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp_fork" if world > 1 else "auto",
        max_steps=STEPS,
        limit_val_batches=0,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[*callbacks, *([] if kill is None else [KillAt(step=kill)])],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    state = last_state(place)
    training = TrainingModule(module, optimisation=build(cfg.optimisation))
    trainer.fit(training, data, ckpt_path=state, weights_only=True)
    module.export(place)


def losses(place: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (place / "losses.jsonl").read_text().splitlines()]


def steps(place: Path) -> dict[int, Counter[str]]:
    """The keys of each step, of all ranks; of a step that was taken twice the second time counts."""
    last: dict[tuple[int, int], list[str]] = {}
    for file in (place / "notes").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            step, keys = json.loads(line)
            last[step, int(file.stem)] = keys
    return {step: sum((Counter(last[key]) for key in last if key[0] == step), Counter()) for step, _ in sorted(last)}


@pytest.fixture(scope="module")
def alone(toy_folder, shards, tmp_path_factory) -> Path:
    """One process, never killed; each of the 18 samples came twice, once in the first four and a half batches."""
    place = tmp_path_factory.mktemp("alone")
    assert train(toy_folder, shards, place, world=1)
    seen, everything = steps(place), Counter({f"{number:02d}": 1 for number in range(SAMPLES)})
    assert len(seen) == STEPS and all(batch.total() == BATCH for batch in seen.values())
    first = sum((seen[step] for step in (1, 2, 3, 4)), Counter())
    assert max(first.values()) == 1 and ((everything - first) & seen[5]).total() == 2
    assert sum(seen.values(), Counter()) == everything + everything
    return place


@pytest.mark.parametrize("world", [2, 4])
def test_processes_train_on_shards_what_one_trains(world, alone, toy_folder, shards, tmp_path) -> None:
    """Losses within 1e-5 of their size, weights within 1e-5: sums over a batch are taken in another order."""
    assert train(toy_folder, shards, tmp_path, world=world, workers=1)
    assert len(list((tmp_path / "notes").glob("*.jsonl"))) == world
    assert steps(tmp_path) == steps(alone)
    for one, other in zip(losses(alone), losses(tmp_path), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    here, there = (load_file(place / "adaptor.safetensors") for place in (alone, tmp_path))
    assert max(float((here[name] - there[name]).abs().max()) for name in here) < 1e-5


@pytest.mark.parametrize("world", [1, 2])
def test_a_kill_within_an_epoch_loses_no_sample(world, toy_folder, shards, tmp_path, alone) -> None:
    """SIGKILL to every rank after step 3, in the first epoch, and after step 7; the checkpoints are of steps 2 and 6.

    Nothing lost and nothing twice: the steps that count hold the samples of a run that was never killed. One process
    ends in the very same bytes.
    """
    for kill in (3, 7):
        assert not train(toy_folder, shards, tmp_path, world=world, kill=kill)
        state = last_state(tmp_path)
        assert state is not None and state.name == f"step={kill - 1}.ckpt"
    assert not (tmp_path / "adaptor.safetensors").exists()
    assert train(toy_folder, shards, tmp_path, world=world, workers=1)
    assert steps(tmp_path) == steps(alone)
    if world == 1:
        for name in ("losses.jsonl", "adaptor.safetensors"):
            assert (tmp_path / name).read_bytes() == (alone / name).read_bytes(), name
