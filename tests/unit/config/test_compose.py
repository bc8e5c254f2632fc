"""Configs composed in Python equal the command line's, and weights bring the parts that they were trained with."""

from __future__ import annotations

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra

from restore_lab.config.compose import compose_config, merge_and_log, training_overrides
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.config_source import hydra_at
from restore_lab.training.run import fit
from tests.helpers import configs
from tests.helpers.manifests import manifest_folder


def test_compose_config_equals_the_command_line_and_keeps_a_running_hydra() -> None:
    with hydra_at(conf_dir()):
        mine = compose("restore")
        found = compose_config("restore", ["method=supir", "caption=a cat, asleep", "input=x"])
        assert GlobalHydra.instance().is_initialized()
        assert compose("restore") == mine
    assert found.caption == "a cat, asleep"
    assert found.name == "supir"  # ${hydra:runtime.choices.method}
    assert "hydra" not in found
    with pytest.raises(ValueError, match="sampler/no_such"):
        compose_config("restore", ["sampler=no_such"])
    with pytest.raises(ValueError, match="no_such"):
        compose_config("restore", ["sampler.no_such=1"])


def test_weights_bring_their_parts_and_typed_words_win(tmp_path) -> None:
    made = manifest_folder(
        tmp_path / "a, b", "method=supir", "adaptor/fusion=zero_sft", "sampler.steps=7", "max_steps=3"
    )
    said = (f"weights='{made}'", "sampler.steps=9")
    assert merge_and_log(said) == ("method=supir", "adaptor/fusion=zero_sft", *said)
    for alone in ("follow=false", "follow=False"):
        assert merge_and_log((*said, alone)) == (*said, alone)
    assert merge_and_log(("input=x",)) == ("input=x",)
    assert merge_and_log((f"weights={tmp_path}/not_there",)) == (f"weights={tmp_path}/not_there",)


def test_a_manifest_holds_the_overrides_of_its_run(toy_folder, tmp_path) -> None:
    words = (*configs.small(toy_folder), "adaptor.text=none", "max_steps=1", f"runs_dir={tmp_path}", "progress=false")
    cpu = ("trainer.accelerator=cpu", "trainer.devices=1", "logger=none")
    run = fit(configs.composed("train", *words, *cpu))
    found = compose_config("restore", [*merge_and_log((f"weights={run}",)), "input=x"])
    assert found.adaptor.text == "none"
    assert found.backbone.path == "asset:tiny_sd"  # a path is not taken from a manifest
    assert "max_steps=1" not in training_overrides(run).accepted


@pytest.mark.parametrize("experiment", ["spire/quickstart", "spire/from_nothing", "dra/sd3"])
def test_a_run_of_an_experiment_can_be_evaluated(experiment, tmp_path) -> None:
    """The experiment comes along with the weights: it must neither take the images away nor name the folder."""
    run = manifest_folder(tmp_path / "run", f"experiment={experiment}")
    found = compose_config("evaluate", merge_and_log((f"weights={run}",)))
    assert found.eval_data._target_.endswith("PhotosSource")
    assert found.run_dir is None
    assert found.weights == str(run)
