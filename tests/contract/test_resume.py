"""A training killed with SIGKILL and started again equals one that was never killed, bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from restore_lab.storage.artefact import is_complete
from tests.helpers.toy_training import train


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_a_killed_training_resumes_to_the_unbroken_one(toy_folder, tmp_path) -> None:
    kill = ("callbacks=[{_target_:tests.helpers.kill_callbacks.KillAt,step:5}]", "trusted_packages=[tests]")
    killed = train(toy_folder, tmp_path / "killed", *kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = (tmp_path / "killed" / "run").iterdir()
    assert steps(folder) == [1, 2, 3, 3, 4, 5]  # one line of validation after step 3
    assert not is_complete(folder) and not (folder / "adaptor.safetensors").exists()
    assert {path.name for path in (folder / "state").iterdir()} == {"step=3.ckpt", "step=3.ckpt.sha256"}

    again = train(toy_folder, tmp_path / "killed", "workers=1")
    assert again.returncode == 0, again.stderr
    assert f"weights: {folder}" in again.stdout

    whole = train(toy_folder, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    unbroken = tmp_path / "whole" / "run" / folder.name  # the same settings, the same name
    assert steps(unbroken) == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8]
    for name in ("losses.jsonl", "adaptor.safetensors"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert is_complete(folder) and [path.name for path in (folder / "state").glob("*.ckpt")] == ["step=8.ckpt"]
