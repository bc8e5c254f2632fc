"""A suite of metrics with one protocol: it is updated with images per row, and computes cells and per-image values.

A metric that cannot run (missing weights or packages, images too small, no reference, no caption) is dropped with one
line in the log. The suite prepares images by the protocol, so that they agree with the label of the column.
Config: metrics=fidelity | offline | paper (conf/metrics), built with the protocol:
`build(cfg.metrics, protocol=build(cfg.protocol))`.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from restore_lab.evaluation.metrics.kernel_distance import FEW_IMAGES, KERNEL_ID, kernel_distance
from restore_lab.evaluation.protocol import ColumnLabel, ImageMetric, Metric, MetricUnavailable, Protocol, SetMetric
from restore_lab.evaluation.records import Cell, ImageValue, Results
from restore_lab.types import Recipe

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """The values, sizes and features of one metric and row."""

    values: list[float | None] = field(default_factory=list)
    sizes: set[str] = field(default_factory=set)
    restored: list[Tensor] = field(default_factory=list)
    reference: list[Tensor] = field(default_factory=list)


@dataclass
class Measurements:
    """The measurements of some images; those of all parts of an evaluation are merged."""

    keys: dict[str, list[str]] = field(default_factory=dict)  # by row
    images: list[ImageValue] = field(default_factory=list)
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)  # by metric


class MetricSuite:
    """Metrics with one protocol.

    Args (constructor):
        metrics: by name, for overrides such as `~metrics.metrics.vif`.
        protocol: preparation of the images.

    Raises:
        ValueError: two metrics with one id.
    """

    def __init__(self, *, metrics: Mapping[str, ImageMetric | SetMetric], protocol: Protocol) -> None:
        self.protocol = protocol
        self._metrics: dict[str, ImageMetric | SetMetric] = {}
        self._found = Measurements()
        self._seen: set[tuple[str, str]] = set()
        for metric in metrics.values():
            if metric.id in self._metrics:
                raise ValueError(f"two metrics are called {metric.id!r}; give one of them another id or leave it out")
            self._metrics[metric.id] = metric
        for name, gap in [(metric.id, metric.missing()) for metric in self._metrics.values()]:
            if gap:
                self._drop(name, gap)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The ids of the available metrics."""
        return tuple(self._metrics)

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for every metric or value missing so far."""
        return tuple(self._found.notes)

    def update(
        self,
        row: str,
        restored_BCHW: Tensor,
        *,
        keys: Sequence[str],
        reference_BCHW: Tensor | None = None,
        captions: Sequence[str] | None = None,
        instructions: Sequence[str] | None = None,
        recipes: Sequence[Recipe | None] | None = None,
    ) -> None:
        """Measure a batch of images in [0, 1] for one row of the table; sequences have one entry per image.

        Raises:
            ValueError: if lengths or sizes do not match, or the row has an image already.
        """
        self._check(row, restored_BCHW, reference_BCHW, keys, (captions, instructions, recipes))
        restored = self.protocol.prepare(restored_BCHW)
        reference = None if reference_BCHW is None else self.protocol.prepare(reference_BCHW)
        height, width = restored.shape[-2:]
        for name, metric in list(self._metrics.items()):
            if not self._fits(
                metric, height, width, has_reference=reference is not None, has_captions=captions is not None
            ):
                continue
            try:
                values = self._measure(row, metric, restored, reference, captions)
            except MetricUnavailable as gap:
                self._drop(name, str(gap))
                continue
            self._tally(row, name).sizes.add(f"{width}x{height}")
            for i, value in enumerate(values):
                self._found.images.append(
                    ImageValue(
                        row=row,
                        key=keys[i],
                        metric=name,
                        value=value,
                        caption=captions[i] if captions is not None else "",
                        instruction=instructions[i] if instructions is not None else "",
                        recipe=_json(recipes[i]) if recipes is not None else "",
                    )
                )

    def take(self) -> Measurements:
        """Remove and return the measurements since the last call."""
        found = replace(self._found, weights={name: metric.weights for name, metric in self._metrics.items()})
        self._found = Measurements(notes=list(found.notes))
        return found

    def add(self, part: Measurements) -> None:
        """Append measurements, of this or another process.

        Raises:
            ValueError: if a row has an image already.
        """
        for row, keys in part.keys.items():
            self._see(row, keys)
        self._metrics = {name: metric for name, metric in self._metrics.items() if name in part.weights}
        for name, metric in self._metrics.items():
            metric.weights = part.weights[name]
        for (row, name), tally in part.tallies.items():
            own = self._tally(row, name)
            own.values += tally.values
            own.sizes |= tally.sizes
            own.restored += tally.restored
            own.reference += tally.reference
        self._found.images += part.images
        self._found.notes += [note for note in part.notes if note not in self._found.notes]

    def compute(self) -> Results:
        """Cells in the order of rows and metrics, the values of every image, and the notes so far."""
        cells = []
        for row in self._found.keys:
            for name, metric in self._metrics.items():
                tally = self._found.tallies.get((row, name))
                if tally is not None:
                    cells += self._cells(row, metric, tally)
        images = tuple(image for image in self._found.images if image.metric in self._metrics)
        return Results(cells=tuple(cells), images=images, notes=self.notes)

    def _measure(
        self,
        row: str,
        metric: ImageMetric | SetMetric,
        restored: Tensor,
        reference: Tensor | None,
        captions: Sequence[str] | None,
    ) -> list[float | None]:
        """One value per image; empty for a set metric, whose features are stored for `compute`."""
        if isinstance(metric, SetMetric):
            if reference is None:
                raise ValueError(f"{metric.id} compares with references and got none")
            first, second = metric.features(restored), metric.features(reference)
            self._tally(row, metric.id).restored.append(first)
            self._tally(row, metric.id).reference.append(second)
            return []
        if metric.pixel:
            protocol = self._pixel_protocol(metric)
            restored = protocol.pixels(restored)
            reference = None if reference is None else protocol.pixels(reference)
        with torch.inference_mode():
            values_B = metric(restored, reference, captions).double().cpu()
        if values_B.shape != (len(restored),):
            raise ValueError(f"{metric.id} gave values of shape {tuple(values_B.shape)} for {len(restored)} images")
        values = [value if math.isfinite(value) else None for value in values_B.tolist()]
        self._tally(row, metric.id).values.extend(values)
        return values

    def _cells(self, row: str, metric: ImageMetric | SetMetric, tally: Tally) -> list[Cell]:
        """The cell of a row and metric; empty, with a note, without values."""
        if isinstance(metric, SetMetric):
            return self._of_sets(row, metric, tally)
        values = [value for value in tally.values if value is not None]
        count, lost = len(values), len(tally.values) - len(values)
        if lost:
            self._note(f"{metric.id}: {lost} of {len(tally.values)} images of {row} have no value and do not count")
        if not values:
            return []
        std = statistics.stdev(values) if count > 1 else None
        return [self._cell(row, metric, self._column(metric, tally, count), statistics.fmean(values), std)]

    def _of_sets(self, row: str, metric: SetMetric, tally: Tally) -> list[Cell]:
        """The cell of a set metric, and of its kernel distance if there are few images."""
        count = sum(len(features) for features in tally.restored)
        if count < 2:
            self._note(f"{metric.id}: {row} has {count} image; a distance of sets needs at least 2")
            return []
        sets = torch.cat(tally.restored), torch.cat(tally.reference)
        column = self._column(metric, tally, count)
        found = [self._cell(row, metric, column, metric.distance(*sets), None)]
        if metric.id in KERNEL_ID and count < FEW_IMAGES:
            kernel = kernel_distance(*sets)
            column = replace(column, metric=KERNEL_ID[metric.id])
            found.append(replace(self._cell(row, metric, column, kernel.value, None), interval=kernel.interval))
        return found

    def _cell(self, row: str, metric: Metric, column: ColumnLabel, mean: float, std: float | None) -> Cell:
        return Cell(
            row=row,
            metric=column.metric,
            mean=mean,
            std=std,
            n=column.count,
            higher_is_better=metric.higher_is_better,
            column=column,
        )

    def _column(self, metric: Metric, tally: Tally, count: int) -> ColumnLabel:
        pixel = self._pixel_protocol(metric)
        return ColumnLabel(
            metric=metric.id,
            weights=metric.weights,
            colour=pixel.colour if metric.pixel else "rgb",
            border=pixel.border if metric.pixel else 0,
            size=next(iter(tally.sizes)) if len(tally.sizes) == 1 else "mixed",
            rounding=self.protocol.rounding,
            count=count,
            resize=self.protocol.resize,
            crop=self.protocol.crop,
        )

    def _pixel_protocol(self, metric: Metric) -> Protocol:
        return self.protocol if metric.colour is None else replace(self.protocol, colour=metric.colour)

    def _fits(self, metric: Metric, height: int, width: int, *, has_reference: bool, has_captions: bool) -> bool:
        """Whether the metric applies to these images; adds a note if not."""
        side = min(height, width) - (2 * self.protocol.border if metric.pixel else 0)
        if metric.needs_reference and not has_reference:
            self._note(f"{metric.id}: needs a reference; images without one get no value")
        elif metric.needs_caption and not has_captions:
            self._note(f"{metric.id}: needs captions; images without one get no value")
        elif side < metric.min_size:
            self._note(f"{metric.id}: needs {metric.min_size} pixels a side; {width}x{height} images get no value")
        else:
            return True
        return False

    def _check(
        self,
        row: str,
        restored: Tensor,
        reference: Tensor | None,
        keys: Sequence[str],
        others: Sequence[Sequence[object] | None],
    ) -> None:
        if restored.ndim != 4 or restored.shape[1] != 3:
            raise ValueError(f"row {row!r}: images are BCHW with 3 channels; got {tuple(restored.shape)}")
        if reference is not None and reference.shape != restored.shape:
            sizes = f"{tuple(restored.shape)} against {tuple(reference.shape)}"
            raise ValueError(f"row {row!r}, image {keys[0]!r}: restored and reference differ in shape, {sizes}")
        for entries in (keys, *others):
            if entries is not None and len(entries) != len(restored):
                raise ValueError(f"row {row!r}: {len(entries)} entries for {len(restored)} images; give one per image")
        self._see(row, keys)

    def _see(self, row: str, keys: Sequence[str]) -> None:
        repeated = [key for i, key in enumerate(keys) if (row, key) in self._seen or key in keys[:i]]
        if repeated:
            raise ValueError(f"row {row!r} has image {repeated[0]!r} already; keys name images, one value each")
        self._seen.update((row, key) for key in keys)
        self._found.keys.setdefault(row, []).extend(keys)

    def _tally(self, row: str, name: str) -> Tally:
        return self._found.tallies.setdefault((row, name), Tally())

    def _drop(self, name: str, why: str) -> None:
        self._metrics.pop(name)
        self._note(why)

    def _note(self, text: str) -> None:
        if text not in self._found.notes:
            self._found.notes.append(text)
            log.warning(text)


def _json(recipe: Recipe | None) -> str:
    return "" if recipe is None else recipe.to_json()
