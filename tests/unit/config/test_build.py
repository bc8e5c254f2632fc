"""build(): what it builds, and what it refuses before building anything."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from restore_lab.config.build import TRUST_VARIABLE, InvalidTarget, build, resolve_target, trust

STEP = {"_target_": "restore_lab.types.Step", "kind": "blur"}
TAP = {"_target_": "restore_lab.types.Tap", "name": "a", "kind": "join", "channels": 4, "stride": 1}


def test_nested_nodes_lists_and_interpolations_are_built() -> None:
    config = OmegaConf.create(
        {
            "seed": 7,
            "part": {
                "_target_": "restore_lab.types.Recipe",
                "pipeline": "p",
                "seed": "${seed}",
                "steps": [STEP, {**STEP, "kind": "noise", "params": {"sigma": 0.1}}],
            },
        }
    )
    recipe = build(config.part)
    assert recipe.seed == 7
    assert recipe.kinds == ("blur", "noise")
    assert type(recipe.steps[1].params) is dict


def test_overrides_are_live_objects_and_replace_the_config() -> None:
    marker = object()
    refused = {"_target_": "os.system", "command": "true"}
    assert build({**STEP, "params": refused}, params=marker).params is marker


def test_partial_nodes_are_not_built_recursively() -> None:
    factory = build({**TAP, "_partial_": True, "stride": 2}, skip=1)
    assert isinstance(factory, functools.partial)
    assert factory(channels=9).channels == 9
    inner = build({**STEP, "params": STEP, "_recursive_": False}).params
    assert inner == STEP


def test_free_text_with_an_escaped_interpolation_arrives_as_typed() -> None:
    config = OmegaConf.create({**STEP, "says": r"cost \${5}"})
    assert build(config).says == "cost ${5}"


def test_none_builds_none_and_text_is_refused() -> None:
    assert build(None) is None
    with pytest.raises(ValueError, match="expected a config node"):
        build("restore_lab.types.Step")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "restore_labx.evil",
        "restore_lab.config.build.os.remove",
        "restore_lab.config.build.build",
        "restore_lab.cli.main.main",
        "restore_lab.storage.atomic.write_bytes_atomic",
        "restore_lab.types.json.loads",
        "torch.nn.modules.module.torch.load",
        "",
        3,
        ["restore_lab.types.Step"],
    ],
)
def test_targets_outside_the_allowlist_are_refused(target: object) -> None:
    with pytest.raises(InvalidTarget, match="_target_") as caught:
        build({"_target_": target})
    assert "\n" not in str(caught.value)


def test_a_bad_target_deep_inside_stops_everything_before_anything_is_built(tmp_path: Path) -> None:
    made = tmp_path / "made"
    config = {**STEP, "params": {"a": [{"_target_": "pathlib.Path.touch", "_args_": [str(made)]}]}}
    with pytest.raises(InvalidTarget, match=r"params\.a\[0\]: _target_ 'pathlib\.Path\.touch' is not allowed"):
        build(config)
    assert not made.exists()


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidTarget, match="did you mean 'Step'"):
        resolve_target("restore_lab.types.Stepp")
    with pytest.raises(InvalidTarget, match="does not exist"):
        resolve_target("restore_lab.no_such_module.Part")


def test_arguments_are_checked_before_building() -> None:
    with pytest.raises(ValueError, match="takes no 'chanels'; did you mean 'channels'"):
        build({**TAP, "chanels": 3})
    with pytest.raises(ValueError, match=r"missing a required.*'stride'"):
        build({key: value for key, value in TAP.items() if key != "stride"})
    with pytest.raises(ValueError, match="part"):
        build(OmegaConf.create({"part": {**TAP, "stride": "???"}}))


def test_packages_are_trusted_only_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab_for_test.py").write_text("class Part:\n    def __init__(self, n):\n        self.n = n\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    config = {"_target_": "my_lab_for_test.Part", "n": 3}
    with pytest.raises(InvalidTarget, match="trusted_packages"):
        build({**config, "trusted_packages": ["my_lab_for_test"]})
    assert "my_lab_for_test" not in sys.modules, "refused before it is imported"
    monkeypatch.setenv(TRUST_VARIABLE, "")
    trust(["my_lab_for_test"])
    assert build(config).n == 3
    with pytest.raises(ValueError, match="not the name of a Python package"):
        trust(["os;rm"])
