"""Training curves: the losses of a page's trainings, thinned to the resolution of a screen."""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from restore_lab.storage.foreign import bytes_of, has_type, parse_json
from restore_lab.tables.page.sources import Training

log = logging.getLogger(__name__)
POINTS = 300  # per line


class Curve(TypedDict):
    """One training's loss as the page's script reads it."""

    title: str
    steps: list[float]
    values: list[float]


class Chart(TypedDict):
    """One loss of one stage, over all trainings."""

    title: str
    lines: list[Curve]


def charts(trainings: Sequence[Training]) -> list[Chart]:
    """One chart per stage and loss."""
    found: dict[str, list[Curve]] = {}
    for training in trainings:
        for loss, points in read_losses(training.losses).items():
            steps, values = thin(points)
            curve: Curve = {"title": training.title, "steps": steps, "values": values}
            found.setdefault(f"{training.stage}: {loss}", []).append(curve)
    return [{"title": title, "lines": lines} for title, lines in found.items()]


def read_losses(losses: Path) -> Mapping[str, list[tuple[int, float]]]:
    """(step, value) pairs by loss.

    Truncated lines, values that are not finite, and files that are no history are skipped.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    try:
        text = bytes_of(losses, within=losses.parent).decode(errors="replace")
    except ValueError as error:
        log.warning("no curve: %s", error)
        return found
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            entry = parse_json(line, name=losses)
            step = entry.get("step") if isinstance(entry, dict) else None
            if isinstance(step, int) and has_type(step, int):
                for loss, value in entry.items():
                    if loss != "step" and has_type(value, float):
                        found.setdefault(loss, []).append((step, value))
    return found


def thin(points: Sequence[tuple[int, float]], most: int = POINTS) -> tuple[list[float], list[float]]:
    """Steps and values of at most `most` points, each the mean of a group of neighbours."""
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    steps = [statistics.fmean(step for step, _ in group) for group in groups]
    return steps, [float(f"{statistics.fmean(value for _, value in group):.5g}") for group in groups]
