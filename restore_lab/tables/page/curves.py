"""Training curves: the losses of the trainings behind a page, thinned to what a screen can show."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from restore_lab.tables.page.sources import Training

POINTS = 300  # of a line


def charts(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """One chart for each stage and loss: {"title", "lines": [{"title", "steps", "values"}]}."""
    found: dict[str, list[dict[str, Any]]] = {}
    for training in trainings:
        for loss, points in read(training.losses).items():
            steps, values = thinned(points)
            line = {"title": training.title, "steps": steps, "values": values}
            found.setdefault(f"{training.stage}: {loss}", []).append(line)
    return [{"title": title, "lines": lines} for title, lines in found.items()]


def read(losses: Path) -> Mapping[str, list[tuple[int, float]]]:
    """(step, value) by loss; a line that a kill cut short, and a value that is not finite, are left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in losses.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        for loss, value in entry.items():
            if loss != "step" and math.isfinite(value):
                found.setdefault(loss, []).append((entry["step"], value))
    return found


def thinned(points: Sequence[tuple[int, float]], most: int = POINTS) -> tuple[list[float], list[float]]:
    """Steps and values of at most so many points, each the mean of its neighbours."""
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    steps = [statistics.fmean(step for step, _ in group) for group in groups]
    return steps, [float(f"{statistics.fmean(value for _, value in group):.5g}") for group in groups]
