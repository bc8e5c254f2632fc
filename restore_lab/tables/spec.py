"""What a table is: its columns, conditions, rows and claims, as a file says them (file.py), for one scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from restore_lab.tables.figures.settings import Figure

Scale = Literal["tiny", "full"]
WORDS = ("overrides", "train", "evaluate", "describe")
COUNTED = (
    "trainable_millions",
    "adaptor_millions",
    "relative_adaptor",
    "step_gflops",
)  # the third: over the first row's
TOOK = ("minutes_per_100_steps", "peak_gigabytes")  # of the row's last stage of training, on whatever machine it ran
ONLY = "main"  # the condition of a table that has one


@dataclass(frozen=True, kw_only=True)
class Words:
    """Overrides for every verb (`overrides`), and for one of them."""

    overrides: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    describe: tuple[str, ...] = ()

    def of(self, verb: str) -> tuple[str, ...]:
        """Those that a verb reads, its own last."""
        return (*self.overrides, *getattr(self, verb))


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: what heads it, and what is measured for it; `metric` is null where only the paper has numbers.

    A stand-in may run the other way than what it stands for (piqe for CLIP-IQA): `metric_higher_is_better` is its own.
    """

    title: str
    metric: str | None
    higher_is_better: bool
    metric_higher_is_better: bool
    digits: int
    stand_in: bool = False
    describe: str | None = None  # in the place of a metric: a number of `restore-lab describe`, or what training took


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A set of columns: every row is measured under it once, or (`mean`) has the mean of what it has under others."""

    name: str
    title: str
    words: Words
    columns: tuple[str, ...]
    mean: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: what it is made from, and what the paper printed, by condition and column."""

    name: str
    title: str
    labels: Mapping[str, str]
    words: Words
    weights: str
    system: str | None
    published: Mapping[tuple[str, str], float | None]
    note: str = ""
    only: Scale | None = None
    variant: str | None = None  # which row of its record; null for the first that is the method's

    @property
    def called(self) -> str:
        """The title with the labels, which alone tell rows of one title apart: "Ours (yes, no)"."""
        return f"{self.title} ({', '.join(self.labels.values())})" if self.labels else self.title


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper that a pair of rows can bear out: the row is better than the baseline, or worse."""

    says: str
    row: str
    baseline: str
    column: str
    condition: str
    better: bool


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A table file as read, for one scale."""

    name: str
    title: str
    source: str
    scale: Scale
    words: Words
    columns: Mapping[str, Column]
    conditions: Mapping[str, Condition]
    rows: Mapping[str, Row]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = field(default=())
    figure: Figure | None = None

    def trains(self, row: str) -> bool:
        """Whether a row's weights are trained by the table, its own or another row's; any other row was not."""
        if row not in self.rows or self.rows[row].system is not None:
            return False
        weights = self.rows[row].weights
        return weights == "own" or (weights != "shipped" and self.trains(weights))

    def words_of(self, verb: str, row: Row, condition: Condition | None = None) -> tuple[str, ...]:
        """The overrides of a row's job, each key once; training knows no condition."""
        parts = [self.words, *([condition.words] if condition else []), row.words]
        return merged(word for part in parts for word in part.of(verb))


def merged(words: Any) -> tuple[str, ...]:
    """Overrides with each key once: the last word counts, where it stands."""
    found: dict[str, str] = {}
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        found.pop(key, None)
        found[key] = word
    return tuple(found.values())
