"""A composed config is checked before anything loads: one line with value, expectation and nearest name."""

from __future__ import annotations

import copy
import errno
import re
from collections.abc import Iterator

import pytest
from omegaconf import DictConfig, OmegaConf

from restore_lab.cli.main import verbs
from restore_lab.config.checks import check_config, check_files
from restore_lab.config.grammar import names_path
from restore_lab.config.suggest import nearest, offer
from restore_lab.storage.free_space import require
from restore_lab.system.faults import describe_fault
from tests.helpers.configs import composed

OPTIMISATION = {"_target_": "restore_lab.training.module.Optimisation", "lr": 1e-4}
SAMPLER = {"_target_": "restore_lab.samplers.loop.SchedulerSampler"}
RSS = {"_target_": "restore_lab.samplers.fidelity.rss.RestorationSampling"}
BACKBONE = {"_target_": "restore_lab.backbones.loading.load.load_backbone"}
GUIDANCE = {"_target_": "restore_lab.samplers.guidance.ClassifierFree"}
WRONG = [
    ({"max_steps": "many"}, "max_steps=many: expected a whole number from 1 to 1000000000 (optimiser steps)"),
    ({"max_steps": 0}, "max_steps=0: expected a whole number from 1 to 1000000000 (optimiser steps)"),
    ({"max_steps": None}, "max_steps=null: expected a whole number"),
    ({"batch_size": 2.5}, "batch_size=2.5: expected a whole number from 1 to 65536 (images)"),
    ({"batch_size": True}, "batch_size=true: expected a whole number"),
    ({"optimisation": {**OPTIMISATION, "lr": 0}}, "optimisation.lr=0: expected a number above 0"),
    ({"optimisation": {**OPTIMISATION, "lr": float("nan")}}, "optimisation.lr=nan: expected a number above 0"),
    ({"optimisation": {**OPTIMISATION, "betas": [0.9]}}, "optimisation.betas=[0.9]: expected a list (2 of a number"),
    ({"optimisation": {**OPTIMISATION, "betas": [0.9, 2]}}, "optimisation.betas[1]=2: expected a number"),
    (
        {"optimisation": {**OPTIMISATION, "lr_": 1}},
        "Optimisation takes no 'lr_'; did you mean 'lr'?",
    ),
    ({"sampler": {**SAMPLER, "start": 1.5}}, "sampler.start=1.5: expected a number above 0 and at most 1 (a share of"),
    (
        {"sampler": {**SAMPLER, "guidance": 3}},
        "sampler.guidance=3: expected a part (a node with _target_); choose",
    ),
    ({"sampler": {**SAMPLER, "guidance": {"scale": 3}}}, "expected a part (a node with _target_)"),
    ({"sampler": {**SAMPLER, "fidelity": {**RSS, "threshold": 1.0}}}, "expected a number of at least 0 and below 1"),
    ({"workers": -1}, "workers=-1: expected a whole number from 0 to 1024 (processes that read data)"),
    ({"crop": 0}, "crop=0: expected a whole number from 1 to 65536 (pixels), or null"),
    ({"precision": "bf16-mix"}, "precision=bf16-mix: expected 32-true, bf16-mixed"),
    ({"optimisation": {**OPTIMISATION, "decay": "cosin"}}, "optimisation.decay=cosin: did you mean cosine?"),
    ({"backbone": {**BACKBONE, "dtype": "flaot16"}}, "did you mean float16? there are: float32, float16, bfloat16"),
    ({"device": "gpu!"}, "device=gpu!: expected auto, cpu, cuda, cuda:1 or mps"),
    ({"module": None}, "module=null: expected a part"),
    ({"ordered": 3}, "ordered=3: expected a list (text), or null"),
    (
        {"name": "${nothing}"},
        "name: Interpolation key 'nothing' not found; a setting or part",
    ),
]


@pytest.mark.parametrize(("settings", "said"), WRONG, ids=[said.partition(":")[0] for _, said in WRONG])
def test_a_bad_value_is_refused_in_one_line(settings, said) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_config(OmegaConf.create(settings), verb="restore")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 1, "crop": None, "seed": 0, "device": "cuda:3", "unknown": 3},
        {"sampler": {**SAMPLER, "guidance": {**GUIDANCE, "scale": {"_target_": "x"}}, "fidelity": RSS}},
        {"optimisation": {**OPTIMISATION, "fused": True, "lr": "${rate}"}, "rate": 1e-4},
        {"max_steps": "???", "format": "same"},
        {"hydra": {"launcher": {"_target_": 3}}},
    ],
)
def test_a_good_value_passes(settings) -> None:
    check_config(OmegaConf.create(settings), verb="restore")


VERBS = sorted(verbs())


def places(node: DictConfig, within: str = "") -> Iterator[str]:
    """Every setting, written in full, that holds a path or may hold one."""
    for key in node:
        if OmegaConf.is_missing(node, key) or not OmegaConf.is_config(child := node._get_node(key)):
            if names_path(str(key)):
                yield f"{within}{key}"
        elif isinstance(child, DictConfig) and not OmegaConf.is_interpolation(node, key) and not child._is_none():
            yield from places(child, f"{within}{key}.")


@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_path_is_never_the_working_directory(verb) -> None:
    """Of every setting of every verb: `input=$UNSET` is refused by its name."""
    more = {"train": ["data=folder"], "evaluate": ["eval_data=folder"], "caption": ["data=lsdir"]}.get(verb, [])
    cfg = composed(verb.replace("import_", "import"), *more)
    found = list(places(cfg))
    assert verb == "doctor" or found
    for number, place in enumerate(found):
        within, _, key = place.rpartition(".")
        node = OmegaConf.select(cfg, within) if within else cfg
        before, node[key] = copy.deepcopy(node._get_node(key)), ("", " ", [""], ["x", ""])[number % 4]
        with pytest.raises(ValueError, match=re.escape(f"{place}= is empty")):
            check_config(cfg, verb=verb)
        node.__dict__["_content"][key] = before


def test_an_empty_path_of_pairs_is_refused_and_an_empty_suffix_passes(monkeypatch) -> None:
    words = ("eval_data=paired", "eval_data.lq=x", "eval_data.hq=x")
    for place in ("eval_data.lq", "eval_data.hq"):
        cfg = composed("evaluate", *words, f"{place}=''")
        with pytest.raises(ValueError, match=re.escape(f"{place}= is empty")):
            check_config(cfg, verb="evaluate")
    rule = ("pairing._target_=restore_lab.data.sources.paired.SuffixStem", "+pairing.lq=''", "+pairing.hq=_clean")
    check_config(composed("evaluate", *rule), verb="evaluate")
    monkeypatch.setenv("RESTORE_LAB_DATASETS", "")
    with pytest.raises(ValueError, match="datasets_dir= is empty"):
        check_config(composed("evaluate"), verb="evaluate")


def test_a_number_in_another_notation_is_converted() -> None:
    typed = {"max_steps": 1e5, "batch_size": 2.0, "precision": 16, "name": 2024, "size": [32.0, 48], "overrides": [3]}
    cfg = OmegaConf.create({**typed, "also": "${max_steps}"})
    check_config(cfg, verb="restore")
    meant = {"max_steps": 100_000, "batch_size": 2, "precision": "16", "name": "2024", "size": [32, 48]}
    assert cfg == {**meant, "overrides": ["3"], "also": 100_000}
    assert isinstance(cfg.max_steps, int) and isinstance(cfg.batch_size, int)


def test_each_verb_has_its_formats() -> None:
    with pytest.raises(ValueError, match="format=jsn: did you mean json"):
        check_config(OmegaConf.create({"format": "jsn"}), verb="evaluate")
    with pytest.raises(ValueError, match="format=text: there are: png, jpeg, webp, tiff, same"):
        check_config(OmegaConf.create({"format": "text"}), verb="restore")


@pytest.mark.parametrize(
    ("verb", "settings", "said"),
    [
        ("train", {"run_dir": "file"}, "run_dir=file: .*file: a file is in the way; name another folder, or delete it"),
        ("evaluate", {"run_dir": "file/below"}, "a file is in the way"),
        ("restore", {"output": "dangling"}, "output=dangling: .*: a broken link is in the way"),
        ("export", {"output": "a" * 300}, "a name of more than 255 bytes; give a shorter one"),
        ("report", {"output": "folder"}, "output=folder: it is a folder; name a file"),
        ("diff", {"trace": "file/below"}, "trace=file/below: .*a file is in the way"),
    ],
)
def test_unwritable_outputs_are_refused_before_work(verb, settings, said, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    cfg = OmegaConf.create({"explain": False, "restored": None, "system": None, **settings})
    with pytest.raises(ValueError, match=said):
        check_files(cfg, verb=verb)
    check_files(OmegaConf.create({**cfg, next(iter(settings)): "folder/new"}), verb=verb)


@pytest.mark.parametrize(("verb", "setting"), [("train", "runs_dir"), ("restore", "output"), ("evaluate", "runs_dir")])
def test_a_read_only_working_directory_is_refused(verb, setting, tmp_path, monkeypatch) -> None:
    """What root may do tells nothing, so what the system says of the folder is put in its place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda place, mode: str(place) != str(tmp_path))
    cfg = OmegaConf.create({"explain": False, "restored": None, "system": None, setting: "runs"})
    said = (
        rf"^{setting}=runs: {re.escape(str(tmp_path))}: cannot be written to; make it writable, or name another folder$"
    )
    with pytest.raises(ValueError, match=said):
        check_files(cfg, verb=verb)


def test_missing_input_files_are_refused(tmp_path) -> None:
    cfg = composed("train", "data=folder", f"data.root={tmp_path / 'nope'}", "stage=adapter")
    with pytest.raises(ValueError, match="stage='adapter' is not known here; did you mean 'adaptor'"):
        check_config(cfg, verb="train")
    with pytest.raises(ValueError, match=r"^data\.root=.*nope: no such file or folder$"):
        check_files(cfg, verb="train")
    cfg.data.root = str(tmp_path)
    check_files(cfg, verb="train")
    cfg.weights = "runs/nope"
    with pytest.raises(ValueError, match="weights=runs/nope: no such file or folder; train some"):
        check_files(cfg, verb="train")
    cfg.weights, cfg.backbone.path = None, "nope"
    with pytest.raises(ValueError, match=r"backbone\.path=nope: no such file or folder; give a diffusers-format"):
        check_files(cfg, verb="train")
    cfg.backbone.path = ["nope", "owner/name"]  # perhaps the hub's
    check_files(cfg, verb="train")


def test_a_missing_public_dataset_names_its_source(tmp_path) -> None:
    cfg = composed("evaluate", "eval_data=cbsd68", f"datasets_dir={tmp_path}")
    with pytest.raises(ValueError, match=r"eval_data\.source\.root=.*CBSD68: .* it comes from .*doctor data=cbsd68"):
        check_files(cfg, verb="evaluate")
    cfg.restored = str(tmp_path)  # reads no test images of its own
    check_files(cfg, verb="evaluate")


def test_files_that_the_run_makes_are_not_missing() -> None:
    cfg = composed("train", "method=instantir", "weights=stage:previewer", "data=folder", "data.root='made:negatives'")
    check_files(cfg, verb="train")


def test_a_misspelt_name_gets_the_nearest_one() -> None:
    assert nearest("spier", ["supir", "spire"]) == "spire"  # equally near, of the same letters
    assert nearest("xyz", ["supir"]) is None
    assert offer("nope", []) == ""
    assert offer("sprie", ["spire", "dra"]) == "; did you mean 'spire'? there are: spire, dra"


def test_too_little_disk_space_is_refused(tmp_path) -> None:
    require(tmp_path / "not" / "there", needed=1, what="results")
    with pytest.raises(ValueError, match=r"results take about 1048576\.00 GiB, and .* GiB are free"):
        require(tmp_path, needed=2**50, what="results")


def _behind(error: Exception, first: Exception) -> Exception:
    error.__context__ = first
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device; free some"),
        (OSError(errno.EROFS, "Read-only file system"), "runs: Read-only file system; make it writable"),
        (OSError(errno.EIO, "Input/output error"), "runs: Input/output error; bring the disk back"),
        (_behind(RuntimeError("unexpected pos 768 vs 662"), OSError(errno.ENOSPC, "No space")), "runs: No space; free"),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), "was killed (pid 12), mostly"),
        (RuntimeError("DataLoader worker (pid(s) 3, 4) exited unexpectedly"), "was killed (pid 3, 4)"),
        (
            RuntimeError("CUDA error: an illegal memory access\nCUDA kernel errors might"),
            "the device failed (CUDA error",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            "out of memory (CUDA out of memory); lower batch",
        ),
        (MemoryError(), "out of memory; lower batch_size"),
        (RuntimeError("shapes do not match"), None),
        (KeyError("x"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), None),
    ],
)
def test_machine_faults_are_described_and_bugs_are_not(error, said) -> None:
    found = describe_fault(error, where="runs")
    assert (said is None) == (found is None)
    assert said is None or said in str(found)
