"""What a `restore-lab` command would read, for the scripts beside this one."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from restore_lab.config.conf_dir import conf_dir


def composed(command: str, *words: str) -> DictConfig:
    """The config of `restore-lab <command> <words>`."""
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        cfg = compose(command, overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg
