"""Where two runs part: the same input through two weights, devices, precisions or versions. `restore-lab diff`.

Two traces (trace.py) are compared place by place, in the order computed; the first place that differs by more
than the tolerance is where to look. A trace that was written to a file by other code, or on another machine, compares
as well as one made now.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.storage.artefact import place_of
from restore_lab.storage.foreign import has_type, parse_json
from restore_lab.storage.outputs import write_output

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.inspection.trace import Trace

ORDER, INPUT = "trace", "input"  # in a trace file's header: its places in order, and what went in


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One place of two traces: max |a - b| and |a - b| / |a| (Euclidean); infinite where only one has it."""

    place: str
    largest: float
    relative: float
    note: str = ""


def compare(a: Trace, b: Trace) -> list[Difference]:
    """Every place of either trace, in the order of `a`; those that `b` alone has come last."""
    return [_difference(place, a, b) for place in [*a, *(place for place in b if place not in a)]]


def first_parting(differences: Sequence[Difference], *, tolerance: float) -> Difference | None:
    """The first place whose relative difference is above the tolerance, or not a number."""
    return next((found for found in differences if not found.relative <= tolerance), None)


def _difference(place: str, a: Trace, b: Trace) -> Difference:
    if place not in a or place not in b:
        where = "A" if place in a else "B"
        return Difference(place=place, largest=math.inf, relative=math.inf, note=f"only in {where}")
    first, second = a[place].double(), b[place].double()
    if first.shape != second.shape:
        shapes = " and ".join("x".join(map(str, one.shape)) for one in (first, second))
        return Difference(place=place, largest=math.inf, relative=math.inf, note=f"shapes {shapes}")
    apart, size = (first - second).abs(), float(first.norm())
    norm = float(apart.norm())
    relative = 0.0 if norm == 0 else norm / size if size else math.inf
    return Difference(place=place, largest=float(apart.max()) if apart.numel() else 0.0, relative=relative)


def page(differences: Sequence[Difference], *, tolerance: float) -> str:
    """The table and where the two part, as text."""
    first = first_parting(differences, tolerance=tolerance)
    width = max(len("place"), *(len(found.place) for found in differences))
    lines = [f"{'place':<{width}}  max |a-b|  |a-b|/|a|"]
    for found in differences:
        mark = "  <- parts here" if found is first else f"  {found.note}" if found.note else ""
        lines.append(f"{found.place:<{width}}  {found.largest:>9.3g}  {found.relative:>9.3g}{mark}".rstrip())
    if first is None:
        return "\n".join([*lines, "", f"they agree at all {len(differences)} places, within {tolerance:g}"])
    said = first.note or f"by {first.relative:.3g} of its size, more than the tolerance of {tolerance:g}"
    return "\n".join([*lines, "", f"they part at {first.place}: {said}"])


def as_json(differences: Sequence[Difference], *, tolerance: float) -> str:
    """The same as JSON; what has no finite value is null."""
    first = first_parting(differences, tolerance=tolerance)
    rows = [
        {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in asdict(found).items()}
        for found in differences
    ]
    return json.dumps({"parts_at": None if first is None else first.place, "tolerance": tolerance, "places": rows})


def traced(cfg: DictConfig) -> tuple[Trace, str]:
    """The trace of a composed `restore-lab diff`, and a name for what went in."""
    from restore_lab.evaluation.degraded import degraded_batches
    from restore_lab.inference.restorer import load
    from restore_lab.inspection.trace import trace

    module = load(cfg)
    _, batch = next(degraded_batches(cfg, module.run_device, [0]))
    if batch is None:
        raise ValueError("eval_data has no image to look at")
    return trace(module, batch, share=cfg.share), ", ".join(batch.key)


def write(found: Trace, file: Path, *, shown: str) -> None:
    """A trace as a safetensors file, whole or not at all."""
    from safetensors.torch import save

    tensors = {name: value.contiguous().clone() for name, value in found.items()}
    write_output(file, save(tensors, metadata={ORDER: json.dumps(list(found)), INPUT: shown}))


def read(place: str) -> tuple[Trace, str] | None:
    """The trace at a place and what went in; None if the place holds something else, such as weights."""
    from safetensors import SafetensorError, safe_open

    file = place_of(place)
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            header: dict[str, Any] = opened.metadata() or {}
            if ORDER not in header:
                return None
            names = parse_json(header[ORDER], name="its order")
            if not has_type(names, tuple[str, ...]):
                raise ValueError("its order is no list of names")
            return {name: opened.get_tensor(name) for name in names}, header.get(INPUT, "")
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{file}: cannot be read as a trace ({error})") from error
