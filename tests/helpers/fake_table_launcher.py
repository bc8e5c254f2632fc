"""A fake `restore-lab table` that runs the chain of fake jobs through Hydra's launcher.

python tests/helpers/fake_table_launcher.py runs_dir=... hydra/launcher=joblib
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra

from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.config_source import register
from restore_lab.launch import job
from restore_lab.tables import make
from tests.helpers.fake_table import six

COMMAND = (sys.executable, str(Path(__file__).with_name("fake_job.py")))


def fake_task(cfg: Any) -> str | None:
    """A table's task, in whatever process the launcher runs it, with the fake command in the place of ours."""
    job.COMMAND = COMMAND
    return make.task(cfg)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="table")
def main(cfg: Any) -> None:
    job.take_ownership()
    store = Path(cfg.runs_dir) / cfg.name
    plan = six(store)
    make.write_jobs(plan, store)
    failed = make.make_artefacts(plan, launch=make.hydra_launcher(cfg, function=fake_task))
    if failed:
        raise SystemExit("\n".join(failed.values()))


if __name__ == "__main__":
    register()
    main()
