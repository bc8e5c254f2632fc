"""Large photographs through the shipped SPIRE, one process each: memory does not grow with the image."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def restored(folder, width: int, height: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.helpers.big_image", str(width), str(height), str(folder), "sampler.steps=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_peak_memory_at_4k_is_that_at_full_hd_and_no_seams_show(tmp_path) -> None:
    """Peak memory above the loaded model (RssAnon), at equal tiles of 512 pixels, four at once."""
    hd, uhd = restored(tmp_path, 1920, 1080), restored(tmp_path, 3840, 2160)
    assert uhd["above"] <= 1.2 * hd["above"]
    assert uhd["seams_of_the_change"] < 1.2 and hd["seams_of_the_change"] < 1.2
