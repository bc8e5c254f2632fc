"""Compare the activations of two runs on one input: two weights, devices, precisions or versions. `restore-lab diff`.

Two traces (trace.py) are compared place by place in order of computation; the first difference above the tolerance
locates the cause. A trace may also be read from a file, written by another version or on another machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from restore_lab.storage.foreign import has_type, parse_json
from restore_lab.storage.outputs import write_output
from restore_lab.storage.paths import place_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.inspection.trace import Trace

ORDER_KEY, INPUT_KEY = "trace", "input"  # metadata of a trace file: its places in order, and the keys of the input


@dataclass(frozen=True, kw_only=True)
class PlaceDifference:
    """One place of two traces: max |a - b| and |a - b| / |a| (Euclidean norms); infinite if one trace lacks it."""

    place: str
    largest: float
    relative: float
    note: str = ""


def compare_traces(a: Trace, b: Trace) -> list[PlaceDifference]:
    """The difference at every place of either trace, in the order of `a`, then those of `b` only."""
    return [_difference(place, a, b) for place in [*a, *(place for place in b if place not in a)]]


def first_difference(differences: Sequence[PlaceDifference], *, tolerance: float) -> PlaceDifference | None:
    """The first place whose relative difference is above the tolerance, or NaN."""
    return next((found for found in differences if not found.relative <= tolerance), None)


def _difference(place: str, a: Trace, b: Trace) -> PlaceDifference:
    if place not in a or place not in b:
        where = "A" if place in a else "B"
        return PlaceDifference(place=place, largest=math.inf, relative=math.inf, note=f"only in {where}")
    first, second = a[place].double(), b[place].double()
    if first.shape != second.shape:
        shapes = " and ".join("x".join(map(str, one.shape)) for one in (first, second))
        return PlaceDifference(place=place, largest=math.inf, relative=math.inf, note=f"shapes {shapes}")
    apart, size = (first - second).abs(), float(first.norm())
    norm = float(apart.norm())
    relative = 0.0 if norm == 0 else norm / size if size else math.inf
    return PlaceDifference(place=place, largest=float(apart.max()) if apart.numel() else 0.0, relative=relative)


def differences_as_text(differences: Sequence[PlaceDifference], *, tolerance: float) -> str:
    """The table of differences and the first one above the tolerance, as text."""
    first = first_difference(differences, tolerance=tolerance)
    width = max(len("place"), *(len(found.place) for found in differences))
    lines = [f"{'place':<{width}}  max |a-b|  |a-b|/|a|"]
    for found in differences:
        mark = "  <- parts here" if found is first else f"  {found.note}" if found.note else ""
        lines.append(f"{found.place:<{width}}  {found.largest:>9.3g}  {found.relative:>9.3g}{mark}".rstrip())
    if first is None:
        return "\n".join([*lines, "", f"they agree at all {len(differences)} places, within {tolerance:g}"])
    why = first.note or f"by {first.relative:.3g} of its size, more than the tolerance of {tolerance:g}"
    return "\n".join([*lines, "", f"they part at {first.place}: {why}"])


def differences_as_json(differences: Sequence[PlaceDifference], *, tolerance: float) -> str:
    """The differences as JSON; values that are not finite are null."""
    first = first_difference(differences, tolerance=tolerance)
    rows = [
        {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in asdict(found).items()}
        for found in differences
    ]
    return json.dumps({"parts_at": None if first is None else first.place, "tolerance": tolerance, "places": rows})


def run_trace(cfg: DictConfig) -> tuple[Trace, str]:
    """The trace of a composed `restore-lab diff`, and the keys of its input."""
    from restore_lab.evaluation.degraded import degraded_batches
    from restore_lab.inference.restorer import load_method
    from restore_lab.inspection.trace import trace

    module = load_method(cfg)
    _, batch = next(degraded_batches(cfg, module.run_device, [0]))
    if batch is None:
        raise ValueError("eval_data has no image to look at")
    return trace(module, batch, share=cfg.share), ", ".join(batch.key)


def write_trace(found: Trace, file: Path, *, keys: str) -> None:
    """Write a trace as a safetensors file, atomically, with the keys of its input."""
    from safetensors.torch import save

    tensors = {name: value.contiguous().clone() for name, value in found.items()}
    write_output(file, save(tensors, metadata={ORDER_KEY: json.dumps(list(found)), INPUT_KEY: keys}))


def read_trace(place: str) -> tuple[Trace, str] | None:
    """A trace file and the keys of its input; None if `place` is something else, such as weights."""
    from safetensors import SafetensorError, safe_open

    file = place_of(place)
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            if ORDER_KEY not in header:
                return None
            names = parse_json(header[ORDER_KEY], name="its order")
            if not has_type(names, tuple[str, ...]):
                raise ValueError("its order is no list of names")
            return {name: opened.get_tensor(name) for name in names}, header.get(INPUT_KEY, "")
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{file}: cannot be read as a trace ({error})") from error
