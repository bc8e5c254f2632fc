"""A planned table with two rows on disk for the tests of its page: records, images and losses.

Values are such that every order is known: of image i of 20, row "a" has PSNR 20 + i and row "b" 40 - i, and GMSD (less
is better) runs as PSNR does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import yaml
from PIL import Image

from restore_lab.evaluation.plan import Scores
from restore_lab.evaluation.protocol import ColumnLabel
from restore_lab.evaluation.records import Cell, ImageValue, Results, image_file, write_record
from restore_lab.launch.job import Job
from restore_lab.storage.artefact import Artefact
from restore_lab.tables.file import read_spec
from restore_lab.tables.jobs import Plan, ScoresKey
from restore_lab.tables.spec import Spec
from restore_lab.types import Recipe, Step

N = 20
KEYS = [f"scene_{i:02d}" for i in range(N)]
HOSTILE = "a </script><script>document.title = 'broken'</script> & <b>\"bold\"</b> <!-- caption"
RECIPE = Recipe(pipeline="toy", seed=1, steps=(Step(kind="blur", params={"sigma": 2.4321, "seed": 9}),))
ROWS = {"a": lambda i: 20.0 + i, "b": lambda i: 40.0 - i}
TABLE = {
    "title": "two rows",
    "source": {"paper": "Toy", "place": "Table 1"},
    "columns": {
        "PSNR": {"metric": "psnr", "better": "more"},
        "GMSD": {"metric": "gmsd", "better": "less", "digits": 3},
    },
    "rows": {
        "a": {"title": "Ours", "labels": {"Words": "no"}, "published": [20.0, 0.3]},
        "b": {"title": "Ours", "labels": {"Words": "yes"}},
        "swinir": {"title": "SwinIR", "system": "swinir", "published": [21.5, None]},
    },
    "claims": [{"says": "words help", "row": "b", "baseline": "a", "column": "PSNR", "expect": "better"}],
}


def toy_spec(folder: Path) -> Spec:
    file = folder / "conf" / "experiment" / "toy" / "one.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({"table": TABLE}, sort_keys=False))
    return read_spec("toy/one", [folder / "conf"], scale="tiny")


def toy_table(folder: Path, *, images: bool = True) -> tuple[Plan, Spec]:
    """The table's plan, with everything done but one training of row "b" that left losses alone."""
    spec = toy_spec(folder)
    plan = Plan(specs=[spec], seeds=1)
    for row in ROWS:
        weights, scores = folder / f"adaptor-{row}", folder / f"scores-{row}"
        losses(weights, start=1.0 if row == "a" else 2.0)
        record(scores, row, images=images)
        plan.jobs[f"w{row}"] = Job(artefact=Artefact(kind="adaptor", identity=f"w{row}", folder=weights), words=())
        plan.jobs[row] = Job(artefact=Scores(identity=row, folder=scores), words=(), needs=(f"w{row}",))
        plan.scores[ScoresKey(table=spec.name, row=row, condition="main", seed=0)] = row
    return plan, spec


def record(place: Path, row: str, *, images: bool = True, border: int = 0, lq: int = 60) -> Path:
    """A record of the method `own`, with its LQ; `lq` is the LQ's grey."""
    values: dict[tuple[str, str], list[float]] = {}
    for name, psnr in {"LQ": lambda i: 15.0 + i % 3, "own": ROWS[row]}.items():
        values[name, "psnr"] = [psnr(i) for i in range(N)]
        values[name, "gmsd"] = [psnr(i) / 100 for i in range(N)]
    cells = [
        Cell(
            row=name, metric=metric, mean=sum(found) / N, std=None, n=N, higher_is_better=metric == "psnr",
            column=ColumnLabel(
                metric=metric, weights="", colour="rgb", border=border, size="32x24", rounding="8bit", count=N
            ),
        )
        for (name, metric), found in values.items()
    ]  # fmt: skip
    of_set = replace(cells[0].column, metric="tiny_fd")
    cells.append(replace(cells[-1], metric="tiny_fd", mean=12.5, higher_is_better=False, column=of_set))
    of_images = [
        ImageValue(
            row=name, key=KEYS[i], metric=metric, value=value, caption=HOSTILE if i == 3 else f"scene {i}, drawn",
            instruction=f"undo it, {row}" if name == "own" else "", recipe=RECIPE.to_json(),
        )
        for (name, metric), found in values.items() for i, value in enumerate(found)
    ]  # fmt: skip
    results = Results(cells=tuple(cells), images=tuple(of_images))
    write_record(place, results=results, settings={}, identity=row, code="abc", parents=(f"w{row}",))
    for i, key in enumerate(KEYS if images else ()):
        for name, colour in {"original": (10 * i, 90, 200), "LQ": (10 * i, lq, lq)}.items():
            picture(image_file(place, name, key), colour)
        picture(image_file(place, "own", key), (10 * i, 200, 0 if row == "a" else 120))
    return place


def picture(file: Path, colour: tuple[int, int, int]) -> None:
    """An image of 32 x 24 pixels: the colour, a white corner."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (32, 24), colour)
    image.paste((255, 255, 255), (0, 0, 8, 8))
    image.save(file, lossless=True)


def losses(folder: Path, *, start: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": 10 * i, "train/loss": start / i}) for i in range(1, 51)]
    (folder / "losses.jsonl").write_text("\n".join([*lines, '{"step": 510, "train/lo']))
