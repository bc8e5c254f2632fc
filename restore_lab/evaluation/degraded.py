"""The degraded test images of an evaluation, for the method or another system."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from restore_lab.config.build import build
from restore_lab.storage.outputs import write_output
from restore_lab.storage.safe_names import path_inside
from restore_lab.system.processes import rank_and_world

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.evaluation.records import Results
    from restore_lab.evaluation.suite import MetricSuite
    from restore_lab.types import Batch

log = logging.getLogger(__name__)


def degraded_batches(
    cfg: DictConfig, device: torch.device | str, numbers: Sequence[int] | None = None
) -> Iterator[tuple[int, Batch | None]]:
    """Index and degraded batch of the test set, on a device, with a progress bar.

    Images whose LQ exceeds `max_lq_psnr` are excluded; a batch without any left is None.

    Args:
        cfg: of the evaluation.
        device: for the batches.
        numbers: indices of the batches; None for all.
    """
    from tqdm import tqdm

    data = build(cfg.datamodule)
    data.setup("test")
    numbers = range(data.test_count()) if numbers is None else numbers
    bar = {"desc": "evaluating", "total": len(numbers), "disable": not cfg.progress or rank_and_world()[0] > 0}
    for number, batch in tqdm(data.test_batches(numbers), leave=False, **bar):
        yield number, None if batch is None else _at_most(data.degrade(batch.to(device), stage="test"), cfg.max_lq_psnr)
    if summary := data.bad.summary():
        log.warning("%s", summary)


def score_batch(
    suite: MetricSuite, row: str, image_BCHW: Tensor, batch: Batch, *, instructions: Sequence[str] | None = None
) -> None:
    """Measure a row's restored images of a batch, against the originals if there are any."""
    suite.update(
        row,
        image_BCHW,
        keys=batch.key,
        reference_BCHW=batch.hq_BCHW,
        captions=batch.caption,
        instructions=instructions,
        recipes=batch.recipe,
    )


def compute_results(suite: MetricSuite, cfg: DictConfig) -> Results:
    """The results of a suite.

    Raises:
        ValueError: if no image was measured.
    """
    results = suite.compute()
    if not results.images:
        why = f"none has an LQ of at most max_lq_psnr={cfg.max_lq_psnr} dB"
        raise ValueError(f"no image was measured; {why if cfg.max_lq_psnr is not None else '; '.join(results.notes)}")
    return results


def write_inputs(cfg: DictConfig, folder: Path) -> int:
    """Write the degraded images as `<folder>/<key>.png`, for systems that run elsewhere.

    Returns:
        The number of images.
    """
    from restore_lab.data.image_io import encode_png, to_image

    count = 0
    for _, batch in degraded_batches(cfg, "cpu"):
        if batch is None or batch.lq_BCHW is None:
            continue
        for key, lq_CHW in zip(batch.key, batch.lq_BCHW, strict=True):
            write_output(path_inside(folder, f"{key}.png"), encode_png(to_image(lq_CHW)))
            count += 1
    return count


def _at_most(batch: Batch, limit: float | None) -> Batch | None:
    """The images whose LQ has at most this PSNR in dB (None: no limit); None if there are none."""
    if limit is None or batch.hq_BCHW is None or batch.lq_BCHW is None:
        return batch
    psnr_B = -10 * (batch.lq_BCHW - batch.hq_BCHW).square().mean(dim=(1, 2, 3)).log10()
    return batch.select([i for i, value in enumerate(psnr_B.tolist()) if value <= limit])
