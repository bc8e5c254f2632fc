"""Negative samples: filling, resuming, mixing into training; the sampler with a partial start."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restore_lab.config.build import build
from restore_lab.data.sources.folder import FolderSource
from restore_lab.data.sources.mixed import MixedSource
from restore_lab.prepare.negatives import fill_negatives, plan_negatives
from restore_lab.samplers.init import LqNoised
from restore_lab.samplers.loop import SchedulerSampler
from restore_lab.samplers.schedulers import ddim, unipc
from restore_lab.storage.artefact import MANIFEST, is_complete
from restore_lab.types import Picture
from tests.helpers.configs import composed
from tests.helpers.toy_methods import latents, said, sampler_parts, schedule


def config(toy_folder: Path, output: Path, *words: str):
    base = (f"backbone.path={toy_folder}", f"output={output}", "crop=16", "data.size=16", "count=5", "batch_size=2")
    return composed("data", *base, "sampler.steps=4", "device=cpu", "progress=false", *words)


def test_a_folder_is_filled_and_resumed_to_the_same_images(toy_folder, tmp_path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    fill_negatives(config(toy_folder, whole))
    names = sorted(path.name for path in whole.iterdir() if path.name != MANIFEST and path.name[0] != ".")
    assert names == [f"{n:06d}{suffix}" for n in range(5) for suffix in (".png", ".txt")]
    fill_negatives(config(toy_folder, pieces, "count=2"))
    before = (pieces / "000001.png").stat().st_mtime_ns
    (pieces / "000000.png").unlink()  # as if killed between caption and image
    fill_negatives(config(toy_folder, pieces, "batch_size=4"))
    assert (pieces / "000001.png").stat().st_mtime_ns == before
    for name in names:
        if name.endswith(".txt"):
            assert (pieces / name).read_text().startswith("oil painting")
        else:
            one, other = (np.asarray(Image.open(folder / name)).astype(int) for folder in (whole, pieces))
            assert np.abs(one - other).max() <= 1  # a batch of another size may differ in a last bit
    assert fill_negatives(config(toy_folder, whole)) == whole  # nothing is missing, nothing is loaded
    assert is_complete(whole, identity=plan_negatives(config(toy_folder, whole)).identity)
    with pytest.raises(ValueError, match="holds images that were made otherwise"):
        fill_negatives(config(toy_folder, whole, "seed=1"))


@pytest.mark.parametrize(
    "scheduler", [partial(ddim, timestep_spacing="trailing"), partial(unipc, timestep_spacing="linspace")]
)
def test_a_partial_start_noises_the_image(scheduler) -> None:
    """Half of the steps are taken; an oracle's image is reached from there; strength towards 0 keeps the image."""
    s, lq, x0 = schedule("v_prediction", zero_snr=False), latents(), latents(seed=1)
    asked: list[int] = []

    def oracle(z, t, level):
        asked.append(int(t[0]))
        return s.from_x0(x0, z, t.long())

    def run(start: float, model):
        sampler = SchedulerSampler(scheduler=scheduler, steps=20, start=start, **sampler_parts(init=LqNoised()))
        return sampler(said(model), lq, centre_BCHW=lq, seeds=[1, 2, 3], schedule=s)

    torch.testing.assert_close(run(0.5, oracle), x0, atol=2e-3, rtol=1e-2)
    assert len(asked) == 10 and max(asked) < 520
    moved = [(run(start, lambda z, t, level: torch.zeros_like(z)) - lq).abs().mean() for start in (0.05, 0.5, 1.0)]
    assert moved[0] < 0.2 < moved[1] < moved[2]
    with pytest.raises(ValueError, match=r"start=0: expected a number above 0 and at most 1 \(a share of the steps\)"):
        build(composed("evaluate", "sampler.start=0", "data=procedural").sampler)


class Named:
    """Pictures whose captions say where they come from."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def __len__(self) -> int:
        return self.count

    def keys(self) -> list[str]:
        return [str(n) for n in range(self.count)]

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        return Picture(hq_HWC=np.zeros((4, 4, 3), np.uint8), caption=f"{self.name} {index}", key=str(index))


def test_the_mixture_depends_on_shares_and_index_only(tmp_path) -> None:
    mixed = MixedSource(sources={"main": Named("main", 2000), "bad": Named("bad", 7)}, shares={"main": 9.0, "bad": 1.0})
    captions = [mixed.read(i, epoch=0).caption for i in range(len(mixed))]
    bad = [caption for caption in captions if caption.startswith("bad")]
    assert len(mixed) == 2000 and 150 < len(bad) < 250 and len(set(bad)) == 7
    assert all(caption == f"main {i}" for i, caption in enumerate(captions) if caption.startswith("main"))
    assert captions[:50] == [mixed.read(i, epoch=0).caption for i in range(50)]
    assert mixed.keys()[0].split("/")[0] == captions[0].split()[0]
    with pytest.raises(ValueError, match="must name the same parts"):
        MixedSource(sources={"main": Named("main", 2)}, shares={"mian": 1.0})


def test_a_filled_folder_is_a_captioned_source(toy_folder, tmp_path) -> None:
    fill_negatives(config(toy_folder, tmp_path / "made", "count=1"))
    assert FolderSource(tmp_path / "made").read(0).caption.startswith("oil painting, cartoon")
