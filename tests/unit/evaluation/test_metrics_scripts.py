"""Metrics named after a script equal it: pyiqa's, BasicSR's, scikit-image's and torchmetrics' numbers.

Images are 8-bit as saved files are, a dozen of them: noise against a picture, negatives (whose structure is negative),
greys, flat colours, odd sizes, saturated corners.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from restore_lab.config.build import build
from restore_lab.evaluation.metrics.fidelity import MsSsim, Psnr, Ssim
from restore_lab.evaluation.metrics.frechet import frechet_distance
from restore_lab.evaluation.metrics.pyiqa import WEIGHTLESS, PyiqaMetric
from restore_lab.evaluation.protocol import ImageMetric, Protocol
from restore_lab.evaluation.suite import MetricSuite
from tests.helpers.checkout import CONF

pyiqa = pytest.importorskip("pyiqa")
# What each script gives pyiqa for psnr and ssim: OSEDiff test_metrics.py, InvSR cal_metrics, FaithDiff test_metrics.py.
YCBCR = {"test_y_channel": True, "color_space": "ycbcr"}
SCRIPTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "osediff": {"psnr": YCBCR, "ssim": YCBCR},
    "invsr": {"psnr": YCBCR, "ssim": YCBCR},
    "faithdiff": {"psnr": {}, "ssim": {}},  # pyiqa's defaults: RGB, and the Y of YIQ
}
# What else they print, by the name that pyiqa has for it.
OTHERS = {
    "osediff": ("lpips", "dists", "niqe", "musiq", "maniqa-pipal", "clipiqa"),
    "invsr": ("lpips", "lpips-vgg", "niqe", "musiq", "maniqa", "clipiqa"),
    "faithdiff": ("lpips", "dists", "niqe", "musiq", "maniqa-pipal", "clipiqa+_vitL14_512"),
}


def dozen() -> list[tuple[Tensor, Tensor]]:
    """(restored, reference) of 12 images 1x3xHxW in [0, 1], in whole levels of 255."""
    draw = torch.Generator().manual_seed(0)

    def smooth(height: int, width: int) -> Tensor:
        coarse = torch.rand(1, 3, 5, 6, generator=draw)
        return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)

    def noisy(image: Tensor, sigma: float) -> Tensor:
        return image + sigma * torch.randn(image.shape, generator=draw)

    textured = [noisy(smooth(*size), 0.15) for size in ((48, 48), (37, 53), (61, 43), (33, 64))]
    pairs = [(noisy(image, sigma), image) for image, sigma in zip(textured, (0.02, 0.1, 0.3, 0.6), strict=True)]
    pairs += [(1 - image, image) for image in textured[:2]]  # negatives: covariance below zero everywhere
    pairs += [(torch.rand(1, 3, 35, 39, generator=draw), smooth(35, 39)), (textured[1].flip(-1), textured[1])]
    grey = textured[0].mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    pairs += [(noisy(grey, 0.1).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1), grey)]
    pairs += [(torch.full((1, 3, 40, 41), 0.4), torch.full((1, 3, 40, 41), 0.5)), (textured[2], textured[2])]
    pairs += [((noisy(textured[3], 0.4) - 0.5) * 9 + 0.5, textured[3])]  # saturated
    return [((a.clamp(0, 1) * 255).round() / 255, (b.clamp(0, 1) * 255).round() / 255) for a, b in pairs]


def through(metrics: Mapping[str, ImageMetric], protocol: Protocol) -> dict[str, list[float]]:
    """The values by metric of the dozen, as the suite measures them."""
    suite = MetricSuite(metrics=metrics, protocol=protocol)
    for number, (restored, reference) in enumerate(dozen()):
        suite.update("row", restored, keys=[str(number)], reference_BCHW=reference)
    found: dict[str, list[float]] = {}
    for image in suite.compute().images:
        found.setdefault(image.metric, []).append(image.value if image.value is not None else float("nan"))
    return found


def presets(name: str) -> tuple[Mapping[str, Any], Protocol]:
    """The metrics' settings and the protocol that `protocol=NAME` chooses."""
    preset = OmegaConf.load(CONF / "protocol" / f"{name}.yaml")
    metrics = OmegaConf.load(CONF / "metrics" / f"{name}.yaml").metrics
    return metrics, build(preset.protocol)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_protocol_prints_the_psnr_and_ssim_of_its_script(script: str) -> None:
    nodes, protocol = presets(script)
    found = through({name: build(nodes[name]) for name in SCRIPTS[script]}, protocol)
    for name, options in SCRIPTS[script].items():
        theirs = pyiqa.create_metric(name, device=torch.device("cpu"), **options)
        expected = [theirs(restored, reference).item() for restored, reference in dozen()]
        assert found[name] == pytest.approx(expected, abs=1e-5), name


def test_every_protocol_named_after_a_script_is_compared_with_it() -> None:
    """A new one needs its lines above."""
    with_metrics = {file.stem for file in (CONF / "protocol").glob("*.yaml") if "override /metrics" in file.read_text()}
    assert with_metrics == set(SCRIPTS) == set(OTHERS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_protocols_other_metrics_equal_its_scripts(script: str) -> None:
    """By pyiqa's name, whatever heads the column; the label keeps the name where they differ."""
    nodes, _ = presets(script)
    built = {name: build(node) for name, node in nodes.items() if name not in ("psnr", "ssim", "fid")}
    assert {metric.name for metric in built.values()} == set(OTHERS[script])
    assert all(metric.id == name and metric.source().startswith("pyiqa") == (metric.id == metric.name)
               for name, metric in built.items())  # fmt: skip


def test_two_implementations_are_two_metrics() -> None:
    """Their columns differ, so their numbers never stand in one; the label says whose."""
    nodes, protocol = presets("osediff")
    labels = {}
    for name, metric in {"theirs": build(nodes["ssim"]), "ours": Ssim()}.items():
        suite = MetricSuite(metrics={"ssim": metric}, protocol=protocol)
        suite.update("row", dozen()[0][0], keys=["a"], reference_BCHW=dozen()[0][1])
        labels[name] = suite.compute().cells[0].column
    assert labels["theirs"].id != labels["ours"].id
    assert labels["theirs"].text().endswith("ssim_pyiqa") and labels["theirs"].metric == "ssim"
    own, other = (through({"m": m}, protocol)["ssim"] for m in (Ssim(), build(nodes["ssim"])))
    assert max(abs(a - b) for a, b in zip(own, other, strict=True)) > 1e-3
    assert (Ssim(implementation="pyiqa").id, Psnr(implementation="pyiqa", colour="y").id) == (
        "ssim_pyiqa", "psnr_pyiqa_y",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"Ssim\.implementation=matlab: there are: basicsr, pyiqa"):
        Ssim(implementation="matlab")  # type: ignore[arg-type]


def basicsr_ssim(restored: np.ndarray, reference: np.ndarray) -> float:
    """BasicSR's calculate_ssim of one channel in 0..255, after its description: OpenCV's Gaussian of 11 and 1.5, the
    border of 5 that does not see a whole window cut off."""
    cv2 = pytest.importorskip("cv2")
    kernel = cv2.getGaussianKernel(11, 1.5)
    window = np.outer(kernel, kernel.transpose())

    def blur(image: np.ndarray) -> np.ndarray:
        return cv2.filter2D(image, -1, window)[5:-5, 5:-5]

    mean_x, mean_y = blur(restored), blur(reference)
    var_x, var_y = blur(restored**2) - mean_x**2, blur(reference**2) - mean_y**2
    cov = blur(restored * reference) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mean_x * mean_y + c1) * (2 * cov + c2)
                         / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))  # fmt: skip


@pytest.mark.parametrize("colour", ["rgb", "y"])
@pytest.mark.parametrize("border", [0, 4])
def test_the_plain_psnr_and_ssim_are_basicsrs_and_scikit_images(colour: Any, border: int) -> None:
    found = through({"psnr": Psnr(), "ssim": Ssim()}, Protocol(colour=colour, border=border))
    for number, pair in enumerate(dozen()):
        images = [image[0].permute(1, 2, 0).double().numpy() for image in pair]
        inner = [image[border : image.shape[0] - border, border : image.shape[1] - border] for image in images]
        channels = [rgb2ycbcr(image)[..., :1] if colour == "y" else image * 255 for image in inner]
        by_channel = [basicsr_ssim(*(image[..., c] for image in channels)) for c in range(channels[0].shape[-1])]
        skimage = structural_similarity(
            channels[1], channels[0], channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        assert found["ssim"][number] == pytest.approx(np.mean(by_channel), abs=1e-5)
        assert found["ssim"][number] == pytest.approx(skimage, abs=1e-5)
        if not np.array_equal(*channels):
            theirs = peak_signal_noise_ratio(channels[1], channels[0], data_range=255)
            assert found["psnr"][number] == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_pyiqas_metrics_equal_pyiqas_for_any_batch(name: str) -> None:
    """In the suite, on 8-bit files, two images at a time: the numbers of pyiqa on each image by itself."""
    pairs = dozen()[:9:3]
    theirs, metric = pyiqa.create_metric(name, device=torch.device("cpu")), PyiqaMetric(name=name)
    for restored, reference in pairs:
        both = torch.cat([restored, reference]), torch.cat([reference, reference])
        found = metric(both[0], both[1] if metric.needs_reference else None, None).tolist()
        expected = [theirs(*((one[None], other[None]) if metric.needs_reference else (one[None],))).item()
                    for one, other in zip(*both, strict=True)]  # fmt: skip
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5, nan_ok=True)


def test_ms_ssim_equals_torchmetrics() -> None:
    from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

    draw = torch.Generator().manual_seed(0)
    reference = (torch.rand(2, 3, 177, 181, generator=draw) * 255).round() / 255
    restored = ((reference + 0.2 * torch.randn(reference.shape, generator=draw)).clamp(0, 1) * 255).round() / 255
    theirs = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)
    expected = [theirs(a[None], b[None]).item() for a, b in zip(restored, reference, strict=True)]
    assert MsSsim()(restored, reference, None).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_frechet_distance_equals_pyiqas() -> None:
    from pyiqa.archs.fid_arch import frechet_distance as theirs

    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(300, 24)) @ draw.normal(size=(24, 24)), draw.normal(size=(260, 24)) + 0.3
    expected = theirs(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(float(expected), rel=1e-5)


def test_the_kernel_distance_of_unpaired_images_equals_torchmetrics() -> None:
    """torchmetrics counts each restored image against its own original too; by hand those terms are 1 of n."""
    from torchmetrics.image.kid import poly_mmd

    from restore_lab.evaluation.metrics.kernel_distance import SCALE, kernel_distance

    a, b = (torch.randn(40, 6, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))
    own = ((a * b).sum(dim=1) / 6 + 1) ** 3
    across = (a @ b.T / 6 + 1) ** 3
    theirs = poly_mmd(a, b, degree=3, gamma=None, coef=1.0).item()
    expected = theirs + 2 * (across.mean() - (across.sum() - own.sum()) / (40 * 39)).item()
    assert kernel_distance(a, b, draws=2).value == pytest.approx(SCALE * expected, rel=1e-5)
