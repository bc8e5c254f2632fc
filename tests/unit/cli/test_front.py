"""The command line: quoting, flags, positional names, one-line errors, and a start without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from restore_lab.cli import errors, front
from restore_lab.cli.main import main, verbs
from restore_lab.config.conf_dir import conf_dir

HARD = [
    "a cat's, asleep",
    "x=1, y=[2]",
    '{"a": 1}',
    "50% ${off} \\${x}",
    "back\\",
    "it's \\' \\\\'",
    "\u00dcn\u00ef, \u2713",
    "\n",
    " ",
]

Toy = Callable[..., tuple[int, str, str]]

# A verb of its own, run as the console script runs one: the package has none that is as small.
TOY = """
import json, sys, types
from pathlib import Path
from omegaconf import OmegaConf
from restore_lab.config.build import build
from restore_lab.cli.main import run_verb

def run(cfg):
    assert "torch" not in sys.modules, "the command line loaded torch"
    print(json.dumps([OmegaConf.to_container(cfg, resolve=True), sys.argv[1:]]))
    if cfg.part is not None:
        build(cfg.part)
    if cfg.steps == 13:
        Path("not there.png").read_bytes()
    if cfg.steps == 14:
        raise RuntimeError("a bug")

verb = types.SimpleNamespace(run=run, POSITIONAL=("input",), FREE_TEXT=("motto",), __doc__="toy")
run_verb(verb="toy", module=verb, words=sys.argv[1:], conf=Path(CONF))
if "torch" in sys.modules:
    sys.exit("the command line loaded torch")
"""


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of configs with one verb, two groups and the package's hydra_defaults."""
    folder = tmp_path_factory.mktemp("conf")
    files = {
        "hydra_defaults.yaml": (conf_dir() / "hydra_defaults.yaml").read_text(encoding="utf-8"),
        "toy.yaml": "defaults:\n  - hydra_defaults\n  - data: photos\n  - prompt/semantic: none\n  - _self_\n"
        "caption: null\ninstruction: ''\ninput: null\nmotto: ''\nsteps: 10\nplan: false\npart: null\n",
        "data/photos.yaml": "names: [a]\n",
        "data/folder.yaml": "root: ''\nrecursive: false\n",
        "prompt/semantic/none.yaml": "text: ''\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def toy(conf: Path, tmp_path: Path) -> Toy:
    """Run the toy verb in a process of its own; gives (exit code, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        script = tmp_path / "toy.py"
        script.write_text(TOY.replace("CONF", repr(str(conf))), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script), *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    return call


def script(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `restore-lab` itself."""
    code = "import sys; from restore_lab.cli.main import main; main(); sys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


def hydra_reads(word: str) -> object:
    """The value that Hydra's parser and then OmegaConf make of an override."""
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    config = OmegaConf.create({})
    OmegaConf.update(config, "key", override.value())
    return config.key


@pytest.mark.parametrize("text", HARD)
def test_free_text_reaches_the_config_as_typed(text: str) -> None:
    word = front.quote_override(f"caption={text}")
    assert hydra_reads(word) == text
    assert front.quote_override(word) == word, "parsing twice changes nothing"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet=st.sampled_from("a'\"\\$[]{}(),=:; #\u00e9\n\t0"), max_size=12))
def test_any_text_survives_quoting(text: str) -> None:
    assert hydra_reads(f"caption={front.quote(text)}") == text


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("data.hq_root=/my photos, 1", "data.hq_root='/my photos, 1'"),
        ("+prompt.semantic.text=a, b", "+prompt.semantic.text='a, b'"),
        ("input=a=b.jpg", "input='a=b.jpg'"),
        ("motto=a, b", "motto='a, b'"),
        ("prompt/instruction=blind", "prompt/instruction=blind"),
        ("caption=null", "caption=null"),
        ("caption=", "caption="),
        ("caption='a, b'", "caption='a, b'"),
        ("backbone.path=[a,b]", "backbone.path=[a,b]"),
        ("steps=1,2", "steps=1,2"),
        ("hydra.run.dir=x", "hydra.run.dir=x"),
        ("~data", "~data"),
        ("motto={name}_4x", "motto='{name}_4x'"),
        ("eval_data.motto=[a,b]", "eval_data.motto=[a,b]"),
    ],
)
def test_only_free_text_and_paths_are_quoted(word: str, quoted: str) -> None:
    assert front.quote_override(word, free=("motto",)) == quoted


def test_flags_positional_names_and_trust() -> None:
    typed = front.parse(
        ["spire/table5", "--plan", "-m", "steps=1,2", "--config-dir", "my conf", "--format=json", "--cfg=job"]
        + ["trusted_packages=[my_lab, other]", "--dry-run", "-i", "searchpath", "second file.png", "3"],
        positional=("table", "files..."),
    )
    assert typed.flags == ("-m", "--config-dir", "my conf", "--cfg=job", "-i", "searchpath")
    assert typed.overrides == (
        *("plan=true", "steps=1,2", "format=json", "dry_run=true"),
        *("table=spire/table5", "files=['second file.png','3']"),
    )
    assert typed.trusted_packages == ("my_lab", "other")
    assert typed.config_dirs == [Path("my conf").resolve()]


def test_a_setting_may_have_an_alias() -> None:
    typed = front.parse(["scale=full", "scaled=1", "sampler.scale=2"], aliases={"scale": "at_scale"})
    assert typed.overrides == ("at_scale=full", "scaled=1", "sampler.scale=2")


def test_an_extra_word_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot place 'b\.jpg': this verb takes input and settings"):
        front.parse(["a.jpg", "b.jpg"], positional=("input",))


def test_difficult_text_reaches_a_verb_unchanged(toy: Toy) -> None:
    words = ["my photo, 1.jpg", "instruction=Denoise with sigma 0.06; Deblur", f"caption={HARD[0]}", f"motto={HARD[3]}"]
    code, out, err = toy(*words)
    assert (code, err) == (0, "")
    config, argv = json.loads(out)
    assert (config["input"], config["caption"], config["motto"]) == (words[0], HARD[0], HARD[3])
    assert config["instruction"] == "Denoise with sigma 0.06; Deblur"
    assert argv == words, "Lightning's other ranks are started with the words as typed"


def test_a_comma_in_free_text_starts_no_sweep(toy: Toy, tmp_path: Path) -> None:
    code, out, _ = toy("-m", "caption=a, b", "steps=1,2")
    assert code == 0
    configs = [json.loads(line)[0] for line in out.splitlines() if line.startswith("[")]
    assert [(config["caption"], config["steps"]) for config in configs] == [("a, b", 1), ("a, b", 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "toy.py"]


def test_a_single_run_leaves_no_files(toy: Toy, tmp_path: Path) -> None:
    assert toy("--plan")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["toy.py"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=foldr"], "no option 'foldr' for data; did you mean 'folder'? there are: folder, photos"),
        (["dat=folder"], "no setting or group 'dat'; did you mean 'data'? there are: data, prompt, caption"),
        (["prompt/semantik=none"], "no group 'prompt/semantik'; did you mean 'prompt/semantic'?"),
        (["stepz=3"], "no setting or group 'stepz'; did you mean 'steps'?"),
        (
            ["data=folder", "data.roott=3"],
            "no setting 'roott' in data; did you mean 'root'? there are: root, recursive",
        ),
        (["steps=[1"], "cannot read 'steps=[1'"),
        (["--config-dir", "/no/such"], "Additional config directory '/no/such' not found"),
        (["a.jpg", "b.jpg"], "cannot place 'b.jpg'"),
        (["data=3"], "data=3: no option of that name; there are: folder, photos"),
        (["data=[3]"], "data=[3]: no option of that name"),
        (["data={a: 1}"], "no option of that name"),
        (["~steps"], "~steps: a setting cannot be taken away; give it another value: steps=..."),
        (["steps=13"], "not there.png: No such file or directory"),
        (["+part._target_=os.system"], "_target_ 'os.system' is not allowed"),
    ],
)
def test_bad_input_is_one_line_that_names_what_exists(toy: Toy, words: list[str], said: str) -> None:
    code, _, err = toy(*words)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("restore-lab: ")


def test_an_unreadable_override_of_a_table_is_named() -> None:
    """The words of the command line are looked at before; those in `overrides` are not."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with (
        pytest.raises(ValueError, match=r"^cannot read 'max_steps': expected KEY=VALUE$"),
        errors.explain_override_errors(verb="table", folders=[conf_dir()], overrides=[]),
    ):
        OverridesParser.create().parse_overrides(["max_steps"])


def test_a_bug_keeps_its_traceback(toy: Toy) -> None:
    code, _, err = toy("steps=14")
    assert code == 1
    assert "Traceback" in err
    assert "RuntimeError: a bug" in err


def test_hydra_flags_work_on_a_verb(toy: Toy) -> None:
    code, out, _ = toy("steps=4", "--cfg", "job")
    assert code == 0
    assert "steps: 4" in out
    code, out, _ = toy("--help")
    assert code == 0
    assert "data: folder, photos" in out


def test_the_script_lists_its_verbs_without_torch() -> None:
    help_ = script("--help")
    assert help_.returncode == 0
    assert "restore-lab <verb>" in help_.stdout
    wrong = script("trian")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("restore-lab: no verb 'trian'")
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_a_closed_pipe_is_no_error() -> None:
    code = "import sys; from restore_lab.cli.main import main; main()"
    command = [sys.executable, "-c", code, "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_conf_dir_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (conf_dir() / "hydra_defaults.yaml").is_file()
    assert os.path.isabs(conf_dir())


def test_subfolders_are_groups_except_those_of_experiments(tmp_path: Path) -> None:
    for name in ("data/a.yaml", "data/rule/r.yaml", "experiment/priors/tiny_sd.yaml", "verb.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = errors.groups([tmp_path])
    assert {group: options for group, options in found.items() if not group.startswith("eval_")} == {
        "data": ["a"],
        "data/rule": ["r"],
        "experiment": ["priors/tiny_sd"],
    }


@pytest.mark.parametrize("verb", sorted({*verbs()} - {"import"}))  # whose words are all files
def test_a_stray_word_is_refused_by_every_verb(verb, tmp_path, capsys, monkeypatch) -> None:
    """More words than the verb has places for, or words that this command has no use for."""
    words = {
        "evaluate": ["x", "y", "z"],
        "diff": ["x", "y", "z"],
        "table": ["--all", "spire/table6"],
        "report": ["x", "y"],
        "dashboard": ["x", "y"],
        "data": ["pack", "x"],
    }.get(verb, ["x"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["restore-lab", verb, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("restore-lab: ") and said.count("\n") == 1, said
    assert list(tmp_path.iterdir()) == []
