"""Log a record: means, a table of the values per image, and images with their prompts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from restore_lab.evaluation.records import LQ, ORIGINAL, Results, image_file, method_rows
from restore_lab.tracking import ImagePanel, log_panels

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

SCORE = "score"  # alias of the method's row, so that runs of different names share charts: score/psnr
PROMPT_COLUMNS = ("caption", "instruction", "recipe")

TableValue = str | float | None  # None for a metric without a value


@runtime_checkable
class TableLogger(Protocol):
    """A logger that supports tables, such as wandb's."""

    def log_table(
        self, key: str, columns: list[str], data: list[list[TableValue]], step: int | None = None
    ) -> None: ...


def log_record(logger: Logger, folder: str | Path, results: Results, *, pictures: int) -> None:
    """Log a record.

    Args:
        logger: a Lightning logger; table and images are logged if it supports them.
        folder: of the record, with its saved images if there are any.
        results: of the record.
        pictures: number of images to log.
    """
    logger.log_metrics(metric_means(results), step=0)
    if isinstance(logger, TableLogger):
        columns, lines = per_image(results)
        logger.log_table("per_image", columns=columns, data=lines, step=0)
    log_panels(logger, "images", read_images(folder, results, limit=pictures), step=0)


def metric_means(results: Results) -> dict[str, float]:
    """Means by `row/metric`, and by `score/metric` for the method's first row.

    The column is part of the name if a metric has several (of different size or count).
    """
    times = Counter((cell.row, cell.metric) for cell in results.cells)
    first = method_rows(results)[:1]
    found: dict[str, float] = {}
    for cell in results.cells:
        column = f" {cell.column.id}" if times[cell.row, cell.metric] > 1 else ""
        for row in (cell.row, *((SCORE,) if cell.row in first else ())):
            found[f"{row}/{cell.metric}{column}"] = cell.mean
    return found


def per_image(results: Results) -> tuple[list[str], list[list[TableValue]]]:
    """Column names, and one line per row and image: key, row, metric values (None for none), prompts and recipe."""
    metrics = list(dict.fromkeys(image.metric for image in results.images))
    found: dict[tuple[str, str], dict[str, TableValue]] = {}
    for image in results.images:
        line = found.setdefault((image.row, image.key), {name: getattr(image, name) for name in PROMPT_COLUMNS})
        line[image.metric] = image.value
    columns = ["key", "row", *metrics, *PROMPT_COLUMNS]
    lines = [[key, row, *(line.get(name) for name in columns[2:])] for (row, key), line in found.items()]
    return columns, lines


def read_images(folder: str | Path, results: Results, *, limit: int) -> list[ImagePanel]:
    """The first `limit` saved images of a record: input, the method's rows, original."""
    from PIL import Image

    own = method_rows(results)
    words = {image.key: image for image in results.images if image.row in own[:1]}
    shown: list[ImagePanel] = []
    for key, image in words.items():
        if len(shown) == limit:
            break
        files = {row: image_file(folder, row, key) for row in (LQ, *own, ORIGINAL)}
        images = {row: Image.open(file).convert("RGB") for row, file in files.items() if file.is_file()}
        if images:
            shown.append(ImagePanel(key=key, images=images, caption=image.caption, instruction=image.instruction))
    return shown
