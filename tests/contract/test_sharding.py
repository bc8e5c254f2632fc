"""`trainer=fsdp`: sharded over two real processes, a training equals that of one process, and resumes as one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from restore_lab.training.module import Optimisation, TrainingModule
from restore_lab.training.sharding import shard
from tests.helpers.toy_methods import toy_spire
from tests.helpers.toy_training import train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo")
KILL = ("callbacks=[{_target_:tests.helpers.kill_callbacks.KillAt,step:5}]", "trusted_packages=[tests]")
SHARDED = ("trainer=fsdp", "trainer.devices=2")


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(toy_folder, tmp_path_factory) -> Path:
    """What one process makes, never killed."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    unbroken = train(toy_folder, runs, "trainer.devices=1")
    assert unbroken.returncode == 0, unbroken.stderr
    (folder,) = (runs / "run").iterdir()
    return folder


BACK = pytest.param(SHARDED, (), id="then_whole", marks=pytest.mark.slow)  # as long again


@pytest.mark.parametrize(("first", "then"), [pytest.param((), SHARDED, id="then_sharded"), BACK])
def test_a_run_resumes_with_sharded_or_whole_weights(toy_folder, tmp_path, whole, first, then) -> None:
    """Killed after the checkpoint of step 3, continued the other way: optimiser, average and losses go on."""
    killed = train(toy_folder, tmp_path / "run", *first, *KILL)
    assert killed.returncode != 0 and not list(tmp_path.rglob("adaptor.safetensors")), killed.stderr
    again = train(toy_folder, tmp_path / "run", *then)
    assert again.returncode == 0, again.stderr
    (folder,) = (tmp_path / "run" / "run").iterdir()
    assert folder.name == whole.name  # devices are no part of an identity
    assert [line["step"] for line in losses(folder)] == [line["step"] for line in losses(whole)]
    for a, b in zip(losses(folder), losses(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    ours, theirs = (load_file(place / "adaptor.safetensors") for place in (folder, whole))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
    headers = [safe_open(place / "adaptor.safetensors", framework="pt").metadata() for place in (folder, whole)]
    assert headers[0] == headers[1]  # the prior's fingerprint is that of the whole prior


def test_a_module_with_manual_optimisation_is_refused() -> None:
    module = TrainingModule(toy_spire(), optimisation=Optimisation(lr=1e-3))
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="TrainingModule steps its optimisers itself, which trainer=fsdp does not"):
        shard(module, None)


def test_the_frozen_prior_is_sharded_too(tmp_path) -> None:
    """In a group of one the pieces are whole, but every parameter, frozen ones too, is a piece."""
    from torch.distributed.tensor import DTensor

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        module = TrainingModule(toy_spire(), optimisation=Optimisation(lr=1e-3))
        shard(module, mesh)
        pieces = {name: isinstance(p, DTensor) for name, p in module.named_parameters()}
        assert all(cut != ("backbone.text." in name) for name, cut in pieces.items())
        assert any("backbone.unet.down_blocks" in name for name in pieces)
    finally:
        torch.distributed.destroy_process_group()
