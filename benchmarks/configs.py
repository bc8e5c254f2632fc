"""What a `restore-lab` command would read, for the scripts beside this one."""

from __future__ import annotations

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.config_source import hydra_at


def composed(command: str, *words: str) -> DictConfig:
    """The config of `restore-lab <command> <words>`."""
    with hydra_at(conf_dir()):
        cfg = compose(command, overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg
