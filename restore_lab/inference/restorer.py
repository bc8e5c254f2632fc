"""Restores photographs from Python, as `restore-lab restore` does.

    from restore_lab import Restorer
    Restorer.load("runs/mine/adaptor-<id>")("photo.jpg", instruction="Denoise with sigma 0.06").save("out.png")

The noise of an image depends on the seed and its pixels, so the result is the same for a single image, in a list, in a
folder, and for any number of processes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from restore_lab.config.build import build
from restore_lab.config.compose import compose_config, merge_and_log
from restore_lab.config.grammar import quote
from restore_lab.data.image_io import MAX_PIXELS, BadImage
from restore_lab.data.photograph import Photograph, photograph_of, read_photograph
from restore_lab.degradation.instruction import parse_instruction
from restore_lab.inference.result import Restoration
from restore_lab.random import mix
from restore_lab.system.processes import device
from restore_lab.types import Batch

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from PIL import Image
    from torch import Tensor

    from restore_lab.methods.module import RestorationModule

    ImageInput = str | Path | Image.Image | np.ndarray | Tensor | Photograph
_MAX_CHARACTERS = 20_000  # of a caption or an instruction; text encoders read 77 to 512 tokens


class Restorer:
    """A method with its weights, which are loaded with the first image."""

    def __init__(self, cfg: DictConfig) -> None:
        """A restorer from the composed config of `restore-lab restore`; see `Restorer.load`."""
        self.cfg = cfg
        self._module: RestorationModule | None = None

    @classmethod
    def load(
        cls, weights: str | Path | None = None, *, overrides: Sequence[str] = (), device: str = "auto"
    ) -> Restorer:
        """A restorer from weights, with the parts they were trained with.

        Args:
            weights: a run's folder, a safetensors file, or None for the shipped weights of the method.
            overrides: as on the command line: "method=supir", "sampler.steps=20", "sampler.fidelity.tau_r=0.5".
            device: auto, cpu, cuda, cuda:1 or mps.

        Raises:
            ValueError: for an unknown setting, or parts that cannot be combined.

        >>> restorer = Restorer.load(overrides=["method=spire", "sampler.steps=2"], device="cpu")
        >>> restorer.cfg.sampler.steps
        2
        """
        words = [*overrides, f"device={device}"]
        if weights is not None:
            words.append(f"weights={quote(str(weights))}")
        return cls(compose_config("restore", [*merge_and_log(words), "progress=false"]))

    @property
    def module(self) -> RestorationModule:
        """The method, on its device."""
        if self._module is None:
            self._module = load_method(self.cfg)
        return self._module

    @overload
    def __call__(
        self,
        image: list[ImageInput],
        *,
        caption: str | None = None,
        instruction: str | None = None,
        upscale: float | None = None,
        size: int | tuple[int, int] | None = None,
        seed: int | None = None,
        seeds: int | None = None,
    ) -> list[Restoration]: ...

    @overload
    def __call__(
        self,
        image: ImageInput,
        *,
        caption: str | None = None,
        instruction: str | None = None,
        upscale: float | None = None,
        size: int | tuple[int, int] | None = None,
        seed: int | None = None,
        seeds: int | None = None,
    ) -> Restoration: ...

    def __call__(
        self,
        image: ImageInput | list[ImageInput],
        *,
        caption: str | None = None,
        instruction: str | None = None,
        upscale: float | None = None,
        size: int | tuple[int, int] | None = None,
        seed: int | None = None,
        seeds: int | None = None,
    ) -> Restoration | list[Restoration]:
        """Restore one image, or each of a list. An argument that is None is read from the restorer's config.

        Args:
            image: a file, a PIL image, an array (HW, HW1, HW3, HW4: uint8, uint16, or floats in [0, 1]) or a tensor
                (CHW, floats in [0, 1]).
            caption: what the image shows.
            instruction: the degradations to remove, "Denoise with sigma 0.06; Deblur".
            upscale: a factor by which the image is enlarged first.
            size: or the size to which it is resized first: the shorter side, or (width, height), in pixels.
            seed: the noise seed.
            seeds: number of restored images, from the seeds `seed`, `seed + 1`, ...

        Returns:
            A `Restoration`, or a list of them.

        Raises:
            BadImage: if the file cannot be read, or the image is too large.
            ValueError: for any other invalid argument.

        >>> import numpy as np
        >>> restorer = Restorer.load(overrides=["method=spire", "sampler.steps=2"], device="cpu")
        >>> restored = restorer(np.zeros((20, 30, 3), np.uint8), instruction="Denoise with sigma 0.06", seeds=2)
        >>> restored.array.shape, len(restored), restored.uncertainty().shape
        ((20, 30, 3), 2, (20, 30))
        """
        if isinstance(image, list):
            options: dict[str, Any] = {"caption": caption, "instruction": instruction, "upscale": upscale, "size": size}
            return [self(entry, seed=seed, seeds=seeds, **options) for entry in image]
        start = time.monotonic()
        lq = self.prepare(image, upscale=upscale, size=size)
        first, count = self.cfg.seed if seed is None else seed, self.cfg.seeds if seeds is None else seeds
        if count < 1:
            raise ValueError(f"seeds={count}: at least one is needed")
        all_seeds = tuple(first + number for number in range(count))
        images, recipe = [], None
        for one in all_seeds:  # one batch at a time, to save memory with large images
            batch = self.batch(lq, caption=caption, instruction=instruction, seed=one)
            recipe = batch.recipe[0]
            images.append(self.module.restore(batch.to(self.module.run_device)).float().cpu())
            del batch
        import torch

        return Restoration(
            lq=lq,
            images_NCHW=images[0] if count == 1 else torch.cat(images),
            seeds=all_seeds,
            recipe=recipe,
            seconds=time.monotonic() - start,
        )

    def prepare(
        self, image: ImageInput, *, upscale: float | None = None, size: int | tuple[int, int] | None = None
    ) -> Photograph:
        """The image as a photograph, resized by `upscale` or `size`.

        Raises:
            BadImage: if it cannot be read, or is too large.
        """
        photograph = _photograph(image)
        height, width = output_size(
            photograph.rgb_HWC.shape[:2],
            self.cfg.upscale if upscale is None else upscale,
            self.cfg.size if size is None else size,
        )
        if height * width > self.cfg.max_pixels:
            raise BadImage(
                f"{_name(image)}: {width}x{height} pixels are more than max_pixels={self.cfg.max_pixels}; "
                "shrink the image, or raise max_pixels if the memory is there"
            )
        return photograph.resize(height, width)

    def batch(
        self, lq: Photograph, *, caption: str | None, instruction: str | None, seed: int, key: str = "image"
    ) -> Batch:
        """The batch of one image, on the CPU.

        Raises:
            ValueError: for a text that is too long, or an instruction with an invalid number.
        """
        import torch

        semantic: str = (self.cfg.caption or "") if caption is None else caption
        restoration: str | None = self.cfg.instruction if instruction is None else instruction
        height, width = lq.rgb_HWC.shape[:2]
        for name, text in (("caption", semantic), ("instruction", restoration or "")):
            if len(text) > _MAX_CHARACTERS:
                raise ValueError(f"{name} of {len(text)} characters; no encoder reads more than a few hundred words")
        return Batch(
            hq_BCHW=None,
            lq_BCHW=torch.stack([torch.from_numpy(channel_HW) for channel_HW in lq.planes()])[None],
            caption=(semantic,),
            key=(key,),
            seed=(mix(seed, "restore", hashlib.sha256(np.ascontiguousarray(lq.rgb_HWC).data).hexdigest()),),
            recipe=(None if restoration is None else parse_instruction(restoration, height=height, width=width),),
        )


def load_method(cfg: DictConfig) -> RestorationModule:
    """The method of a composed config with its weights, on its device, for restoring.

    Raises:
        ValueError: for weights that do not exist or do not fit, before the prior is loaded.
    """
    from omegaconf import OmegaConf

    from restore_lab.methods.meta import check_module
    from restore_lab.methods.weights import weights_file

    if cfg.weights is not None:
        check_module({"module": OmegaConf.to_container(cfg.module, resolve=True), "weights": cfg.weights})
    module: RestorationModule = build(cfg.module)
    if cfg.weights is not None:
        module.load_weights(weights_file(cfg.weights))
    return build(cfg.memory).apply(build(cfg.speed).apply(module.eval()), device(cfg.device))


def _photograph(image: Any) -> Photograph:
    """The photograph of any image input, without importing torch for inputs that are not tensors."""
    if isinstance(image, Photograph):
        return image
    if isinstance(image, str | Path):
        return read_photograph(Path(image).expanduser(), max_pixels=MAX_PIXELS)
    if type(image).__module__.partition(".")[0] == "torch":
        if image.ndim != 3 or len(image) not in (1, 3, 4):
            raise ValueError(f"a tensor of shape {tuple(image.shape)}; expected CHW with 1, 3 or 4 channels")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    return photograph_of(image)


def output_size(shape: Sequence[int], upscale: float, size: int | Sequence[int] | None) -> tuple[int, int]:
    """The (height, width) at which an image is restored.

    Args:
        shape: (height, width) of the image.
        upscale: a factor; 1 with a `size`.
        size: the shorter side, or (width, height), in pixels; None for `upscale`.

    Raises:
        ValueError: for an invalid size or factor.
    """
    height, width = shape
    if size is None:
        if not upscale > 0:
            raise ValueError(f"upscale={upscale}: a factor above 0 is needed")
        return max(1, round(height * upscale)), max(1, round(width * upscale))
    if upscale != 1:
        raise ValueError(f"upscale={upscale} and size={size}: give one of them")
    if not isinstance(size, int):
        pair = [int(side) for side in size]
        if len(pair) != 2 or min(pair) < 1:
            raise ValueError(f"size={list(size)}: expected the shorter side, or [width, height], in pixels")
        return pair[1], pair[0]
    if size < 1:
        raise ValueError(f"size={size}: expected the shorter side, or [width, height], in pixels")
    factor = size / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _name(image: ImageInput) -> str:
    """The name of an image in error messages."""
    return str(image) if isinstance(image, str | Path) else "the image"
