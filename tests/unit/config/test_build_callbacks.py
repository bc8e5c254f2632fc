"""`callbacks=` by name, in a list, from a config folder of the user's, and mistakes."""

from __future__ import annotations

import pytest

from restore_lab.config.build import build_nodes
from restore_lab.config.grammar import quote_override
from tests.helpers.configs import composed

TIMER = "_target_:lightning.pytorch.callbacks.Timer,duration:{hours:1}"
SUMMARY = "_target_:lightning.pytorch.callbacks.ModelSummary,max_depth:2"
NAMES = ["Timer", "ModelSummary"]


@pytest.fixture
def own(tmp_path) -> str:
    """A folder as lightning-hydra-template lays it out."""
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/default.yaml").write_text(
        "defaults: [summary, _self_]\ntimer:\n  _target_: lightning.pytorch.callbacks.Timer\n  duration: {hours: 1}\n"
    )
    (tmp_path / "callbacks/summary.yaml").write_text(
        "summary:\n  _target_: lightning.pytorch.callbacks.ModelSummary\n  max_depth: 2\n"
    )
    return f"hydra.searchpath=[file://{tmp_path}]"


def built(*words: str) -> list[str]:
    return [type(one).__name__ for one in build_nodes(composed("train", *words).callbacks, where="callbacks")]


@pytest.mark.parametrize("folder", ["none", "empty"])
def test_callbacks_are_given_by_name_or_list(folder, tmp_path) -> None:
    (tmp_path / "callbacks").mkdir()
    there = (f"hydra.searchpath=[file://{tmp_path}]",) if folder == "empty" else ()
    assert built(*there) == []
    assert built(*there, f"callbacks={{timer:{{{TIMER}}},summary:{{{SUMMARY}}}}}") == NAMES
    assert built(*there, f"callbacks=[{{{TIMER}}},{{{SUMMARY}}}]") == NAMES
    assert built(*there, f"callbacks={{timer:{{{TIMER}}},summary:null}}") == NAMES[:1]


def test_callbacks_from_a_config_dir_and_null_removes_one(own) -> None:
    assert sorted(built(own, "callbacks=default")) == sorted(NAMES)
    assert built(own, "callbacks=default", "callbacks.timer=null") == NAMES[1:]
    assert built(own, "callbacks=summary") == built(own, "callbacks=[summary]") == NAMES[1:]
    assert built(own, "callbacks=[]") == []


def test_a_bad_callback_is_refused_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"callbacks=null: no set is callbacks=none, and callbacks.NAME=null drops one"
    ):
        quote_override("callbacks=null")
    with pytest.raises(ValueError, match=r"callbacks.timer=3: expected a node with a _target_, or null to drop it"):
        build_nodes({"timer": 3}, where="callbacks")
    with pytest.raises(ValueError, match=r"callbacks='x': expected nodes by name, or a list of nodes"):
        build_nodes("x", where="callbacks")
    assert build_nodes(None, where="callbacks") == []
