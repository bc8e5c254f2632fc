"""Scores a folder of restored images, whoever made them: `restore-lab evaluate restored=DIR reference=DIR`.

Images pair with their originals by stem; without `reference` only metrics that need none have values. Nothing is
resized: a pair of two sizes is an error, since every project resizes differently and calls the result PSNR.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from restore_lab.config.build import build
from restore_lab.data.captioned import Captions
from restore_lab.data.folder import keys_of, list_images
from restore_lab.data.image_io import read_image, to_tensor
from restore_lab.data.paired import Pair
from restore_lab.evaluation.picture import keep_images
from restore_lab.evaluation.records import ORIGINAL, RECORD, write_record
from restore_lab.evaluation.scores import Scores, once, scores_of, settings_of
from restore_lab.storage.artefacts import code_version
from restore_lab.storage.locks import first_rank

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.evaluation.records import Results

log = logging.getLogger(__name__)
SCORED = ("restored", "reference", "pairing", "protocol", "metrics")


def planned(cfg: DictConfig) -> Scores:
    """The record of a folder: of what its images and their originals are, the protocol and the metrics."""
    settings = settings_of(cfg, SCORED)
    for key in ("restored", "reference"):
        if settings[key] is not None:
            settings[f"{key}_folder"] = str(_folder(settings.pop(key), key))
    return scores_of(cfg, settings)


def score(cfg: DictConfig) -> tuple[Path, Results | None]:
    """Measure a folder of images; what was measured before is read again.

    Returns:
        The record's folder and what stands in it: one row, named as the folder.

    Raises:
        ValueError: if the folders do not pair, or a pair has two sizes.
    """
    scores = planned(cfg)
    return scores.folder, once(cfg, scores, lambda: _run(cfg, scores))


def _run(cfg: DictConfig, scores: Scores) -> bool:
    """Measure all, and write the record; it does not split over processes: the first does it."""
    if not first_rank():
        return False
    suite = build(cfg.metrics, protocol=build(cfg.protocol))
    restored = _folder(cfg.restored, "restored")
    originals = None if cfg.reference is None else _folder(cfg.reference, "reference")
    for key, image_CHW, original_CHW, caption in _pairs(cfg, restored, originals):
        suite.update(
            restored.name,
            image_CHW[None],
            keys=[key],
            reference_BCHW=None if original_CHW is None else original_CHW[None],
            captions=[caption] if caption else None,
        )
        if cfg.keep_images:
            originals_BCHW = {} if original_CHW is None else {ORIGINAL: original_CHW[None]}
            keep_images(scores.folder, {restored.name: image_CHW[None], **originals_BCHW}, [key])
    results = suite.compute()
    if not results.images:
        raise ValueError(f"{restored}: no image was measured; {'; '.join(results.notes)}")
    write_record(
        scores.folder, results=results, settings=scores.settings, identity=scores.identity, code=code_version()
    )
    log.info("record: %s", scores.folder / RECORD)
    return True


def _pairs(cfg: DictConfig, restored: Path, originals: Path | None) -> Iterator[tuple[str, Tensor, Tensor | None, str]]:
    """Key, restored image, original, caption ("" for none)."""
    from tqdm import tqdm

    names = list_images(restored, recursive=True)
    pairs = [Pair(lq=name, hq=None) for name in names]
    if originals is not None:
        pairs = build(cfg.pairing)(names, list_images(originals, recursive=True))
        if alone := [pair.lq for pair in pairs if pair.hq is None]:
            raise ValueError(
                f"{restored}: {len(alone)} of {len(pairs)} images have no original in {originals}, the first is "
                f"{alone[0]}; name them alike, or say how they pair with pairing=..."
            )
    captions = Captions(originals or restored, table="auto")
    keys = keys_of(pair.lq for pair in pairs)
    for key, pair in tqdm(list(zip(keys, pairs, strict=True)), desc="scoring", disable=not cfg.progress, leave=False):
        image_HWC = read_image(restored / pair.lq)
        original_HWC = None if originals is None or pair.hq is None else read_image(originals / pair.hq)
        if original_HWC is not None and original_HWC.shape != image_HWC.shape:
            sizes = " and ".join(f"{shape[1]}x{shape[0]}" for shape in (image_HWC.shape, original_HWC.shape))
            raise ValueError(f"{restored / pair.lq} and its original have {sizes} pixels; bring them to one size first")
        named = restored / pair.lq if originals is None or pair.hq is None else originals / pair.hq
        original = None if original_HWC is None else to_tensor(original_HWC)
        yield key, to_tensor(image_HWC), original, captions.of(named)


def _folder(text: str, key: str) -> Path:
    place = Path(text).expanduser()
    if not place.is_dir():
        raise ValueError(f"{key}={text}: no such folder of images")
    return place
