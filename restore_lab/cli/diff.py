"""Find the first tensor at which two runs diverge: other weights, device, precision, or version of the code.

restore-lab diff runs/a runs/b method=supir
restore-lab diff method=spire b="device=cuda backbone.dtype=bfloat16" tolerance=1e-2
restore-lab diff method=spire trace=before.safetensors      # then, with other code or on another machine:
restore-lab diff before.safetensors method=spire
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.inspection.trace import Trace

POSITIONAL = ("sides...",)
FREE_TEXT = ("a", "b")


def run(cfg: DictConfig) -> None:
    """Print the difference at every place of the trace; exit code 1 if the runs diverge."""
    from restore_lab.inspection import diff

    if cfg.trace is not None:
        if cfg.sides or cfg.a or cfg.b:
            raise ValueError("trace= writes the features of this composition and compares nothing; leave out the sides")
        found, shown = diff.run_trace(cfg)
        diff.write_trace(found, Path(cfg.trace), keys=shown)
        print(f"{len(found)} places of {shown}: {cfg.trace}")
        return
    sides = list(cfg.sides or ())
    if len(sides) > 2 or not (sides or cfg.a or cfg.b):
        raise ValueError(
            "give two sides to compare: A and B (weights or traces), or settings of one as a='...' or b='...'"
        )
    a, b = (_side(place, more) for place, more in zip([*sides, None, None], (cfg.a, cfg.b), strict=False))
    if a[1] != b[1]:
        raise ValueError(f"A saw {a[1]} and B saw {b[1]}: give both the same eval_data and seed")
    differences = diff.compare_traces(a[0], b[0])
    say = diff.differences_as_json if cfg.format == "json" else diff.differences_as_text
    print(say(differences, tolerance=cfg.tolerance))
    if diff.first_difference(differences, tolerance=cfg.tolerance):
        raise SystemExit(1)


def _side(place: str | None, settings: str) -> tuple[Trace, str]:
    """The trace of one side: read from a file, or recorded from the composition with that side's settings."""
    from hydra.core.hydra_config import HydraConfig

    from restore_lab.cli.front import parse, quote
    from restore_lab.inspection import diff
    from restore_lab.tables.job_config import job_config

    found = None if place is None else diff.read_trace(place)
    if found is not None:
        if settings:
            raise ValueError(f"{place} is a trace: settings ({settings}) do not change it")
        return found
    weights = [] if place is None else [f"weights={quote(place)}"]
    try:
        own = parse(shlex.split(settings)).overrides
    except ValueError as error:
        raise ValueError(f"cannot read the settings {settings!r}: {error}; close every quote") from error
    with job_config("diff", [*HydraConfig.get().overrides.task, *weights, *own]) as cfg:
        return diff.run_trace(cfg)
