"""Check what a run needs before it is queued: a method's weights, memory and disk, or a dataset's copy.

restore-lab doctor method=supir backbone=sdxl
restore-lab doctor method=supir scale=full metrics=paper format=json
restore-lab doctor data=div2k_val datasets_dir=/data
restore-lab doctor data=supir_train datasets_dir=/data
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

METHODS = ("method=", "backbone=", "scale=", "metrics=", "experiment=")


def run(cfg: DictConfig) -> None:
    """Print what exists and what is missing; exit code 1 if anything is missing."""
    from hydra.core.hydra_config import HydraConfig

    typed = list(HydraConfig.get().overrides.task)
    if any(word.startswith(METHODS) for word in typed):
        whole = _method(cfg)
    elif any(word.startswith("data=") for word in typed):
        whole = _dataset(cfg)
    else:
        raise ValueError("name what to check: restore-lab doctor method=NAME backbone=NAME, or data=NAME")
    if not whole:
        raise SystemExit(1)


def _method(cfg: DictConfig) -> bool:
    from restore_lab.inspection.doctor import check_method, render_checkup

    found = check_method(cfg)
    print(found.as_json() if cfg.format == "json" else render_checkup(found))
    return not found.missing


def _dataset(cfg: DictConfig) -> bool:
    from dataclasses import asdict

    from omegaconf import OmegaConf

    from restore_lab.data.sources.named_dataset import checkups

    found = checkups(OmegaConf.to_container(cfg.data, resolve=True))
    if cfg.format == "json":
        facts = [{**asdict(one), "whole": one.whole} for one in found]
        print(json.dumps(facts if len(facts) > 1 else facts[0]))
    else:
        print("\n".join(line for one in found for line in one.lines()))
    return all(one.whole for one in found)
