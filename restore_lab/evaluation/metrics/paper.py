"""The papers' metrics by pyiqa, from local weights: LPIPS, DISTS, NIQE, MUSIQ, MANIQA, CLIP-IQA, FID.

Nothing is downloaded: `missing()` checks every file that pyiqa, torchvision or timm would fetch, and reports the first
missing one with its expected path. CLIP-I and CLIP-T of the papers are those of clip.py on another folder.
Names are pyiqa's: `maniqa` is trained on KonIQ, `maniqa-pipal` on PIPAL (0.51 and 0.62 on
the same images). FID is clean-fid's resize (float bicubic to 299) and the 2048 pooled features of TensorFlow's
Inception.
Config: metrics=paper; {_target_: restore_lab.evaluation.metrics.paper.PaperMetric, name: lpips}
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restore_lab.evaluation.metrics.frechet import frechet_distance
from restore_lab.evaluation.metrics.pyiqa import Facts, PyiqaBased, pyiqa_missing, sandbox
from restore_lab.evaluation.protocol import MetricUnavailable, SetMetric
from restore_lab.storage.identity import fingerprint

INCEPTION_SIDE = 299


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """One weight file. `place` is the library whose cache has it; for `hub` the name is "repository:file"."""

    place: Literal["pyiqa", "torchvision", "clip", "hub"]
    name: str
    sha256: str = ""

    def path(self) -> Path | None:
        """The path of the file, or None."""
        if self.place == "hub":
            from huggingface_hub import try_to_load_from_cache

            repository, _, file = self.name.partition(":")
            found = try_to_load_from_cache(repository, file)
            return Path(found) if isinstance(found, str) else None
        target = self.folder() / self.name
        return target if target.is_file() else None

    def folder(self) -> Path:
        """The folder of the file, existing or expected."""
        if self.place == "hub":
            from huggingface_hub.constants import HF_HUB_CACHE

            return Path(HF_HUB_CACHE)
        loaded = sys.modules.get("pyiqa.utils.download_util")
        if self.place == "pyiqa" and loaded is not None:  # pyiqa sets its folder at import
            return Path(loaded.DEFAULT_CACHE_DIR)
        return Path(torch.hub.get_dir()) / {"pyiqa": "pyiqa", "torchvision": "checkpoints", "clip": "clip"}[self.place]

    def gap(self) -> str:
        """The problem with the file in one line; empty for none."""
        found = self.path()
        if found is None and self.place == "hub":
            repository, _, file = self.name.partition(":")
            return f"{file} of {repository} is not in {self.folder()}; fetch it there: hf download {repository} {file}"
        if found is None:
            return f"{self.name} is missing; put it into {self.folder()}"
        if self.sha256 and _sha256(found) != self.sha256:
            return f"{found} is not the file released (its sha256 is not {self.sha256[:12]}...); replace it"
        return ""


_VGG16 = WeightFile(place="torchvision", name="vgg16-397923af.pth")
_VIT = WeightFile(place="hub", name="timm/vit_base_patch8_224.augreg2_in21k_ft_in1k:model.safetensors")
_RN50 = WeightFile(
    place="clip", name="RN50.pt", sha256="afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
)
INCEPTION = WeightFile(place="pyiqa", name="pt_inception-2015-12-05-6726825d.pth")

METRIC_FILES: Mapping[str, tuple[WeightFile, ...]] = {
    "lpips": (
        WeightFile(place="torchvision", name="alexnet-owt-7be5be79.pth"),
        WeightFile(place="pyiqa", name="LPIPS_v0.1_alex-df73285e.pth"),
    ),
    "lpips-vgg": (_VGG16, WeightFile(place="pyiqa", name="LPIPS_v0.1_vgg-a78928a0.pth")),
    "dists": (_VGG16, WeightFile(place="pyiqa", name="DISTS_weights-f5e65c96.pth")),
    "niqe": (WeightFile(place="pyiqa", name="niqe_modelparameters.mat"),),
    "musiq": (WeightFile(place="pyiqa", name="musiq_koniq_ckpt-e95806b9.pth"),),
    "maniqa": (_VIT, WeightFile(place="pyiqa", name="ckpt_koniq10k.pt")),
    "maniqa-pipal": (_VIT, WeightFile(place="pyiqa", name="MANIQA_PIPAL-ae6d356b.pth")),
    "clipiqa": (_RN50,),
    "clipiqa+_vitL14_512": (
        WeightFile(
            place="clip",
            name="ViT-L-14.pt",
            sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        ),
        WeightFile(
            place="pyiqa", name="CLIPIQA%2B_ViTL14_512-e66488f2.pth"
        ),  # pyiqa keeps the quoting of the hub's address
    ),
}
METRIC_FACTS: Mapping[str, Facts] = {
    "lpips": Facts(higher_is_better=False, needs_reference=True, min_size=32),
    "lpips-vgg": Facts(higher_is_better=False, needs_reference=True, min_size=32),
    "dists": Facts(higher_is_better=False, needs_reference=True, min_size=32),
    "niqe": Facts(higher_is_better=False, needs_reference=False, min_size=96),  # one block of 96
    "musiq": Facts(higher_is_better=True, needs_reference=False, min_size=32),
    "maniqa": Facts(higher_is_better=True, needs_reference=False, min_size=225),  # it upsamples smaller images
    "maniqa-pipal": Facts(higher_is_better=True, needs_reference=False, min_size=225),
    "clipiqa": Facts(higher_is_better=True, needs_reference=False, min_size=32),
    "clipiqa+_vitL14_512": Facts(higher_is_better=True, needs_reference=False, min_size=32),
}


class PaperMetric(PyiqaBased):
    """One of `FILES`, by pyiqa's name; `column` is the id of its column, if a project has another name for it.

    Raises:
        ValueError: for an unknown name.
    """

    def __init__(self, *, name: str, column: str | None = None) -> None:
        if name not in METRIC_FILES:
            raise ValueError(f"metric {name!r} is unknown; choose {', '.join(METRIC_FILES)}")
        super().__init__(name=name, facts=METRIC_FACTS[name], column=column)

    def missing(self) -> str:
        return pyiqa_missing(self.id) or _first_gap(self.id, METRIC_FILES[self.name])

    def source(self) -> str:
        called = "" if self.id == self.name else f"{self.name}, "
        return called + _source(METRIC_FILES[self.name])


class Fid(SetMetric):
    """FID between restored images and their references, with the weights of pyiqa's FID. Lower is better."""

    id = "fid"
    higher_is_better = False

    def __init__(self) -> None:
        self._network: torch.nn.Module | None = None

    def missing(self) -> str:
        return pyiqa_missing(self.id) or _first_gap(self.id, (INCEPTION,))

    @torch.inference_mode()
    def features(self, image_BCHW: Tensor) -> Tensor:
        network = self._inception().to(image_BCHW.device)
        pixels = clean_resize(image_BCHW).to(image_BCHW.device)
        return network((pixels - 128.0) / 128.0)[0].flatten(1).double().cpu()

    def distance(self, restored_ND: Tensor, reference_ND: Tensor) -> float:
        return frechet_distance(restored_ND, reference_ND)

    def _inception(self) -> torch.nn.Module:
        if self._network is None:
            gap = self.missing()
            if gap:
                raise MetricUnavailable(gap)
            try:
                with sandbox():
                    from pyiqa.archs.inception import InceptionV3

                    self._network = InceptionV3(output_blocks=[3]).eval()
            except Exception as error:  # readers of damaged files raise errors of any type
                raise MetricUnavailable(f"fid: {INCEPTION.path()} cannot be read: {str(error)[:200]}") from error
            self.weights = _source((INCEPTION,))
        return self._network


def clean_resize(image_BCHW: Tensor) -> Tensor:
    """clean-fid's resize: 8-bit values, each channel as a float image, Pillow's bicubic to 299, clipped to 0..255."""
    eight_bit = (image_BCHW.clamp(0.0, 1.0) * 255.0).round().cpu().numpy()
    side = (INCEPTION_SIDE, INCEPTION_SIDE)
    resized = [
        [
            np.asarray(Image.fromarray(channel.astype(np.float32)).resize(side, Image.Resampling.BICUBIC))
            for channel in image
        ]
        for image in eight_bit
    ]
    return torch.from_numpy(np.stack([np.stack(image) for image in resized]).clip(0.0, 255.0))


def _first_gap(metric: str, files: tuple[WeightFile, ...]) -> str:
    gap = next((gap for gap in (file.gap() for file in files) if gap), "")
    return f"{metric}: {gap}" if gap else ""


def _source(files: tuple[WeightFile, ...]) -> str:
    found = [path for path in (file.path() for file in files) if path is not None]
    hashes = ", ".join(f"{path.name}:{fingerprint(path)[:12]}" for path in found)
    return f"pyiqa {version('pyiqa')}, {hashes}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
