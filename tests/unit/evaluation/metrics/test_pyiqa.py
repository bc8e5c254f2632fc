"""pyiqa's metrics without weights at the sizes of evaluation; the pre-flight check of those with weights."""

from __future__ import annotations

import importlib.util
import re
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor

from restore_lab.evaluation.metrics import paper, pyiqa
from restore_lab.evaluation.metrics.fidelity import Psnr
from restore_lab.evaluation.metrics.paper import METRIC_FACTS, METRIC_FILES, Fid, PaperMetric, clean_resize
from restore_lab.evaluation.metrics.pyiqa import WEIGHTLESS, PyiqaMetric
from restore_lab.evaluation.protocol import ImageMetric, MetricUnavailable, Protocol
from restore_lab.evaluation.suite import MetricSuite


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights anywhere, and no network."""
    import huggingface_hub.constants
    import pyiqa.utils.download_util

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(pyiqa.utils.download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "pyiqa"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*args: object) -> None:
        raise AssertionError("a metric touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def pictures(side: int) -> tuple[Tensor, Tensor]:
    """Smooth pictures and noisy copies, the second noisier."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 8, 8, generator=draw)
    reference = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    level = torch.tensor([0.03, 0.15]).view(2, 1, 1, 1)
    return (reference + level * torch.randn(reference.shape, generator=draw)).clamp(0, 1), reference


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("name", list(WEIGHTLESS))
def test_every_metric_runs_per_image_and_in_its_direction(name: str, side: int) -> None:
    metric = PyiqaMetric(name=name)
    restored, reference = pictures(side)
    both = metric(restored, reference, None)
    assert both.shape == (2,)
    assert torch.isfinite(both).all()
    alone = torch.cat([metric(restored[i : i + 1], reference[i : i + 1], None) for i in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)
    assert (both[0] > both[1]).item() == metric.higher_is_better
    assert metric.weights.startswith("pyiqa 0.")


@pytest.mark.parametrize("name", list(WEIGHTLESS))
def test_each_metric_has_its_true_smallest_size(name: str) -> None:
    side = WEIGHTLESS[name].min_size
    assert torch.isfinite(PyiqaMetric(name=name)(*pictures(side), None)).all()
    if name == "vif":
        with pytest.raises(MetricUnavailable, match="pyiqa failed on 32x32 images"):
            PyiqaMetric(name=name)(*pictures(side - 1), None)


def test_the_table_of_metrics_agrees_with_pyiqa() -> None:
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    for name, facts in {**WEIGHTLESS, **METRIC_FACTS}.items():
        assert facts.higher_is_better == (not DEFAULT_CONFIGS[name].get("lower_better", False)), name
        assert facts.needs_reference == (DEFAULT_CONFIGS[name]["metric_mode"] == "FR"), name
    with pytest.raises(ValueError, match="'lpips' is not one that needs no weights"):
        PyiqaMetric(name="lpips")


def test_file_names_are_those_that_pyiqa_and_torchvision_ask_for() -> None:
    from pyiqa.archs import (
        clip_model,
        clipiqa_arch,
        dists_arch,
        inception,
        lpips_arch,
        maniqa_arch,
        musiq_arch,
        niqe_arch,
    )
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    asked = {
        "lpips": (AlexNet_Weights.IMAGENET1K_V1.url, lpips_arch.default_model_urls["0.1_alex"]),
        "lpips-vgg": (VGG16_Weights.IMAGENET1K_V1.url, lpips_arch.default_model_urls["0.1_vgg"]),
        "dists": (VGG16_Weights.IMAGENET1K_V1.url, dists_arch.default_model_urls["url"]),
        "niqe": (niqe_arch.default_model_urls["niqe"],),
        "musiq": (musiq_arch.default_model_urls["koniq10k"],),
        "maniqa": (None, maniqa_arch.default_model_urls["koniq"]),
        "maniqa-pipal": (None, maniqa_arch.default_model_urls["pipal"]),
        "clipiqa": (clip_model._MODELS["RN50"],),
        "clipiqa+_vitL14_512": (
            clip_model._MODELS["ViT-L/14"],
            clipiqa_arch.default_model_urls["clipiqa+_vitL14_512"],
        ),
    }
    assert set(asked) == set(METRIC_FILES)
    for name, urls in asked.items():
        for needed, url in zip(METRIC_FILES[name], urls, strict=True):
            assert needed.place == "hub" if url is None else url.rsplit("/", 1)[1] == needed.name
    assert METRIC_FILES["clipiqa"][0].sha256 in clip_model._MODELS["RN50"]
    assert METRIC_FILES["clipiqa+_vitL14_512"][0].sha256 in clip_model._MODELS["ViT-L/14"]
    assert inception.FID_WEIGHTS_URL.endswith(paper.INCEPTION.name)


@pytest.mark.parametrize(
    "metric", [*(PaperMetric(name=name) for name in METRIC_FILES), Fid()], ids=lambda metric: metric.id
)
def test_missing_weights_are_one_line_with_file_and_place(metric: PaperMetric | Fid, tmp_path: Path) -> None:
    needed = METRIC_FILES[metric.id][0] if metric.id in METRIC_FILES else paper.INCEPTION
    line = metric.missing()
    assert line.startswith(f"{metric.id}: ")
    assert "\n" not in line
    assert str(tmp_path) in line
    assert needed.name.split(":")[-1] in line
    with pytest.raises(MetricUnavailable, match=re.escape(metric.id)):
        metric(*pictures(64), None) if isinstance(metric, ImageMetric) else metric.features(pictures(64)[0])


def test_the_next_missing_file_is_named_when_the_first_is_there(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").write_bytes(b"x")
    expected = f"lpips: LPIPS_v0.1_alex-df73285e.pth is missing; put it into {tmp_path / 'pyiqa'}"
    assert PaperMetric(name="lpips").missing() == expected


def test_a_damaged_file_is_named_and_nothing_is_downloaded(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "RN50.pt").write_bytes(b"half a download")
    assert "RN50.pt is not the file released" in PaperMetric(name="clipiqa").missing()
    (tmp_path / "pyiqa").mkdir()
    (tmp_path / "pyiqa" / "niqe_modelparameters.mat").write_bytes(b"not a mat file")
    metric = PaperMetric(name="niqe")
    assert metric.missing() == ""
    measured = MetricSuite(metrics={"niqe": metric, "psnr": Psnr()}, protocol=Protocol())
    restored, reference = pictures(96)
    measured.update("LQ", restored, keys=["a", "b"], reference_BCHW=reference)
    results = measured.compute()
    assert [cell.metric for cell in results.cells] == ["psnr"]
    assert results.notes[0].startswith("niqe: pyiqa cannot set it up: ")


def test_without_pyiqa_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def absent(name: str, package: str | None = None) -> object:
        return None if name == "pyiqa" else find(name, package)

    monkeypatch.setattr(pyiqa.importlib.util, "find_spec", absent)
    for metric in (PyiqaMetric(name="gmsd"), PaperMetric(name="lpips"), Fid()):
        assert (
            metric.missing()
            == f"{metric.id}: pyiqa is not installed; install the extra: pip install 'restore-lab[iqa]'"
        )


def test_clean_resize_equals_pyiqas(tmp_path: Path) -> None:
    from PIL import Image
    from pyiqa.archs.fid_arch import ResizeDataset

    image = (pictures(64)[0] * 255).round() / 255
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, picture in zip(files, image, strict=True):
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(file)
    expected = torch.stack([torch.as_tensor(ResizeDataset(files, "clean")[i]) for i in range(2)])
    assert torch.equal(clean_resize(image), expected)
