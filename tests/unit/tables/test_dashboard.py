"""A table's wandb workspace and report: the runs of each row, and what is needed without an account."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from restore_lab.launch.job import Job
from restore_lab.storage.artefact import Artefact
from restore_lab.tables import dashboard as dashboard_module
from restore_lab.tables.dashboard import PALETTE, dashboard, row_runs
from restore_lab.tables.file import read_spec
from restore_lab.tables.jobs import Plan, ScoresKey
from restore_lab.tables.spec import Spec

TABLE = {
    "title": "two rows",
    "source": {"paper": "Toy"},
    "columns": {"PSNR": {"metric": "psnr", "better": "more"}, "FID": {"metric": "fid", "better": "less"}},
    "conditions": {"blur": {"title": "Blur", "columns": ["PSNR"]}, "noise": {"title": "Noise"}},
    "rows": {
        "ours": {"published": {"blur": [20.0], "noise": [21.0, 9.0]}},
        "theirs": {"system": "theirs", "published": {"blur": [19.0], "noise": [20.0, 9.5]}},
        "shared": {"weights": "ours"},
    },
}


@pytest.fixture
def planned(tmp_path) -> tuple[Plan, Spec]:
    """ "ours" and "shared" have two stages, "theirs" no scores; "ours" has two seeds under blur."""
    file = tmp_path / "conf" / "experiment" / "toy" / "one.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump({"table": TABLE}, sort_keys=False))
    spec = read_spec("toy/one", [tmp_path / "conf"], scale="tiny")

    def job(name: str, kind: str, *needs: str) -> Job:
        return Job(
            artefact=Artefact(kind=kind, identity=name, folder=tmp_path / name), words=("evaluate",), needs=needs
        )

    trained = [job("encoder", "encoder"), job("adaptor", "adaptor", "encoder")]
    records = [job(name, "scores", "adaptor") for name in ("blur0", "blur1", "noise0", "other")]
    plan = Plan(specs=(spec,), seeds=2, jobs={one.artefact.identity: one for one in (*trained, *records)})
    for row, condition, seed, identity in (
        ("ours", "blur", 0, "blur0"), ("ours", "blur", 1, "blur1"), ("ours", "noise", 0, "noise0"),
        ("shared", "noise", 0, "other"),
    ):  # fmt: skip
        plan.scores[ScoresKey(table="toy/one", row=row, condition=condition, seed=seed)] = identity
    return plan, spec


def test_each_row_has_its_pages(planned) -> None:
    ours, theirs, shared = row_runs(*planned)
    assert set(ours.trainings) == {"encoder", "adaptor"} == set(shared.trainings)
    assert ours.records == {"blur": ["blur0", "blur1"], "noise": ["noise0"]}
    assert shared.records == {"blur": [], "noise": ["other"]}
    assert theirs.ids == []
    assert len({row.colour for row in (ours, theirs, shared)}) == 3 and ours.colour in PALETTE


def test_the_report_has_its_panels_and_runs(planned) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra wandb")
    made = dashboard(*planned, "| the table |", entity="", project="lab")
    sent = {name: dashboard_module._plain(part) for name, part in made.items()}
    json.dumps(sent)

    blocks = sent["report"]["spec"]["blocks"]
    assert [block["content"] for block in blocks if block["type"] == "markdown-block"] == ["| the table |"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    asked = [{runset["name"]: ids(runset["filters"]) for runset in one["runSets"]} for one in grids]
    assert asked[1:] == [{"ours": ["blur0", "blur1"]}, {"ours": ["noise0"], "shared": ["other"]}]
    assert list(asked[0]) == ["ours", "shared"]
    assert all(set(found) == {"encoder", "adaptor"} for found in asked[0].values())
    panels = [one["panelBankSectionConfig"]["panels"] for one in grids]
    assert panels[0][0]["config"]["metrics"] == ["train/loss"]
    bars = [panel["config"] for panel in panels[2] if panel["viewType"] == "Bar Chart"]
    assert [bar["metrics"] for bar in bars] == [["score/psnr"], ["score/fid"]]
    assert bars[0]["overrideSeriesTitles"] == {"noise0:score/psnr": "ours", "other:score/psnr": "shared"}
    for one in panels:  # nothing lies over anything
        assert len({(panel["layout"]["x"], panel["layout"]["y"]) for panel in one}) == len(one)

    bank = sent["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in bank] == ["Training", "Blur", "Noise"]
    assert "adaptor" in json.dumps(sent["workspace"]["spec"]["section"]["runSets"])


def ids(filters: dict[str, Any]) -> list[str]:
    """The page ids that a runset asks for."""
    (one,) = filters["filters"]
    assert (one["key"], one["op"]) == ({"section": "run", "name": "name"}, "IN")
    return one["value"]


def test_without_wandb_or_an_account_it_is_refused_in_one_line(planned, monkeypatch) -> None:
    monkeypatch.setattr(dashboard_module, "has_wandb_account", lambda: False)
    with pytest.raises(ValueError, match="no wandb account is logged in here; run `wandb login`, or give output=FILE"):
        dashboard_module._send(SimpleNamespace(), *planned, "")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ValueError, match=r"dashboard needs wandb_workspaces.*: pip install 'restore-lab\[wandb\]'"):
        dashboard(*planned, "", entity="", project="lab")
