"""The image browser's data: a selection of each condition's images, with every row's output and metric values.

An image is (seed, key). The selection holds each row's worst images by each metric and evenly spaced others, up to a
limit. Each file is embedded once, even if rows share it, and only if it is a valid image, since records may come from
others. Rows normally share one LQ; where they do not, the page has one LQ row for each.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from restore_lab.data.image_io import MAX_PIXELS, open_image
from restore_lab.evaluation.protocol import ColumnLabel
from restore_lab.evaluation.records import DECODED_HQ, DECODED_LQ, LQ, ORIGINAL, ROBUST_LQ, image_file
from restore_lab.storage.foreign import bytes_of
from restore_lab.tables.page.sources import Block, RecordRow
from restore_lab.types import Recipe

Image = tuple[int, str]  # seed and key
MAX_FILE = 64 * 2**20  # bytes
REFERENCE_IMAGES = (ORIGINAL, LQ, DECODED_LQ, ROBUST_LQ, DECODED_HQ)


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image file in a record; links out of the record's folder are refused."""

    file: Path
    record: Path

    def content(self) -> bytes:
        """The file's bytes, one complete WebP image.

        Raises:
            ValueError: if it lies outside the record, or is anything else.
        """
        data = bytes_of(self.file, limit=MAX_FILE, within=self.record)
        whole = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 == len(data)
        with open_image(io.BytesIO(data), name=self.file, size=len(data), max_pixels=MAX_PIXELS) as image:
            if not whole or image.format != "WEBP" or getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"{self.file}: not a WebP image of one frame")
        return data


@dataclass(frozen=True, kw_only=True)
class View:
    """A row's output for an image: its file if stored, its values by metric, its prompt."""

    file: ImageFile | None
    values: Mapping[str, float]
    caption: str = ""
    instruction: str = ""
    recipe: str = ""


@dataclass(kw_only=True)
class Pictures:
    """Files as data: URIs without duplicates; `add` returns the index in `uris`, or None for an invalid file.

    `refusals` lists the invalid files with the reason.
    """

    uris: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)

    def add(self, file: ImageFile) -> int | None:
        try:
            content = file.content()
        except ValueError as error:
            self.refusals.append(f"not shown: {error}")
            return None
        name = hashlib.sha256(content).hexdigest()
        if name not in self.places:
            self.places[name] = len(self.uris)
            self.uris.append(f"data:image/webp;base64,{base64.b64encode(content).decode()}")
        return self.places[name]


class BrowserMetric(TypedDict):
    """A metric, and whether more of it is better."""

    name: str
    more: bool


class BrowserRow(TypedDict):
    """A row, and whether it is a method's or a reference."""

    title: str
    method: bool


class BrowserView(TypedDict):
    """A row's output for an image: its index in `Pictures`, and its values in the order of the metrics."""

    picture: int | None
    values: list[float | None]
    instruction: str


class BrowserImage(TypedDict):
    """An image with one view per row."""

    name: str
    caption: str
    recipe: str
    views: list[BrowserView | None]


class BrowserBlock(TypedDict):
    """A condition as the page's script reads it; `total` counts all its images, shown or not."""

    title: str
    metrics: list[BrowserMetric]
    rows: list[BrowserRow]
    total: int
    notes: list[str]
    images: list[BrowserImage]


def browser(block: Block, pictures: Pictures, *, limit: int, worst: int) -> BrowserBlock:
    """A condition as the page's script reads it.

    Args:
        block: the condition's rows.
        pictures: collects the images.
        limit: maximum number of images; the worst ones may exceed it.
        worst: number of each row's worst images by each metric that are always included.
    """
    rows, notes = _rows(block)
    measured = {metric for row in rows.values() for view in row.values() for metric in view.values}
    metrics = {name: more for name, more in block.metrics.items() if name in measured}  # without set metrics
    kept = {image for row in rows.values() for image, view in row.items() if view.file}
    images = [image for image in dict.fromkeys(i for row in rows.values() for i in row) if image in kept]
    methods = [row for title, row in rows.items() if title in block.rows]
    always = {
        image
        for row in methods
        for metric, more in metrics.items()
        for image in worst_of(row, metric, more=more, images=images)[:worst]
    }
    several = len({seed for seed, _ in images}) > 1
    return {
        "title": block.title,
        "metrics": [{"name": name, "more": more} for name, more in metrics.items()],
        "rows": [{"title": title, "method": title in block.rows} for title in rows],
        "total": len(images),
        "notes": notes,
        "images": [
            {
                "name": f"{key}, seed {seed}" if several else key,
                "caption": _first(row[seed, key].caption for row in rows.values() if (seed, key) in row),
                "recipe": _says(_first(row[seed, key].recipe for row in rows.values() if (seed, key) in row)),
                "views": [_view(row.get((seed, key)), metrics, pictures) for row in rows.values()],
            }
            for seed, key in choose(images, always, limit)
        ],
    }


def worst_of(row: Mapping[Image, View], metric: str, *, more: bool, images: Sequence[Image]) -> list[Image]:
    """The images for which the row has a value, worst first: the lowest first where `more` is better."""
    measured = [image for image in images if image in row and metric in row[image].values]
    return sorted(measured, key=lambda image: row[image].values[metric] * (1 if more else -1))


def choose(images: Sequence[Image], always: set[Image], limit: int) -> list[Image]:
    """The images in `always` and evenly spaced others up to the limit, in order."""
    others = [image for image in images if image not in always]
    room = min(max(limit - len(always), 0), len(others))
    picked = always | {others[i * len(others) // room] for i in range(room)}
    return [image for image in images if image in picked]


def _rows(block: Block) -> tuple[dict[str, dict[Image, View]], list[str]]:
    """Every row's views, references first, and notes on values of another protocol."""
    found: dict[str, dict[Image, View]] = {}
    methods: dict[str, dict[Image, View]] = {}
    labels: dict[str, ColumnLabel] = {}
    notes: list[str] = []
    for title, runs in block.rows.items():
        methods[title] = {}
        for seed, run in runs.items():
            metrics, odd = _comparable(run, block.metrics, labels)
            notes += [f"{title}, {line}" for line in odd]
            methods[title] |= _views(run, seed, metrics)
            for reference in REFERENCE_IMAGES:
                _merge(found, reference, title, _views(replace(run, row=reference), seed, metrics))
    return {**found, **methods}, list(dict.fromkeys(notes))


def _comparable(
    run: RecordRow, metrics: Mapping[str, bool], labels: dict[str, ColumnLabel]
) -> tuple[list[str], list[str]]:
    """The metrics that a run measured like the runs before it, and how the others differ.

    The number and the sizes of the images do not matter, since each value is of one image.
    """
    same, odd = [], []
    for cell in run.record.results.cells:
        if cell.row == run.row and cell.metric in metrics:
            first = labels.setdefault(cell.metric, cell.column)
            if replace(first, count=0, size="") == replace(cell.column, count=0, size=""):
                same.append(cell.metric)
            else:
                odd.append(f"{cell.metric}: measured as {cell.column.text()}, before it as {first.text()}; left out")
    return same, odd


def _views(run: RecordRow, seed: int, metrics: Sequence[str]) -> dict[Image, View]:
    """A run's view of each image in its record; images with neither file nor value are left out."""
    results = run.record.results
    views: dict[Image, View] = {}
    for key in dict.fromkeys(image.key for image in results.images):
        file = image_file(run.folder, run.row, key)
        views[seed, key] = View(file=ImageFile(file=file, record=run.folder) if file.is_file() else None, values={})
    for image in results.images:
        if image.row == run.row:
            view = views[seed, image.key]
            usable = image.metric in metrics and image.value is not None and math.isfinite(image.value)
            values = {**view.values, **({image.metric: image.value} if usable else {})}
            views[seed, image.key] = replace(
                view, values=values, caption=image.caption, instruction=image.instruction, recipe=image.recipe
            )
    return {image: view for image, view in views.items() if view.file or view.values}


def _merge(rows: dict[str, dict[Image, View]], name: str, owner: str, views: dict[Image, View]) -> None:
    """Add a method's reference: to a row that agrees with it, else as a new row."""
    if not views:
        return
    known = [title for title in rows if title == name or title.startswith(f"{name} of ")]
    for title in known:
        if all(_agree(rows[title][image], views[image]) for image in rows[title].keys() & views.keys()):
            rows[title] = {**views, **rows[title]}
            return
    rows[f"{name} of {owner}" if known else name] = views


def _agree(a: View, b: View) -> bool:
    """Whether two views show the same image: by their bytes, else by their values."""
    if a.file and b.file:
        return _bytes(a.file) == _bytes(b.file)
    return all(math.isclose(a.values[m], b.values[m], rel_tol=1e-3) for m in a.values.keys() & b.values.keys())


def _bytes(kept: ImageFile) -> bytes:
    try:
        return bytes_of(kept.file, limit=MAX_FILE, within=kept.record)
    except ValueError:
        return str(kept.file).encode()  # refused later; equal to no other file


def _first(texts: Iterable[str]) -> str:
    """The first text that is not empty."""
    return next((text for text in texts if text), "")


def _says(recipe: str) -> str:
    """A recipe's steps with their parameters as one line; any other text unchanged."""
    try:
        steps = Recipe.from_json(recipe).steps
    except ValueError:
        return recipe
    described = [(step.kind, [f"{k}={_short(v)}" for k, v in step.params.items() if k != "seed"]) for step in steps]
    return ", ".join(f"{kind} ({' '.join(params)})" if params else kind for kind, params in described)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _view(view: View | None, metrics: Mapping[str, bool], pictures: Pictures) -> BrowserView | None:
    if view is None:
        return None
    values = [float(f"{view.values[m]:.6g}") if m in view.values else None for m in metrics]
    picture = pictures.add(view.file) if view.file else None
    return {"picture": picture, "values": values, "instruction": view.instruction}
