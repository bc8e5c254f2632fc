"""The Markdown of the benchmark of speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {"sd15": "SD 1.5", "sdxl": "SDXL", "sd3": "SD3"}


def page(found: Mapping[str, Any]) -> str:
    """All of it: how it was measured, one section a size."""
    lines = ["# Seconds and bytes a step: ours and diffusers'", "", f"`{found['command']}`", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    for size, one in found["sizes"].items():
        lines += ["", f"## {TITLES[size]}: {one['prior']}", ""]
        if "comparison" in one:
            lines += comparison(one["comparison"], matrix_peak=found["matrix peak"])
        for name, rows in one.get("waterfall", {}).items():
            lines += ["", f"The waterfall of {name}:", "", *waterfall(rows)]
    return "\n".join(lines) + "\n"


def comparison(found: Mapping[str, Any], *, matrix_peak: float) -> list[str]:
    """Ours against diffusers', one line a measure."""
    said = ", ".join(f"{what} {error:.0e}" for what, error in found["agreement"].items())
    lines = [f"The two sides agree, relative: {said}.", ""]
    lines += [
        "| | ours | diffusers' | times as fast | 95 % | | ours, memory | diffusers', memory | ours, of the peak |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for name, row in found["rows"].items():
        ratio, bytes_ = row["ratio"], row["bytes"] or {}
        rate = "" if row["flops"] is None else f"{row['flops'] / row['seconds']['ours'] / matrix_peak:.0%}"
        cells = [
            *(duration(row["seconds"][side]) for side in ("ours", "diffusers")),
            f"{ratio['value']:.3f}",
            f"{ratio['low']:.3f} to {ratio['high']:.3f}",
            row["verdict"],
            *(size(bytes_.get(side)) for side in ("ours", "diffusers")),
            rate,
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def waterfall(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each option gave, one line each, in the order in which they were added."""
    lines = [
        "| added | a step | times the plain step | 95 % | times the line above | memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = row["speedup"]
        cells = [
            duration(row["seconds"]),
            f"{ratio['value']:.2f}",
            f"{ratio['low']:.2f} to {ratio['high']:.2f}",
            f"{row['over the line above']:.2f}",
            size(row["bytes"]),
        ]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def duration(seconds: float) -> str:
    """In milliseconds below one second."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def size(count: int | None) -> str:
    """In MB or GB; nothing where nothing was counted."""
    if count is None:
        return ""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
