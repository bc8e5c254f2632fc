"""Captions and encodings prepared by two processes that are killed at random: nothing is lost or made twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from restore_lab.data.image_io import write_png
from restore_lab.inference.captioning import caption_folder
from restore_lab.prepare.encodings import fill_cache
from tests.helpers.configs import composed
from tests.helpers.toy_captioners import toy_captioner

# Other moments are the slow ring's.
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
COUNT, WORLD, KILLS = 24, 2, 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Images with their captions next to them."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        image = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        write_png(folder / f"{number:02d}.png", image)
        (folder / f"{number:02d}.txt").write_text(f"picture {number}")
    return folder


def _rank(number: int, what: Callable[[], object]) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(WORLD)}
    what()


def ranks(what: Callable[[], object]) -> list[multiprocessing.Process]:
    """Both processes of a job, at work."""
    found: list[Any] = [
        multiprocessing.get_context("fork").Process(target=_rank, args=(number, what)) for number in range(WORLD)
    ]
    for process in found:
        process.start()
    return found


def killed_and_finished(
    what: Callable[[], object], made: Callable[[], dict[str, int]], done: Callable[[], bool], draw: random.Random
) -> int:
    """Kill one process, or both, after a random number of new files and a moment; then let both finish.

    Args:
        what: the job of one process.
        made: the files that are there, and by what a file that is written again would differ.
        done: whether all is made, after which the command would begin anew.
        draw: of the moments.

    Returns:
        How many processes were killed at work.
    """
    hit, there = 0, made()
    for _ in range(KILLS):
        both, until = ranks(what), len(made()) + draw.randrange(COUNT // 5)
        while any(process.is_alive() for process in both) and len(made()) < until:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        for process in draw.sample(both, draw.choice((1, 2))):
            process.kill()
        for process in both:
            process.join(timeout=100)
            hit += process.exitcode == -signal.SIGKILL
        assert there.items() <= made().items()
        there = made()
        if done():
            return hit
    for process in (last := ranks(what)):
        process.join(timeout=100)
    assert [process.exitcode for process in last] == [0] * WORLD and done()
    return hit


@pytest.mark.parametrize("seed", SEEDS)
def test_captions_survive_kills_and_none_is_made_twice(seed, photos, tmp_path) -> None:
    """Each image once, the words of a run in one process; a part that was there is not asked for again."""
    model = toy_captioner(tmp_path / "llava", "llava")

    def captions(name: str) -> Callable[[], object]:
        told = (f"input={photos}", f"output={tmp_path / name}.json", f"prompt.semantic.captioner.model={model}")
        rest = ("max_new_tokens=4", "batch_size=2", "cache=null", "device=cpu", "temperature=1.0")
        words = (*told, *(f"prompt.semantic.captioner.{word}" for word in rest), "progress=false")
        return lambda: caption_folder(composed("caption", *words))

    captions("one")()
    parts: dict[str, int] = {}  # those that were ever there: the last process takes them away

    def made() -> dict[str, int]:
        for path in tmp_path.glob(".two.json.*/*.json"):
            try:
                assert parts.setdefault(path.name, path.stat().st_ino) == path.stat().st_ino, f"{path} was made again"
            except FileNotFoundError:
                continue
        return dict(parts)

    hit = killed_and_finished(captions("two"), made, (tmp_path / "two.json").exists, random.Random(seed))
    if list(tmp_path.glob(".two.json.*")):  # killed between the table and the end
        captions("two")()
    one, two = ((tmp_path / f"{name}.json").read_text(encoding="utf-8") for name in ("one", "two"))
    assert one == two and len(json.loads(one)) == COUNT and not list(tmp_path.glob(".two.json.*"))
    assert hit >= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_encodings_survive_kills_and_none_is_made_twice(seed, toy_folder, photos, tmp_path) -> None:
    """An entry for each caption, for no words, and for each image, as one process makes them."""

    def cache(name: str) -> Callable[[], object]:
        data = ("make=cache", "data=folder", f"data.root={photos}", "crop=16", "progress=false", "device=cpu")
        prior = (f"backbone.path={toy_folder}", f"backbone.cache_dir={tmp_path / name}", "backbone.cache_latents=true")
        return lambda: fill_cache(composed("data", *data, *prior))

    def entries(name: str) -> dict[str, Path]:
        return {path.name: path for path in (tmp_path / name).glob("??/*.safetensors")}

    cache("one")()

    def made() -> dict[str, int]:
        return {name: path.stat().st_ino for name, path in entries("two").items()}

    hit = killed_and_finished(cache("two"), made, lambda: len(made()) == 2 * COUNT + 1, random.Random(seed))
    one, two = entries("one"), entries("two")
    assert one.keys() == two.keys() and len(one) == COUNT + 1 + COUNT
    for name, path in one.items():
        ours, theirs = load_file(two[name]), load_file(path)
        assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)
    assert hit >= 1
