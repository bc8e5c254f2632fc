"""A table of four rows over the toy prior, and its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.config_source import hydra_at
from restore_lab.tables.file import read_spec
from restore_lab.tables.jobs import Plan
from restore_lab.tables.plan import plan_tables
from tests.helpers.configs import small

NODE = {
    "title": "four rows",
    "source": {"paper": "Toy"},
    "columns": {"PSNR": {"metric": "psnr", "better": "more"}},
    "conditions": {
        "noise": {"evaluate": ["eval_degradation=noise"]},
        "blur": {"evaluate": ["eval_degradation=blur"]},
    },
    "train": ["max_steps=3", "ema=null"],
    "evaluate": ["metrics=fidelity", "device=cpu"],
    "rows": {
        "one": {},
        "same": {"title": "the same training, sampled otherwise", "evaluate": ["sampler.steps=5"]},
        "borrowed": {"weights": "one", "evaluate": ["sampler/guidance=cfg", "sampler.guidance.scale=3"]},
        "other": {"overrides": ["adaptor=controlnet"]},
        "theirs": {"system": "swinir", "published": {"noise": [20.0]}},
    },
}
NOISE = {"noise": NODE["conditions"]["noise"]}


def write_conf(
    folder: Path, toy_folder: Path, *, top: dict | None = None, without: str = "eval_data", **changed
) -> Path:
    """A config folder that has the package's groups and the table as its one experiment.

    `top` is what else the file says, `without` the settings that its rows choose themselves.
    """
    conf = folder / "conf"
    file = conf / "experiment" / "toy" / "four.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    for group in conf_dir().iterdir():
        if not (conf / group.name).exists():
            (conf / group.name).symlink_to(group.resolve())
    overrides = [word for word in small(toy_folder) if not word.startswith(("eval_data", without))]
    node = {**NODE, "overrides": overrides, **changed}
    defaults = [{"override /method": "spire"}, "_self_"]
    text = yaml.safe_dump({"defaults": defaults, **(top or {}), "table": node}, sort_keys=False)
    file.write_text("# @package _global_\n" + text)
    return conf


def plan_table(folder: Path, toy_folder: Path, *, seeds: int = 1, **changed: Any) -> Plan:
    """The plan of the table with these changes."""
    conf = write_conf(folder, toy_folder, **changed)
    with hydra_at(conf):
        return plan_tables([read_spec("toy/four", [conf], scale="tiny")], store=folder / "runs" / "tables", seeds=seeds)


def kinds_of(plan: Plan) -> list[str]:
    return sorted(job.artefact.kind for job in plan.jobs.values())
