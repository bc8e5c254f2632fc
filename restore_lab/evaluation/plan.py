"""The plan of a record; an existing record is read instead of measured again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.evaluation.record_tracking import log_record
from restore_lab.evaluation.records import RECORD, has_record, read_record
from restore_lab.storage.artefact import SCORES, Artefact
from restore_lab.storage.identity import identity
from restore_lab.storage.locks import first_rank, lock
from restore_lab.storage.outputs import take_folder
from restore_lab.system.processes import is_launched_rank, rank_and_world
from restore_lab.tracking import track

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.evaluation.records import Results

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scores(Artefact):
    """A record: complete with its own two files, without a manifest."""

    kind: str = SCORES

    def is_complete(self) -> bool:
        """Whether the record is in its folder."""
        return has_record(self.folder, identity=self.identity)


def plan_scores(cfg: DictConfig, settings: Mapping[str, Any], parents: tuple[str, ...] = ()) -> Scores:
    """A record with these settings, in `cfg.run_dir` or `<runs_dir>/<name>/scores-<identity>`."""
    identity_ = identity(settings, parents)
    folder = Path(cfg.run_dir) if cfg.run_dir else Path(cfg.runs_dir) / cfg.name / f"{SCORES}-{identity_}"
    return Scores(identity=identity_, folder=folder, settings=settings, parents=parents)


def load_or_measure(cfg: DictConfig, scores: Scores, measure: Callable[[], bool]) -> Results | None:
    """The results of a record, which is measured if it does not exist, or with `cfg.again`; they are logged too.

    Args:
        cfg: of the evaluation.
        scores: the record.
        measure: measures and writes the record; returns whether this process completed it.

    Returns:
        With several processes None in all but the one that completed the record.

    Raises:
        ValueError: for `again` with several processes.
    """
    if rank_and_world()[1] > 1:
        return _load_or_measure_together(cfg, scores, measure)
    with track(cfg, identity=scores.identity, kind=scores.kind, settings=scores.settings) as logger:
        if cfg.again or not scores.is_complete():
            with lock(scores.folder):
                if cfg.again or not scores.is_complete():  # another run may have completed it meanwhile
                    take_folder(scores.folder, setting="run_dir")
                    measure()
        else:
            log.info("read from its record; again=true measures anew")
        results = read_record(scores.folder).results
        if logger is not None:
            log_record(logger, scores.folder, results, pictures=cfg.pictures)
    return results


def _load_or_measure_together(cfg: DictConfig, scores: Scores, measure: Callable[[], bool]) -> Results | None:
    """`load_or_measure` in one of several processes: the one that assembles the record logs it."""
    from lightning.pytorch.utilities import rank_zero_only

    if cfg.again:
        raise ValueError(f"again=true: of several processes each would begin anew; delete {scores.folder / RECORD}")
    complete = scores.is_complete()
    if not complete:
        take_folder(scores.folder, setting="run_dir")
    if not (first_rank() if complete else measure()) or is_launched_rank():
        return None
    # Lightning's loggers write in rank 0 only; this process logs, whatever its rank.
    writer: Any = rank_zero_only
    writer.rank = 0
    results = read_record(scores.folder).results
    with track(cfg, identity=scores.identity, kind=scores.kind, settings=scores.settings) as logger:
        if logger is not None:
            log_record(logger, scores.folder, results, pictures=cfg.pictures)
    return results
