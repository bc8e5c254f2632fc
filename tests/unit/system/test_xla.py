"""torch-xla's requirements, as far as they can be tested without it: versions, trainer settings, data workers."""

from __future__ import annotations

import itertools
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as V

from restore_lab.cli import main
from restore_lab.data.datamodule import RestorationDataModule
from restore_lab.prompts.visual import resize_matrices
from restore_lab.system.xla import check_trainer, check_versions, sync, to_host, upsample_nearest_2x
from tests.helpers.configs import composed
from tests.helpers.toy_source import Coordinates, first_batches, noisy, same_batch


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The versions of torch and torch-xla that are found."""
    found = {"torch": "2.9.1+cu128"}

    def version(package: str) -> str:
        if package not in found:
            raise metadata.PackageNotFoundError(package)
        return found[package]

    monkeypatch.setattr(metadata, "version", version)
    return found


def test_torch_and_torch_xla_need_one_minor_version(installed) -> None:
    check_versions()
    installed["torch-xla"] = "2.9.0"
    check_versions()
    for torch_version in ("2.15.0", "2.90.0", "3.9.1"):
        installed["torch"] = torch_version
        with pytest.raises(ValueError, match=rf"torch-xla 2\.9\.0 is installed beside torch {torch_version}, .* 2\.9 "):
            check_versions()


def test_an_unequal_pair_is_refused_in_one_line(installed, monkeypatch, capsys) -> None:
    installed |= {"torch": "2.15.0", "torch-xla": "2.9.0"}
    monkeypatch.setattr("sys.argv", ["restore-lab", "describe"])
    with pytest.raises(SystemExit) as left:
        main.main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith("restore-lab: torch-xla 2.9.0 is installed beside torch 2.15.0") and said.count("\n") == 1
    assert "requirements-xla.lock" in said


def test_the_tpu_trainer_names_what_is_missing(installed) -> None:
    def settings(*words: str) -> dict[str, Any]:
        cfg = composed("train", *words)
        return {**cfg.trainer, "precision": cfg.precision}

    check_trainer(settings("trainer=auto"))
    with pytest.raises(ValueError, match=r"trainer=tpu: torch-xla is not installed here; .* requirements-xla\.lock"):
        check_trainer(settings("trainer=tpu"))
    installed["torch-xla"] = "2.9.0"
    check_trainer(settings("trainer=tpu"))
    check_trainer(settings("trainer=tpu", "trainer.devices=[2]"))
    for devices in ("8", "auto", "-1", "[0,1]"):
        with pytest.raises(ValueError, match=r"set trainer\.devices=1"):
            check_trainer(settings("trainer=tpu", f"trainer.devices={devices}"))
    with pytest.raises(ValueError, match=r"precision=bf16-mixed: .* set precision=32-true"):
        check_trainer(settings("trainer=tpu", "precision=bf16-mixed"))


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_degrade_for_xla_with_the_same_batches(workers) -> None:
    def data(device: str) -> RestorationDataModule:
        made = RestorationDataModule(
            train=Coordinates(7), degradation=noisy, crop=8, batch_size=3, workers=workers, seed=1
        )
        strategy = SimpleNamespace(root_device=torch.device(device))
        made.trainer = SimpleNamespace(  # type: ignore[assignment]
            strategy=strategy, global_step=0, accumulate_grad_batches=1, overfit_batches=0, global_rank=0, world_size=1
        )
        return made

    late = list(itertools.islice(iter(data("cpu").train_dataloader()), 3))
    early = list(itertools.islice(iter(data("xla").train_dataloader()), 3))
    assert all(batch.lq_BCHW is None for batch in late)
    assert all(same_batch(a, b) for a, b in zip(early, first_batches(data("cpu"), 3), strict=True))
    assert all(recipe is not None for batch in early for recipe in batch.recipe)


def test_on_other_devices_batches_are_unchanged() -> None:
    tensor = torch.ones(2)
    sync(tensor)
    assert to_host(tensor) is tensor


@pytest.mark.parametrize(("height", "width", "short"), [(24, 40, 10), (7, 5, 16), (16, 16, 16)])
def test_an_image_encoders_resize_is_two_matrices(height, width, short) -> None:
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    rows, columns = resize_matrices(height, width, short=short)
    torch.testing.assert_close(
        rows @ image @ columns,
        V.resize(image, [short], interpolation=V.InterpolationMode.BICUBIC, antialias=True),
        rtol=0,
        atol=1e-6,
    )


def test_doubling_and_its_gradient_are_nearest_neighbours() -> None:
    draw = torch.Generator().manual_seed(0)
    image, weight = torch.randn(2, 3, 4, 5, generator=draw), torch.randn(2, 3, 8, 10, generator=draw)
    ours, theirs = image.clone().requires_grad_(), image.clone().requires_grad_()
    expected = torch.nn.functional.interpolate(theirs, scale_factor=2.0, mode="nearest")
    assert torch.equal(upsample_nearest_2x(ours), expected)
    (upsample_nearest_2x(ours) * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
