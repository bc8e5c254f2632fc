"""Measure a folder of restored images from any system: `restore-lab evaluate restored=DIR reference=DIR`.

Images pair with their originals by stem; without `reference` only no-reference metrics have values. An image without
original, or an original without image, is an error, since means over different images are not comparable;
`unmatched=skip` skips such images and logs them. Nothing is resized: a pair of different sizes is an error, since the
value of PSNR would depend on the resize.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from restore_lab.config.build import build
from restore_lab.data.frames import describe_frames, take_frames
from restore_lab.data.image_io import read_image, to_tensor
from restore_lab.data.sources.captions import FolderCaptions
from restore_lab.data.sources.folder import keys_of, list_images
from restore_lab.data.sources.paired import Pair, unmatched_names
from restore_lab.evaluation.contact_sheet import keep_images
from restore_lab.evaluation.plan import Scores, plan_scores
from restore_lab.evaluation.records import ORIGINAL, RECORD, write_record
from restore_lab.storage.artefact import code_version
from restore_lab.storage.identity import plain_settings
from restore_lab.storage.locks import first_rank
from restore_lab.storage.walk import head

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

log = logging.getLogger(__name__)
FOLDER_KEYS = ("restored", "reference", "pairing", "protocol", "metrics")


def plan_folder(cfg: DictConfig) -> Scores:
    """The record of a folder; its identity covers the images, their originals, the protocol and the metrics."""
    settings = plain_settings(cfg, FOLDER_KEYS)
    for key in ("restored", "reference"):
        if settings[key] is not None:
            settings[f"{key}_folder"] = str(_folder(settings.pop(key), key))
    return plan_scores(cfg, settings)


def measure_folder(cfg: DictConfig, scores: Scores, pairs: Sequence[Pair]) -> bool:
    """Measure all images and write the record, in the first process only: one row, named after the folder.

    Returns:
        Whether this process wrote the record.

    Raises:
        ValueError: if a pair differs in size, or no image can be measured.
    """
    if not first_rank():
        return False
    suite = build(cfg.metrics, protocol=build(cfg.protocol))
    restored = _folder(cfg.restored, "restored")
    originals = None if cfg.reference is None else _folder(cfg.reference, "reference")
    for key, image_CHW, original_CHW, caption in _images(cfg, pairs, restored, originals):
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
    if frames := describe_frames(take_frames()):
        log.warning("%s", frames)
    results = suite.compute()
    if not results.images:
        raise ValueError(f"{restored}: no image was measured; {'; '.join(results.notes)}")
    write_record(
        scores.folder, results=results, settings=scores.settings, identity=scores.identity, code=code_version()
    )
    log.info("record: %s", scores.folder / RECORD)
    return True


def find_pairs(cfg: DictConfig) -> list[Pair]:
    """The restored images with their originals, as `lq` and `hq` of a pair.

    Raises:
        ValueError: if some on either side are unmatched, without `unmatched=skip`.
    """
    restored = _folder(cfg.restored, "restored")
    images = list_images(restored)
    images.report()
    if cfg.reference is None:
        return [Pair(lq=name, hq=None) for name in images.names]
    folder = _folder(cfg.reference, "reference")
    originals = list_images(folder)
    originals.report()
    pairs = [pair for pair in build(cfg.pairing)(images.names, originals.names) if pair.hq is not None]
    alone, idle = unmatched_names(pairs, images.names, originals.names, lq=restored, hq=folder)
    found = [f"{len(alone)} of {len(images.names)} restored images without an original: {head(alone)}"] * bool(alone)
    found += [f"{len(idle)} of {len(originals.names)} originals without a restored image: {head(idle)}"] * bool(idle)
    line = f"{restored} and {folder}: {'; '.join(found)}"
    if found and (cfg.unmatched == "error" or not pairs):
        raise ValueError(
            f"{line}; name them alike, say how they pair with pairing=..., or leave them out with unmatched=skip"
        )
    if found:
        log.warning("left out, %s", line)
    return pairs


def _images(
    cfg: DictConfig, pairs: Sequence[Pair], restored: Path, originals: Path | None
) -> Iterator[tuple[str, Tensor, Tensor | None, str]]:
    """Key, restored image, original, caption ("" for none)."""
    from tqdm import tqdm

    captions = FolderCaptions(originals or restored, table="auto")
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
