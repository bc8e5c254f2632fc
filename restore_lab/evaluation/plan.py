"""A record before it is made: its identity, its folder, and that it is made once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from restore_lab.evaluation.page import log_record
from restore_lab.evaluation.records import RECORD, read_record, recorded
from restore_lab.storage.artefact import identity
from restore_lab.storage.locks import first_rank, lock
from restore_lab.storage.outputs import take_folder
from restore_lab.system.processes import is_launched_rank, rank_and_world
from restore_lab.tracking import track

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from restore_lab.evaluation.records import Results

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a record's identity is made of, and where it is or will be."""

    identity: str
    folder: Path
    settings: Mapping[str, Any]
    parents: tuple[str, ...]


def settings_of(cfg: DictConfig, keys: Sequence[str]) -> dict[str, Any]:
    """Parts of a config as plain values, node by node and in place: interpolations reach other parts of it."""
    return {
        key: OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
        for key in keys
    }


def scores_of(cfg: DictConfig, settings: Mapping[str, Any], parents: tuple[str, ...] = ()) -> Scores:
    """The record of these settings: in `cfg.run_dir`, else `<runs_dir>/<name>/scores-<identity>`."""
    identity_ = identity(settings, parents)
    folder = Path(cfg.run_dir) if cfg.run_dir else Path(cfg.runs_dir) / cfg.name / f"scores-{identity_}"
    return Scores(identity=identity_, folder=folder, settings=settings, parents=parents)


def once(cfg: DictConfig, scores: Scores, make: Callable[[], bool]) -> Results | None:
    """What the record says, made first if it is not there, or if it is wanted `again`; a logger is shown it.

    Args:
        cfg: of the evaluation.
        scores: the record.
        make: makes it, and gives whether this process was the one that finished it.

    Returns:
        None in a process of several whose share is done, but not the record, or to whom it does not belong.

    Raises:
        ValueError: for `again` in one of several processes that were started one by one.
    """
    if rank_and_world()[1] > 1:
        return _shared(cfg, scores, make)
    with track(cfg, identity=scores.identity, kind="scores", settings=scores.settings) as logger:
        if cfg.again or not recorded(scores.folder, identity=scores.identity):
            with lock(scores.folder):
                if cfg.again or not recorded(scores.folder, identity=scores.identity):  # another run's, meanwhile
                    take_folder(scores.folder, setting="run_dir")
                    make()
        else:
            log.info("read from its record; again=true measures anew")
        results = read_record(scores.folder).results
        if logger is not None:
            log_record(logger, scores.folder, results, pictures=cfg.pictures)
    return results


def _shared(cfg: DictConfig, scores: Scores, make: Callable[[], bool]) -> Results | None:
    """`once` in one process of several: the one that puts the record together shows it."""
    from lightning.pytorch.utilities import rank_zero_only

    if cfg.again:
        raise ValueError(f"again=true: of several processes each would begin anew; delete {scores.folder / RECORD}")
    there = recorded(scores.folder, identity=scores.identity)
    if not there:
        take_folder(scores.folder, setting="run_dir")
    if not (make() if not there else first_rank()) or is_launched_rank():
        return None
    # This process speaks for all, whatever its rank: Lightning's loggers write for rank 0 alone.
    rank_zero_only.rank = 0
    results = read_record(scores.folder).results
    with track(cfg, identity=scores.identity, kind="scores", settings=scores.settings) as logger:
        if logger is not None:
            log_record(logger, scores.folder, results, pictures=cfg.pictures)
    return results
