"""A record of `restore-lab evaluate method=diff_restorer` split by the kind of degradation.

    .venv/bin/python benchmarks/by_kind.py runs/diff_restorer/scores-<id> --metric psnr

Each line is a kind: images, the mean of every row, and the last row's difference to D(E(LQ)) with its paired interval.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from restore_lab.degradation.vocabulary import LABELS, labels
from restore_lab.evaluation.comparisons import values
from restore_lab.evaluation.records import DECODED_LQ, read_record
from restore_lab.evaluation.statistics import difference
from restore_lab.types import Recipe


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("--metric", default="psnr")
    given = parser.parse_args()
    results = read_record(given.record).results
    rows = list(dict.fromkeys(image.row for image in results.images))
    print("kind".ljust(10), " n ", *(row.rjust(12) for row in rows))
    for number, kind in enumerate(LABELS):
        mine = tuple(image for image in results.images if labels(Recipe.from_json(image.recipe))[number])
        part = replace(results, images=mine)
        means = [np.mean(list(values(part, row=row, metric=given.metric).values())) for row in rows]
        count = len(values(part, row=rows[0], metric=given.metric))
        last, baseline = (
            {(0, key): value for key, value in values(part, row=row, metric=given.metric).items()}
            for row in (rows[-1], DECODED_LQ)
        )
        found = difference(last, baseline)
        print(kind.ljust(10), f"{count:2d} ", *(f"{mean:12.2f}" for mean in means), f" {found}")


if __name__ == "__main__":
    main()
