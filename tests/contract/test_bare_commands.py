"""The bare `restore-lab train method=M backbone=B trainer.max_steps=1`, then `restore`: every method, every prior.

The shipped priors themselves, by the bare command line; only what would take long is made small.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from restore_lab.cli.main import main
from tests.helpers.prior_cache import read_once

METHODS = ("spire", "supir", "diff_restorer", "instantir", "dra", "controlnet", "regression")
# A batch of 32 crops and the bar are for a person's machine; the rest is the default.
SMALL = ("batch_size=2", "workers=0", "progress=false", "precision=32-true", "trainer.accelerator=cpu")


@pytest.fixture(scope="module", autouse=True)
def shipped_priors_read_once() -> Iterator[None]:
    with read_once():
        yield


@pytest.mark.parametrize("backbone", ["tiny_sd", "tiny_sdxl", "tiny_sd3"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_restores_on_every_shipped_prior(method, backbone, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((48, 40), 60).convert("RGB").save("photo.png")
    choice = [f"method={method}", f"backbone={backbone}"]

    monkeypatch.setattr("sys.argv", ["restore-lab", "train", *choice, "trainer.max_steps=1", *SMALL])
    main()
    last = max(Path("runs").rglob("adaptor.safetensors"), key=lambda file: file.stat().st_mtime_ns)

    words = ["input=photo.png", f"weights={last}", "sampler.steps=2", "device=cpu"]
    monkeypatch.setattr("sys.argv", ["restore-lab", "restore", *choice, *words])
    main()
    with Image.open("restored/photo.png") as image:
        assert image.size == (48, 40)
