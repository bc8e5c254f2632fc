"""The group aliases eval_data and eval_degradation work wherever Hydra takes a group, without symlinks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hydra import compose
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from restore_lab.cli.errors import groups
from restore_lab.cli.main import main
from restore_lab.config.conf_dir import conf_dir, experiments_dir
from restore_lab.config.config_source import GROUP_ALIASES, FileConfigSource, hydra_at, register
from tests.helpers.checkout import ROOT
from tests.helpers.configs import composed

SECOND = sorted(GROUP_ALIASES.items())


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's config folder: a degradation, data in `eval_data` only, an experiment with both."""
    files = {
        "degradation/handheld.yaml": "_target_: restore_lab.degradation.fixed.FixedDegradation\nstages: {noise: 0.5}\n",
        "eval_data/mine.yaml": "_target_: mine\n",
        "experiment/both.yaml": "# @package _global_\n"
        "defaults:\n  - override /eval_degradation: handheld\n  - override /eval_data: mine\n",
    }
    for name, text in files.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    return tmp_path / "conf"


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["restore-lab", *words])
    main()


def test_the_tree_has_no_symlink() -> None:
    """Wheels, archives and Windows have none."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--stage"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        assert listed
        assert [line for line in listed if line.startswith("120000")] == []
    folders = ("restore_lab", "conf", "experiments", "docs", "tests", "benchmarks")
    walks = (entry for folder in folders for entry in os.walk(ROOT / folder))
    assert [name for base, inner, files in walks for name in (*inner, *files) if Path(base, name).is_symlink()] == []


@pytest.mark.parametrize(("second", "first"), SECOND)
def test_both_names_have_the_same_options(second: str, first: str) -> None:
    found = groups([conf_dir()])
    assert found[second] == found[first]
    assert {group.partition("/")[2] for group in found if group.startswith(f"{second}/")} == {
        group.partition("/")[2] for group in found if group.startswith(f"{first}/")
    }


def test_an_option_is_the_same_under_both_names() -> None:
    cfg = composed("train", "data=df2k", "eval_data=df2k", "degradation=robust", "eval_degradation=robust")
    assert cfg.data == cfg.eval_data and cfg.degradation == cfg.eval_degradation
    pairs = composed("train", "data=paired", "eval_data=paired", "data/rule=suffix", "eval_data/rule=regex")
    assert OmegaConf.to_container(pairs.data.rule) == OmegaConf.load(conf_dir() / "data/rule/suffix.yaml")
    assert OmegaConf.to_container(pairs.eval_data.rule) == OmegaConf.load(conf_dir() / "data/rule/regex.yaml")


def test_a_config_dir_has_both_names_too(own: Path, monkeypatch, capsys) -> None:
    run(monkeypatch, "evaluate", f"--config-dir={own}", "experiment=both", "--cfg", "job")
    cfg = OmegaConf.create(capsys.readouterr().out)
    assert OmegaConf.select(cfg, "eval_degradation.stages.noise") == 0.5
    assert cfg.eval_data == {"_target_": "mine"}
    assert {"handheld", "mine"} <= {option for options in groups([own]).values() for option in options}
    assert experiments_dir(own) == own / "experiment"


def test_a_sweep_takes_the_second_name(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr("restore_lab.cli.describe.run", lambda cfg: print("job", cfg.eval_data["_target_"]))
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "describe", "-m", "eval_data=photos,procedural")
    jobs = [line.rpartition(".")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("job ")]
    assert jobs == ["PhotosSource", "ProceduralSource"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("eval_degradation=sr4", "eval_degradation=sr4_noise40"),
        ("eval_data=paired eval_data/rule=", "eval_data/rule=suffix"),
    ],
)
def test_the_shell_completes_the_second_name(monkeypatch, capsys, typed: str, offered: str) -> None:
    monkeypatch.setenv("COMP_LINE", f"restore-lab evaluate {typed}")
    run(monkeypatch, "-sc", "query=bash")
    assert offered in capsys.readouterr().out.split()


def test_the_second_name_is_suggested_for_a_typo(monkeypatch, capsys) -> None:
    for word, line in (
        ("eval_data=photo", "no option 'photo' for eval_data; did you mean 'photos'?"),
        ("evaldata=photos", "no setting or group 'evaldata'; did you mean 'eval_data'?"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, "evaluate", word)
        assert stop.value.code == 2 and line in capsys.readouterr().err


def test_hydras_own_source_may_be_registered_again() -> None:
    """As in a launcher's worker, which gets the registry and then looks for Hydra's plugins."""
    register()
    SourcesRegistry.instance().register(file_config_source.FileConfigSource)
    assert SourcesRegistry.instance().resolve("file") is FileConfigSource


def test_hydras_own_api_composes_over_a_folder(own: Path) -> None:
    with hydra_at(own):
        assert "noise" in compose(overrides=["+eval_degradation=handheld"]).eval_degradation.stages
    assert not GlobalHydra.instance().is_initialized()


def test_a_folder_without_configs_takes_no_settings_name(tmp_path: Path) -> None:
    """A project's own folder as --config-dir, with results in it."""
    for name in ("output", "name", "input/photos"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "input/photos/a.png").touch()
    cfg = composed("restore", f"hydra.searchpath=[file://{tmp_path}]", "input=x", "output=there", "name=mine")
    assert (cfg.input, cfg.output, cfg.name) == ("x", "there", "mine")


def test_an_edited_file_is_composed_anew(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part/one.yaml").write_text("steps: 1")
    with hydra_at(tmp_path):
        for text, steps in (("steps: 1", 1), ("steps: 23", 23)):
            (tmp_path / "part/one.yaml").write_text(text)
            assert [compose(overrides=["+part=one"]).part.steps for _ in range(2)] == [steps, steps]
            assert compose(overrides=["+part=one", "part.steps=5"]).part.steps == 5
