"""Received files are data: no code in a pickle, a YAML, a manifest or next to weights is run, no name leads outside.

Each attack is shown to be live first, where it could be: the same bytes do run in a reader that trusts them. Hostile
tars are in test_shards, images in test_hostile_folder, checkpoints in test_import_others, the page in test_demo.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from restore_lab.cli.main import main
from restore_lab.config.compose import OVERRIDES_KEY, merge_and_log
from restore_lab.evaluation.degraded import write_inputs
from restore_lab.evaluation.metrics.clip import Clip
from restore_lab.evaluation.metrics.paper import PaperMetric
from restore_lab.evaluation.protocol import MetricUnavailable
from restore_lab.prompts.captioner import load_captioner
from restore_lab.prompts.visual import ClipVision, DinoVision
from restore_lab.storage.artefact import Manifest
from restore_lab.storage.safe_names import path_inside
from tests.helpers.checkout import PACKAGE
from tests.helpers.configs import composed, few_photos
from tests.helpers.payload import Payload, code
from tests.helpers.toy_captioners import toy_captioner

ASSETS = PACKAGE / "assets"
MODULES = sorted((ASSETS.parent).rglob("*.py"))
NO_WEIGHTS = ("Tokenizer", "Processor", "Config")
AUTO = "Auto"


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line's exit status, and the lines that it says of an error."""

    def called(*words: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["restore-lab", *words])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), capsys.readouterr().err.strip().splitlines()

    return called


# Weights of others ---------------------------------------------------------------------------------------------------


def readers(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call for call in calls if call.func.attr == "from_pretrained"]  # type: ignore[union-attr]


def test_every_reader_of_a_model_wants_safetensors_and_no_code() -> None:
    found = 0
    for path in MODULES:
        for call in readers(path):
            of = ast.unparse(call.func.value).rpartition(".")[2]  # type: ignore[union-attr]
            said = {word.arg: ast.unparse(word.value) for word in call.keywords}
            where = f"{path.name}:{call.lineno}: {of}"
            if not of.endswith(NO_WEIGHTS):
                assert said.get("use_safetensors") == "True", where
            if of.startswith(AUTO) and of != "AutoencoderKL":
                assert said.get("trust_remote_code") == "False", where
            found += 1
    assert found >= 10


def poisoned(folder: Path, mark: Path) -> Path:
    """A shipped model whose weights have become a pickle that does something."""
    shutil.copytree(ASSETS / folder.name, folder)
    weights = folder / "model.safetensors"
    torch.save({**load_file(weights), "extra": Payload(mark)}, folder / "pytorch_model.bin")
    weights.unlink()
    return folder


@pytest.mark.parametrize("reader", [lambda place: ClipVision(path=str(place)), Clip])
def test_a_clip_in_a_pickle_is_not_opened(reader, tmp_path) -> None:
    mark = tmp_path / "ran"
    folder = poisoned(tmp_path / "tiny_clip", mark)
    with pytest.raises((ValueError, MetricUnavailable), match=r"safetensors"):
        reader(folder)
    assert not mark.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("kind", ["captioner", "dino"])
def test_code_beside_a_model_is_not_imported(kind, tmp_path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "ran"
    if kind == "dino":
        shutil.copytree(ASSETS / "tiny_dino", folder)
    else:
        toy_captioner(folder, "llava")
    settings = json.loads((folder / "config.json").read_text())
    settings["model_type"] = "theirs"
    classes = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText")
    settings["auto_map"] = {name: f"theirs.{name}" for name in classes}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "theirs.py").write_text(code(mark))
    with pytest.raises(ValueError, match=r"custom code|trust_remote_code"):
        DinoVision(path=str(folder)) if kind == "dino" else load_captioner(str(folder), bits=None, device="cpu")
    assert not mark.exists()


def test_metric_weights_are_read_as_tensors_only(tmp_path, monkeypatch) -> None:
    """pyiqa itself would run them: it loads with weights_only=False."""
    pytest.importorskip("pyiqa")
    from pyiqa.archs.arch_util import load_pretrained_network
    from pyiqa.utils import download_util

    mark = tmp_path / "ran"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "pyiqa"))
    (tmp_path / "pyiqa").mkdir()
    file = tmp_path / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth"
    torch.save({"extra": Payload(mark)}, file)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MetricUnavailable, match="musiq: pyiqa cannot set it up"):
        PaperMetric(name="musiq")(image, None, None)
    assert not mark.exists()
    with pytest.raises(RuntimeError):
        load_pretrained_network(torch.nn.Linear(1, 1), str(file))
    assert mark.exists()


# Configs of others ---------------------------------------------------------------------------------------------------


def test_a_config_next_to_weights_builds_no_foreign_class(tmp_path) -> None:
    """Not even what the allowlist lets pass: parts are chosen by their groups."""
    words = (
        "sampler._target_=restore_lab.data.photograph_file.write_photograph",
        "adaptor={_target_: os.system}",
        "prompt.semantic={_target_: restore_lab.storage.atomic.write_bytes_atomic, path: /tmp/x, data: x}",
        "trusted_packages=[theirs]",
        "method=dra",
    )
    Manifest(identity="0" * 16, kind="adaptor", settings={}, parents=(), extra={OVERRIDES_KEY: list(words)}).write(
        tmp_path
    )
    assert merge_and_log([f"weights={tmp_path}"]) == ("method=dra", f"weights={tmp_path}")


@pytest.mark.parametrize("where", ["group", "table"])
def test_yaml_with_tags_is_refused_and_runs_nothing(where, run, tmp_path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "conf" / "experiment" / "theirs.yaml"
    file.parent.mkdir(parents=True)
    tagged = f"!!python/object/apply:os.mknod [{mark}]"
    head = "# @package _global_\n" + ("" if where == "group" else "table:\n  title: theirs\n  rows:\n    ")
    file.write_text(f"{head}seed: {tagged}\n")
    words = ("train", "experiment=theirs", "--cfg", "job") if where == "group" else ("table", "theirs", "--plan")
    status, said = run(*words, "--config-dir", str(tmp_path / "conf"))
    assert status != 0 and len(said) == 1
    assert "python/object/apply" in said[0] and "theirs" in said[0]
    assert not mark.exists()
    yaml.unsafe_load(file.read_text())
    assert mark.exists()


def test_a_package_is_trusted_only_by_the_command_line(tmp_path) -> None:
    """A target that is not allowed is refused before its module is imported."""
    mark = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(code(mark))
    words = ("restore", "input=x", "sampler._target_=theirs.Sampler")
    done = subprocess.run(
        [sys.executable, "-m", "restore_lab.cli.main", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0 and not mark.exists()
    assert len(done.stderr.strip().splitlines()) == 1


# Names of others -----------------------------------------------------------------------------------------------------


def test_image_names_that_lead_out_of_the_folder_are_refused(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    for name in ("../x.png", "/etc/x.png", "a/../../x.png", "link/x.png"):
        with pytest.raises(ValueError, match="leads out of"):
            path_inside(tmp_path / "out", name)
    assert path_inside(tmp_path / "out", "a/b..c/.x.png") == tmp_path / "out/a/b..c/.x.png"


def test_dataset_keys_that_lead_out_of_the_folder_are_refused(tmp_path, monkeypatch) -> None:
    cfg = composed("evaluate", *few_photos(), "eval_degradation=noise")
    from restore_lab.data.sources.photos import PhotosSource

    monkeypatch.setattr(PhotosSource, "keys", lambda self: ["../out", "../../etc"])
    with pytest.raises(ValueError, match="leads out of"):
        write_inputs(cfg, tmp_path / "in")
    assert not list(tmp_path.rglob("*.png"))
