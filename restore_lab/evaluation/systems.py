"""External systems in place of a method: `restore-lab evaluate system=PATH`.

A folder has a system's outputs for the degraded images of this evaluation, named by key (`restore-lab evaluate
inputs_dir=DIR` writes those images). A file has the weights of a pixel-space model (Real-ESRGAN, SwinIR, ...), whose
architecture spandrel infers from its keys; images are downsampled for a super-resolution model. The record has the rows
LQ and the system's; no prior is built.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.config.build import build
from restore_lab.data.frames import describe_frames, take_frames
from restore_lab.data.image_io import read_image, to_tensor
from restore_lab.data.sources.folder import list_images
from restore_lab.evaluation.contact_sheet import keep_images
from restore_lab.evaluation.degraded import degraded_batches, score_batch
from restore_lab.evaluation.parts import Parts, clear
from restore_lab.evaluation.plan import Scores, plan_scores
from restore_lab.evaluation.protocol import resize_bicubic
from restore_lab.evaluation.records import LQ, ORIGINAL
from restore_lab.storage.identity import fingerprint, plain_settings
from restore_lab.system.processes import device

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.evaluation.suite import MetricSuite
    from restore_lab.types import Batch

log = logging.getLogger(__name__)
SYSTEM_KEYS = ("eval_data", "eval_degradation", "protocol", "metrics", "max_lq_psnr", "eval_crop", "seed")
CROP_KEYS = ("eval_resize", "eval_crops", "eval_first")  # in the identity only if they are set
Restore = Callable[["Batch"], "Tensor"]


def plan_system(cfg: DictConfig) -> Scores:
    """A system's record; its identity covers the images, the protocol, the metrics, and the outputs or weights."""
    place, keys = _place(cfg.system), [*SYSTEM_KEYS, *(key for key in CROP_KEYS if cfg[key] is not None)]
    return plan_scores(cfg, {**plain_settings(cfg, keys), "system": place.name, "system_hash": _hash(place)})


def measure_system(cfg: DictConfig, scores: Scores) -> bool:
    """Measure the batches of this process; the last process assembles the record."""
    place, parts, target = _place(cfg.system), Parts(cfg, scores), device(cfg.device)
    if cfg.again:
        clear(scores.folder)
    if missing := parts.missing():
        suite: MetricSuite = build(cfg.metrics, protocol=build(cfg.protocol))
        restore = _outputs(place) if place.is_dir() else _pixel_model(place, target)
        for number, batch in degraded_batches(cfg, target, missing):
            if batch is not None:
                _measure(cfg, scores, suite, batch, restore)
            parts.write(number, suite.take(), ())
        if frames := describe_frames(take_frames()):
            log.warning("%s", frames)
    return parts.close()


def _measure(cfg: DictConfig, scores: Scores, suite: MetricSuite, batch: Batch, restore: Restore) -> None:
    if batch.lq_BCHW is None:
        raise ValueError("there is nothing to restore; give eval_data with HQ images an eval_degradation")
    rows = {LQ: batch.lq_BCHW, cfg.name: restore(batch).to(batch.lq_BCHW.device)}
    for name, image_BCHW in rows.items():
        score_batch(suite, name, image_BCHW, batch)
    if cfg.keep_images:
        originals = {} if batch.hq_BCHW is None else {ORIGINAL: batch.hq_BCHW}
        keep_images(scores.folder, {**rows, **originals}, batch.key)


def find_system(folder: str | Path | None, system: str, condition: str, *, conditions: Sequence[str]) -> Path | None:
    """The outputs or weights of a system for a condition of a table; None if there are none.

    They are `<folder>/<system>/<condition>/`, else `<folder>/<system>/` if that has no folder for any other condition,
    else `<folder>/<system>.safetensors` (.pth, .pt, .ckpt).

    Raises:
        ValueError: if there is no such folder.
    """
    if folder is None:
        return None
    base = Path(folder).expanduser()
    if not base.is_dir():
        raise ValueError(
            f"systems_dir={folder}: no such folder; it holds one folder of outputs, or weights, per system"
        )
    divided = any((base / system / other).is_dir() for other in conditions)
    candidates = [base / system / condition, *([] if divided else [base / system])]
    candidates += [base / f"{system}{ending}" for ending in (".safetensors", ".pth", ".pt", ".ckpt")]
    return next((place for place in candidates if place.exists()), None)


def _place(text: str) -> Path:
    place = Path(text).expanduser()
    if not place.exists():
        raise ValueError(f"system={text}: neither a folder of outputs nor a file of weights")
    return place


def _hash(place: Path) -> str:
    """The hash of a file's bytes, or of the names, sizes and times in a folder."""
    if place.is_file():
        return fingerprint(place)
    files = [place / name for name in list_images(place).names]
    entries = [f"{file.relative_to(place)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def _outputs(folder: Path) -> Restore:
    """A function that reads the output for each image."""
    import torch

    found = list_images(folder)
    found.report()
    stems = Counter(os.path.splitext(name)[0] for name in found.names)
    files = {name: name for name in found.names}  # outputs named exactly as the inputs
    files |= {os.path.splitext(name)[0]: name for name in found.names if stems[os.path.splitext(name)[0]] == 1}

    def restore(batch: Batch) -> Tensor:
        if absent := [key for key in batch.key if key not in files]:
            raise ValueError(
                f"{folder}: no output for image {absent[0]!r}; inputs_dir=DIR writes the images that are restored here"
            )
        images = [to_tensor(read_image(folder / files[key])) for key in batch.key]
        assert batch.lq_BCHW is not None
        for key, image_CHW in zip(batch.key, images, strict=True):
            if image_CHW.shape != batch.lq_BCHW.shape[1:]:
                got, own = (f"{shape[-1]}x{shape[-2]}" for shape in (image_CHW.shape, batch.lq_BCHW.shape))
                raise ValueError(f"{folder / files[key]} has {got} pixels, its original {own}; bring it to that size")
        return torch.stack(images)

    return restore


def _pixel_model(file: Path, device: Any) -> Restore:
    """A network by spandrel; weights are loaded with `weights_only` from any file."""
    import torch

    try:
        import spandrel
    except ImportError as error:
        raise ValueError(
            f"system={file}: spandrel is not installed; install the extra: pip install 'restore-lab[systems]'"
        ) from error
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
    try:
        model: Any = spandrel.ModelLoader(device=device).load_from_state_dict(state)
    except spandrel.UnsupportedModelError as error:
        raise ValueError(f"system={file}: spandrel knows no architecture with these weights") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.input_channels != 3:
        raise ValueError(f"system={file}: {model.architecture.name} does not make an RGB image of one RGB image")
    model.eval()

    @torch.inference_mode()
    def restore(batch: Batch) -> Tensor:
        lq_BCHW = batch.lq_BCHW
        assert lq_BCHW is not None
        height, width = lq_BCHW.shape[-2:]
        smaller = resize_bicubic(lq_BCHW, height=round(height / model.scale), width=round(width / model.scale))
        return resize_bicubic(model(smaller), height=height, width=width).clamp(0.0, 1.0)

    return restore
