"""A table's specification for one scale: columns, conditions, rows and claims, as read from its file (file.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from restore_lab.config.kinds import Scale
from restore_lab.tables.figures.settings import Figure

OVERRIDE_KEYS = ("overrides", "train", "evaluate", "describe")
DESCRIPTION_COUNTS = (
    "trainable_millions",
    "adaptor_millions",
    "relative_adaptor",
    "step_gflops",
)  # the third: to the first row's
TRAINING_COSTS = ("minutes_per_100_steps", "peak_gigabytes")  # of the row's last training stage
SINGLE_CONDITION = "main"  # the condition's name in a table that lists none


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Overrides for every verb (`overrides`), and for one of them."""

    overrides: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    describe: tuple[str, ...] = ()

    def of(self, verb: str) -> tuple[str, ...]:
        """The overrides of a verb, its own last."""
        return (*self.overrides, *getattr(self, verb))


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its heading and its metric; `metric` is None where only the paper has numbers.

    `metric_higher_is_better` is the measured metric's own direction: a stand-in's may differ (piqe for CLIP-IQA).
    """

    title: str
    metric: str | None
    higher_is_better: bool
    metric_higher_is_better: bool
    digits: int
    stand_in: bool = False
    describe: str | None = None  # instead of a metric: a count of `restore-lab describe`, or a cost of training


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A set of columns: every row is evaluated under it once, or (`mean`) averaged over other conditions."""

    name: str
    title: str
    words: Overrides
    columns: tuple[str, ...]
    mean: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: its overrides and weights, and the published numbers by condition and column."""

    name: str
    title: str
    labels: Mapping[str, str]
    words: Overrides
    weights: str
    system: str | None
    published: Mapping[tuple[str, str], float | None]
    note: str = ""
    only: Scale | None = None
    prompt_set: str | None = None  # the row of its record; None for the method's first

    @property
    def full_title(self) -> str:
        """The title with the labels, which distinguish rows of one title: "Ours (yes, no)"."""
        return f"{self.title} ({', '.join(self.labels.values())})" if self.labels else self.title


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper that two rows can test: the row is better than the baseline, or worse."""

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
    words: Overrides
    columns: Mapping[str, Column]
    conditions: Mapping[str, Condition]
    rows: Mapping[str, Row]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = field(default=())
    figure: Figure | None = None

    def trains(self, row: str) -> bool:
        """Whether the table trains the row's weights, its own or another row's."""
        if row not in self.rows or self.rows[row].system is not None:
            return False
        weights = self.rows[row].weights
        return weights == "own" or (weights != "shipped" and self.trains(weights))

    def words_of(self, verb: str, row: Row, condition: Condition | None = None) -> tuple[str, ...]:
        """The overrides of a row's job, each key once; training has no condition."""
        parts = [self.words, *([condition.words] if condition else []), row.words]
        return merge(word for part in parts for word in part.of(verb))


def merge(words: Iterable[str]) -> tuple[str, ...]:
    """Overrides with each key once; the last one wins, at its own position."""
    found: dict[str, str] = {}
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        found.pop(key, None)
        found[key] = word
    return tuple(found.values())
