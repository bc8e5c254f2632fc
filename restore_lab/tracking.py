"""A run's page: where losses, scores and pictures are shown while an artefact is made (`logger=wandb|tensorboard|csv`).

The page's id is the artefact's identity, so what resumes continues its own page, and no two jobs share one. It ends
as the making ends: finished, failed or interrupted. Nothing of it enters an identity.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from restore_lab.config.build import build
from restore_lab.storage.artefact import IGNORED_KEYS, code_version

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from omegaconf import DictConfig
    from PIL.Image import Image

log = logging.getLogger(__name__)
# Typed words that say where and how something is made, not what.
PLUMBING = IGNORED_KEYS | {"name", "stage", "experiment", "run", "weights", "trainer", "callbacks", "again"}
PLUMBING |= {"log_every", "checkpoint_every", "pictures", "keep_images"}
FAILED, INTERRUPTED = 1, 255  # exit codes as wandb reads them
LONGEST_NAME = 128  # letters, of wandb's names
GAP = 4  # pixels between the images of a panel


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Images of one size beside each other, by title, and the words of the restoration under them."""

    key: str
    images: Mapping[str, Image]
    caption: str
    instruction: str


@contextmanager
def tracked(cfg: DictConfig, *, identity: str, kind: str, settings: Mapping[str, Any]) -> Iterator[Logger | None]:
    """The logger of an artefact that is being made, None where the config has none.

    Args:
        cfg: composed with conf/tracking.yaml.
        identity: of the artefact.
        kind: the stage's name, or "scores".
        settings: what the artefact is made with; they are shown with it.

    Raises:
        ValueError: for a logger whose package is missing, or wandb without an account.
    """
    if not cfg.logger:
        yield None
        return
    told = {"id": identity, "kind": kind, **_described(cfg, kind, settings)}
    logger = _begun(OmegaConf.merge(cfg, {"run": told}).logger)
    try:
        logger.log_hyperparams({**settings, "identity": identity, "code": code_version()})
        yield logger
    except BaseException as error:
        _end(logger, INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
        raise
    _end(logger, 0)


def unlogged(cfg: DictConfig) -> str:
    """What a line on an artefact that is there says of the logger: it shows only what runs. Empty without one."""
    chosen = HydraConfig.get().runtime.choices.get("logger") if HydraConfig.initialized() else None
    return f"; nothing runs, so logger={chosen or '...'} is sent nothing" if cfg.logger else ""


def typed() -> list[str]:
    """The words of this job that say what is made, in order."""
    words = HydraConfig.get().overrides.task
    return [word for word in words if word.lstrip("+~").partition("=")[0].split(".")[0] not in PLUMBING]


def log_shown(logger: Any, key: str, shown: Sequence[Shown], *, step: int) -> None:
    """Show panels under one key, if the logger can show images."""
    if shown and hasattr(logger, "log_image"):
        logger.log_image(key, [_beside(one.images) for one in shown], step=step, caption=[_words(one) for one in shown])


def signed_in() -> bool:
    """Whether there is a wandb account to write to; nobody is asked, and nothing is sent."""
    import wandb

    return wandb.login(prompt=False, verify=False)


def _described(cfg: DictConfig, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Group, name and tags of a page. Tags are a method's: what has no prior (a score of a folder) has none."""
    choices = HydraConfig.get().runtime.choices
    group = cfg.run.group or choices.get("experiment") or cfg.name
    words = " ".join(word for word in typed() if "${" not in word)
    prior = ((settings.get("module") or {}).get("backbone") or {}).get("path")
    tags = [choices["method"], str(prior).rpartition("/")[2].removeprefix("asset:"), choices["scale"]] if prior else []
    return {"group": group, "name": f"{group} {kind} {words}".strip()[:LONGEST_NAME], "tags": tags}


def _begun(node: DictConfig) -> Any:
    """The logger, with its page opened."""
    try:
        logger = build(node)
    except ModuleNotFoundError as error:
        raise ValueError(f"logger: {' '.join(str(error).split())}") from error
    return _wandb(logger, node) if hasattr(logger, "use_artifact") else logger


def _wandb(logger: Any, node: DictConfig) -> Any:
    """wandb's page; where wandb cannot be reached it is written to disk alone.

    Raises:
        ValueError: if nobody has logged in, or the account is refused.
    """
    import wandb
    from lightning.pytorch.utilities import rank_zero_only

    if rank_zero_only.rank != 0:
        return logger
    if node.get("mode") == "online" and not signed_in():
        raise ValueError(
            "logger=wandb: nobody is logged in to wandb here; run `wandb login`, or set WANDB_MODE=offline and send "
            "what was written with `wandb sync` later"
        )
    try:
        logger.experiment  # noqa: B018 - Lightning opens the page at the first look
    except wandb.errors.AuthenticationError as error:
        raise ValueError(f"logger=wandb: {' '.join(str(error).split())}") from error
    except wandb.errors.CommError as error:
        why = " ".join(str(error).split())
        log.warning("wandb cannot be reached (%s); writing to disk, for `wandb sync` later", why)
        wandb.teardown()  # its service still holds the page's id
        logger = build(node, mode="offline")
    return logger


def _end(logger: Any, exit_code: int) -> None:
    """Close the page; Lightning leaves wandb's open, and the next job of the process would write into it."""
    logger.finalize("failed" if exit_code else "success")
    if hasattr(logger, "use_artifact"):
        logger.experiment.finish(exit_code=exit_code)


def _beside(images: Mapping[str, Image]) -> Image:
    """The images in one, with a gap between them."""
    from PIL import Image

    tiles = list(images.values())
    width = sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1)
    whole, x = Image.new("RGB", (width, max(tile.height for tile in tiles)), "white"), 0
    for tile in tiles:
        whole.paste(tile, (x, 0))
        x += tile.width + GAP
    return whole


def _words(one: Shown) -> str:
    said = (f"instruction: {one.instruction or '(none)'}", f"caption: {one.caption or '(none)'}")
    return "\n".join([f"{one.key}: {' | '.join(one.images)}", *said])
