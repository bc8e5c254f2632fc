"""Every table at `scale=full` plans, and reads its conditions' data from toy copies."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from restore_lab.config.build import build
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.config_source import hydra_at
from restore_lab.data.sources.named_dataset import dataset_paths
from restore_lab.storage.artefact import SCORES
from restore_lab.tables.file import read_spec, tables
from restore_lab.tables.plan import plan_tables
from tests.helpers.configs import composed
from tests.helpers.toy_datasets import write_all, write_coco

pytestmark = pytest.mark.slow
TABLES = list(tables([conf_dir()]))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    return write_all(tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize("name", TABLES)
def test_every_table_plans_at_full_scale_without_overrides(name, tmp_path) -> None:
    """Nothing is refused; every measured row waits for weights, unless they ship; nothing typed names a path."""
    with hydra_at(conf_dir()):
        found = plan_tables([read_spec(name, [conf_dir()], scale="full")], store=tmp_path / "runs" / "tables", seeds=1)
    assert not found.refusals, found.refusals
    for job in found.jobs.values():
        assert not any("made:" in word and str(tmp_path) not in word for word in job.words), job.words
        kinds = [found.jobs[need].artefact.kind for need in job.needs]
        assert job.artefact.kind != SCORES or any(kind in ("adaptor", "decoder") for kind in kinds)


@pytest.mark.parametrize("name", [name for name in TABLES if name != "dra/table3"])
def test_every_condition_of_a_table_reads_its_data(name, datasets, tmp_path) -> None:
    """One row under each condition: the first batch, degraded; images that differ in size never share one."""
    write_coco(tmp_path, 3)
    spec = read_spec(name, [conf_dir()], scale="full")
    row = next(row for row in spec.rows.values() if row.system is None)
    for condition in spec.conditions.values():
        if condition.mean:
            continue
        words = [word for word in spec.words_of("evaluate", row, condition) if "made:" not in word]
        place = tmp_path if "eval_data=coco_val" in words else datasets
        cfg = composed("evaluate", f"experiment={name}", "scale=full", *words, f"datasets_dir={place}")
        assert dataset_paths(OmegaConf.to_container(cfg.eval_data, resolve=True))
        assert cfg.eval_crop is not None or cfg.eval_batch_size == 1, condition.name
        for key, small in (("eval_crop", 16), ("eval_resize", 16), ("eval_first", 1)):
            cfg[key] = None if cfg[key] is None else small
        if "eval_data=coco_val" in words:
            cfg.eval_data.source.count = 2
        data = build(cfg.datamodule)
        data.setup("test")
        batch = data.degrade(next(iter(data.test_dataloader())), stage="test")
        assert batch.lq_BCHW is not None and (cfg.eval_crop is None or batch.lq_BCHW.shape[-2:] == (16, 16))
