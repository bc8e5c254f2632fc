"""PSNR, SSIM, MS-SSIM and the Frechet distance against other implementations; the suite's bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from omegaconf import OmegaConf
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from restore_lab.config.build import build
from restore_lab.evaluation.metrics.fidelity import MsSsim, Psnr, Ssim, psnr, ssim
from restore_lab.evaluation.metrics.frechet import frechet_distance
from restore_lab.evaluation.metrics.noise_level import NoiseLevel, TotalVariation
from restore_lab.evaluation.protocol import ImageMetric, MetricUnavailable, Protocol, SetMetric
from restore_lab.evaluation.suite import MetricSuite
from restore_lab.types import Recipe
from tests.helpers.checkout import CONF


def pair(count: int = 2, height: int = 40, width: int = 56) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    reference = torch.rand(count, 3, height, width, generator=draw)
    return (reference + 0.1 * torch.randn(reference.shape, generator=draw)).clamp(0, 1), reference


def suite(protocol: Protocol | None = None, **metrics: ImageMetric | SetMetric) -> MetricSuite:
    return MetricSuite(metrics=metrics, protocol=protocol or Protocol())


def test_psnr_equals_its_closed_form_and_skimage() -> None:
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert psnr(flat + 0.1, flat).item() == pytest.approx(20.0, abs=1e-4)
    restored, reference = pair()
    for i, value in enumerate(psnr(restored, reference).tolist()):
        assert value == pytest.approx(
            peak_signal_noise_ratio(reference[i].numpy(), restored[i].numpy(), data_range=1.0)
        )
    assert psnr(flat, flat, ceiling=90.0).item() == 90.0


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_skimage(channels: int) -> None:
    restored, reference = (image[:, :channels] for image in pair())
    for i, value in enumerate(ssim(restored, reference).tolist()):
        other = structural_similarity(
            reference[i].double().numpy(),
            restored[i].double().numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert value == pytest.approx(other, abs=1e-9)
    assert ssim(reference, reference).tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="window of 11 does not fit into a 10x10"):
        ssim(reference[..., :10, :10], reference[..., :10, :10])


@pytest.mark.parametrize(("first", "second", "width"), [(40, 50, 6), (5, 4, 16), (40, 8, 16)])
def test_frechet_equals_the_matrix_square_root(first: int, second: int, width: int) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(first, width)) @ rng.normal(size=(width, width))
    b = rng.normal(size=(second, width)) + 0.5
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # through a symmetric square root, which exists for singular covariances too
    root = scipy.linalg.sqrtm(cov_a + 1e-12 * np.eye(width)).real
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_gaussians_equals_its_closed_form() -> None:
    draw = torch.Generator().manual_seed(0)
    unit = torch.randn(20000, 3, generator=draw, dtype=torch.float64)
    unit = (unit - unit.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(unit.T))).T  # exactly N(0, I)
    scale, shift = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, -2.0])
    # |shift|^2 + sum (1 - scale)^2
    assert frechet_distance(unit, unit * scale + shift) == pytest.approx(5.0 + 0 + 1 + 4, rel=1e-9)
    assert frechet_distance(unit, unit) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="at least 2 images"):
        frechet_distance(unit[:1], unit)


def test_ms_ssim_needs_176_pixels() -> None:
    metric = MsSsim()
    assert metric.min_size == 176
    restored, reference = pair(2, 176, 180)
    values = metric(restored, reference, None)
    assert values.shape == (2,)
    assert torch.all((values > 0.5) & (values < 1))
    assert metric(reference, reference, None).tolist() == pytest.approx([1.0, 1.0])
    measured = suite(ms=metric, psnr=Psnr())
    measured.update("LQ", restored[..., :175, :], keys=["a", "b"], reference_BCHW=reference[..., :175, :])
    results = measured.compute()
    assert [cell.metric for cell in results.cells] == ["psnr"]
    assert results.notes == ("ms_ssim: needs 176 pixels a side; 180x175 images get no value",)


def test_the_suite_measures_by_the_protocol() -> None:
    restored, reference = pair()
    measured = suite(Protocol(colour="y", border=4), psnr=Psnr(), rgb=Psnr(colour="rgb"), ssim=Ssim())
    measured.update("LQ", restored, keys=["a", "b"], reference_BCHW=reference)
    cells = {cell.metric: cell for cell in measured.compute().cells}
    first, second = ((image * 255).round() / 255 for image in (restored, reference))
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
    y = [(image * weights).sum(1)[:, 4:-4, 4:-4].numpy() for image in (first, second)]
    by_hand = [peak_signal_noise_ratio(y[1][i], y[0][i], data_range=1.0) for i in range(2)]
    assert cells["psnr"].mean == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert cells["psnr"].std == pytest.approx(np.std(by_hand, ddof=1), abs=1e-4)
    assert (cells["psnr"].column.colour, cells["psnr_rgb"].column.colour) == ("y", "rgb")
    assert cells["psnr"].column.border == 4
    assert cells["psnr"].column.size == "56x40"
    assert cells["psnr"].mean - cells["psnr_rgb"].mean > 1  # luma averages independent noise away


def test_suite_does_not_depend_on_batches() -> None:
    restored, reference = pair(4)
    whole, parts = suite(p=Psnr(), s=Ssim(), f=Means()), suite(p=Psnr(), s=Ssim(), f=Means())
    whole.update("LQ", restored, keys=list("abcd"), reference_BCHW=reference)
    for i, key in enumerate("abcd"):
        parts.update("LQ", restored[i : i + 1], keys=[key], reference_BCHW=reference[i : i + 1])
    for one, other in zip(whole.compute().cells, parts.compute().cells, strict=True):
        assert one.mean == pytest.approx(other.mean, rel=1e-6)
        assert one.column == other.column


class Means(SetMetric):
    """Features that are an image's channel means."""

    id = "means"
    higher_is_better = False

    def features(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.mean(dim=(2, 3)).double()

    def distance(self, restored_ND: Tensor, reference_ND: Tensor) -> float:
        return frechet_distance(restored_ND, reference_ND)


class Absent(Psnr):
    def missing(self) -> str:
        return "absent: weights.pth is missing; put it into /somewhere"


class Breaks(ImageMetric):
    id = "breaks"
    needs_reference = False

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        raise MetricUnavailable("breaks: its weights cannot be read")


class Spoken(ImageMetric):
    """Not-a-number for images without a caption."""

    id = "spoken"
    needs_reference = False
    needs_caption = True

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        return torch.tensor([float(len(caption)) if caption else float("nan") for caption in captions or ()])


def test_an_unavailable_metric_is_named_once_and_the_rest_run(caplog: pytest.LogCaptureFixture) -> None:
    restored, reference = pair(2)
    absent = Absent()
    absent.id = "absent"
    measured = suite(a=absent, b=Breaks(), s=Spoken(), p=Psnr(), f=Means())
    assert measured.metrics == ("breaks", "spoken", "psnr", "means")
    measured.update("LQ", restored, keys=["a", "b"], reference_BCHW=reference, captions=["", "a cat"])
    measured.update("m", restored[:1], keys=["a"], reference_BCHW=reference[:1], captions=["x"])
    results = measured.compute()
    assert results.notes == (
        "absent: weights.pth is missing; put it into /somewhere",
        "breaks: its weights cannot be read",
        "spoken: 1 of 2 images of LQ have no value and do not count",
        "means: m has 1 image; a distance of sets needs at least 2",
    )
    assert [record.getMessage() for record in caplog.records] == list(results.notes)
    cells = {(cell.row, cell.metric): cell for cell in results.cells}
    assert set(cells) == {("LQ", "spoken"), ("LQ", "psnr"), ("LQ", "means"), ("m", "spoken"), ("m", "psnr")}
    assert (cells["LQ", "spoken"].mean, cells["LQ", "spoken"].n, cells["LQ", "spoken"].std) == (5.0, 1, None)
    assert {image.value for image in results.images if image.metric == "spoken"} == {None, 5.0, 1.0}


def test_images_without_reference_get_only_what_needs_none() -> None:
    measured = suite(p=Psnr(), f=Means(), s=Spoken())
    measured.update("m", pair()[0], keys=["a", "b"], captions=["one", "three"])
    results = measured.compute()
    assert [(cell.metric, cell.mean) for cell in results.cells] == [("spoken", 4.0)]
    assert results.notes[0] == "psnr: needs a reference; images without one get no value"


def test_per_image_values_carry_the_words_and_the_recipe() -> None:
    restored, reference = pair(1)
    recipe = Recipe(pipeline="sr4", seed=3)
    measured = suite(p=Psnr())
    measured.update(
        "m",
        restored,
        keys=["a"],
        reference_BCHW=reference,
        captions=["a cat"],
        instructions=["Deblur"],
        recipes=[recipe],
    )
    image = measured.compute().images[0]
    assert (image.caption, image.instruction, Recipe.from_json(image.recipe)) == ("a cat", "Deblur", recipe)


def test_mistakes_in_a_suite_are_named() -> None:
    restored, reference = pair()
    measured = suite(p=Psnr())
    measured.update("LQ", restored, keys=["a", "b"], reference_BCHW=reference)
    with pytest.raises(ValueError, match="row 'LQ' has image 'b' already"):
        measured.update("LQ", restored, keys=["b", "c"], reference_BCHW=reference)
    with pytest.raises(ValueError, match="1 entries for 2 images"):
        measured.update("m", restored, keys=["a"], reference_BCHW=reference)
    with pytest.raises(ValueError, match="differ in shape"):
        measured.update("m", restored, keys=["a", "b"], reference_BCHW=reference[..., :-1])
    with pytest.raises(ValueError, match="two metrics are called 'psnr'"):
        suite(a=Psnr(), b=Psnr())


@pytest.mark.parametrize("protocol", sorted((CONF / "protocol").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("metrics", sorted((CONF / "metrics").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_builds_under_every_protocol(metrics: Path, protocol: Path) -> None:
    """One that lacks its weights is dropped with a note; every other runs. The names in the yaml are the ids."""
    config = OmegaConf.load(metrics)
    built = build(config, protocol=build(OmegaConf.load(protocol)))
    dropped = {note.split(":")[0] for note in built.notes}
    assert set(built.metrics) | dropped == set(config.metrics)
    assert set(built.metrics).isdisjoint(dropped)
    assert {"psnr", "ssim"} <= set(built.metrics)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_noise_level_is_the_sigma_of_white_noise_and_blind_to_ramps(sigma) -> None:
    ramp = torch.linspace(0.3, 0.6, 200).expand(1, 3, 200, 200)
    noise = sigma * torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    assert NoiseLevel()(ramp, None, None).item() == pytest.approx(0.0, abs=1e-6)
    assert NoiseLevel()(ramp + noise, None, None).item() == pytest.approx(sigma, rel=0.03)


def test_total_variation_closed_forms() -> None:
    x, y = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="xy")
    ramp = (0.03 * x + 0.05 * y).expand(2, 3, 6, 8)
    assert TotalVariation()(ramp, None, None).tolist() == pytest.approx([0.08, 0.08], rel=1e-5)
    stripes = (x % 2).expand(1, 3, 6, 8)
    assert TotalVariation()(stripes, None, None).item() == pytest.approx(1.0)
