"""Experiment tracking: logs losses, scores and images of an artefact's run (`logger=wandb|tensorboard|csv`).

The logged run's id is the artefact's identity, so a resumed job continues its own run, and no two jobs share one. The
run's final state is the job's: finished, failed or interrupted. No logger setting enters an identity.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from restore_lab.config.build import build
from restore_lab.storage.artefact import code_version
from restore_lab.storage.identity import IGNORED_KEYS

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, WandbLogger
    from omegaconf import DictConfig
    from PIL.Image import Image

log = logging.getLogger(__name__)
# Overrides that do not change the artefact.
PLUMBING = IGNORED_KEYS | {"name", "stage", "experiment", "run", "weights", "trainer", "callbacks", "again"}
PLUMBING |= {"log_every", "checkpoint_every", "pictures", "keep_images"}
FAILED, INTERRUPTED = 1, 255  # exit codes as wandb reads them
LONGEST_NAME = 128  # characters of a wandb name
PANEL_GAP = 4  # pixels between the images of a panel


@dataclass(frozen=True, kw_only=True)
class ImagePanel:
    """Images of one size side by side, by title, with the restoration's prompt as caption."""

    key: str
    images: Mapping[str, Image]
    caption: str
    instruction: str


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that supports images, such as wandb's."""

    def log_image(self, key: str, images: list[Image], step: int | None = None, *, caption: list[str]) -> None: ...


@contextmanager
def track(cfg: DictConfig, *, identity: str, kind: str, settings: Mapping[str, Any]) -> Iterator[Logger | None]:
    """Context with the logger of an artefact in progress; None if the config has none.

    Args:
        cfg: composed with conf/tracking.yaml.
        identity: of the artefact.
        kind: the stage's name, or "scores".
        settings: the artefact's settings, logged as hyperparameters.

    Raises:
        ValueError: for a logger whose package is missing, or wandb without an account.
    """
    if not cfg.logger:
        yield None
        return
    run = {"id": identity, "kind": kind, **_described(cfg, kind, settings)}
    logger = _begun(OmegaConf.merge(cfg, {"run": run}).logger)
    try:
        logger.log_hyperparams({**settings, "identity": identity, "code": code_version()})
        yield logger
    except BaseException as error:
        _end(logger, INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
        raise
    _end(logger, 0)


def logger_note(cfg: DictConfig) -> str:
    """A note for an artefact that exists already: the logger logs only new runs. "" without a logger."""
    chosen = HydraConfig.get().runtime.choices.get("logger") if HydraConfig.initialized() else None
    return f"; nothing runs, so logger={chosen or '...'} is sent nothing" if cfg.logger else ""


def artefact_overrides() -> list[str]:
    """This job's overrides that can change the artefact, in order."""
    words = HydraConfig.get().overrides.task
    return [word for word in words if word.lstrip("+~").partition("=")[0].split(".")[0] not in PLUMBING]


def log_panels(logger: Logger, key: str, panels: Sequence[ImagePanel], *, step: int) -> None:
    """Log panels under one key, if the logger supports images."""
    if panels and isinstance(logger, ImageLogger):
        images, captions = [_beside(panel.images) for panel in panels], [_words(panel) for panel in panels]
        logger.log_image(key, images, step=step, caption=captions)


def has_wandb_account() -> bool:
    """Whether wandb is logged in; does not prompt and sends nothing."""
    import wandb

    return wandb.login(prompt=False, verify=False)


def _described(cfg: DictConfig, kind: str, settings: Mapping[str, Any]) -> dict[str, object]:
    """Group, name and tags of a run. Tags describe the method; the scores of a folder, without a prior, have none."""
    choices = HydraConfig.get().runtime.choices
    group = cfg.run.group or choices.get("experiment") or cfg.name
    words = " ".join(word for word in artefact_overrides() if "${" not in word)
    prior = ((settings.get("module") or {}).get("backbone") or {}).get("path")
    tags = [choices["method"], str(prior).rpartition("/")[2].removeprefix("asset:"), choices["scale"]] if prior else []
    return {"group": group, "name": f"{group} {kind} {words}".strip()[:LONGEST_NAME], "tags": tags}


def _begun(node: DictConfig) -> Logger:
    """The logger, with its run started."""
    from lightning.pytorch.loggers import WandbLogger

    try:
        logger: Logger = build(node)
    except ModuleNotFoundError as error:
        raise ValueError(f"logger: {' '.join(str(error).split())}") from error
    return _wandb(logger, node) if isinstance(logger, WandbLogger) else logger


def _wandb(logger: WandbLogger, node: DictConfig) -> Logger:
    """A started wandb run; offline if wandb cannot be reached.

    Raises:
        ValueError: if wandb is not logged in, or rejects the account.
    """
    import wandb
    from lightning.pytorch.utilities import rank_zero_only
    from wandb.errors import AuthenticationError, CommError

    if getattr(rank_zero_only, "rank", 0) != 0:
        return logger
    if node.get("mode") == "online" and not has_wandb_account():
        raise ValueError(
            "logger=wandb: no wandb account is logged in here; run `wandb login`, or set WANDB_MODE=offline and send "
            "what was written with `wandb sync` later"
        )
    try:
        _ = logger.experiment  # Lightning starts the run at the first access
    except AuthenticationError as error:
        raise ValueError(f"logger=wandb: {' '.join(str(error).split())}") from error
    except CommError as error:
        why = " ".join(str(error).split())
        log.warning("wandb cannot be reached (%s); writing to disk, for `wandb sync` later", why)
        wandb.teardown()  # its service still holds the run's id
        return build(node, mode="offline")
    return logger


def _end(logger: Logger, exit_code: int) -> None:
    """Finish the run; Lightning leaves wandb's open, and the process's next job would log into it."""
    from lightning.pytorch.loggers import WandbLogger

    logger.finalize("failed" if exit_code else "success")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=exit_code)


def _beside(images: Mapping[str, Image]) -> Image:
    """The images side by side as one image, with gaps."""
    from PIL import Image

    tiles = list(images.values())
    width = sum(tile.width for tile in tiles) + PANEL_GAP * (len(tiles) - 1)
    whole, x = Image.new("RGB", (width, max(tile.height for tile in tiles)), "white"), 0
    for tile in tiles:
        whole.paste(tile, (x, 0))
        x += tile.width + PANEL_GAP
    return whole


def _words(panel: ImagePanel) -> str:
    prompts = (f"instruction: {panel.instruction or '(none)'}", f"caption: {panel.caption or '(none)'}")
    return "\n".join([f"{panel.key}: {' | '.join(panel.images)}", *prompts])
