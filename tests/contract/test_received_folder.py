"""A received folder gives weights, numbers and pictures, and does nothing else: attacks on every verb.

What a manifest may set is test_received's; tars are test_shards', images test_hostile_folder's, models test_trust's.
"""

from __future__ import annotations

import ast
import base64
import csv
import io
import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restore_lab.cli.main import main
from restore_lab.data.image_io import read_image
from restore_lab.data.photograph import read_photograph
from restore_lab.evaluation.evaluate import plan_evaluation
from restore_lab.evaluation.records import PER_IMAGE, RECORD, image_file, read_record
from restore_lab.methods.weights import WEIGHTS, read_weights, weights_file
from restore_lab.prompts.visual import ClipVision
from restore_lab.storage.artefact import MANIFEST, Manifest
from restore_lab.storage.foreign import MAX_DEPTH, bytes_of, check_model, json_of
from restore_lab.storage.identity import fingerprint
from restore_lab.storage.safe_names import shorten, spreadsheet_cell
from restore_lab.system.terminal import Formatter, escape_control
from restore_lab.tables.grid import grid
from restore_lab.tables.numbers import read_numbers
from restore_lab.tables.page.sources import of_records
from restore_lab.tables.page.write import render_page
from restore_lab.tables.render import render_table
from tests.helpers.checkout import PACKAGE, ROOT
from tests.helpers.configs import composed, few_photos
from tests.helpers.manifests import manifest_folder
from tests.helpers.toy_report import KEYS, losses, record, toy_table

ASSETS = PACKAGE / "assets"
SECRET = "the person's own secret"
HOSTILE = "\\input{/etc/passwd}"


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line: exit status, stdout, and the lines of stderr."""

    def called(*words: str) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["restore-lab", *words])
        status = 0
        try:
            main()
        except SystemExit as left:
            status = int(left.code or 0)
        out, err = capsys.readouterr()
        return status, out, err.strip().splitlines()

    return called


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["restore", "evaluate"])
def test_a_received_manifest_reads_no_file_and_writes_none(verb, run, tmp_path, monkeypatch) -> None:
    """An experiment in the folder, which would write a variable's value into a note; caches, captioners, hub ids."""
    monkeypatch.setenv("PRIVATE", SECRET)
    evil = tmp_path / "sent" / "evil.yaml"
    words = (f"experiment={os.path.relpath(evil, '/').removesuffix('.yaml')}", "experiment=../../../sent/evil")
    words += (
        "backbone.cache_dir=/home",
        "backbone.path=org/name",
        "prompt/semantic=vlm",
        "output=/etc",
        "run_dir=/etc",
    )
    folder = manifest_folder(tmp_path / "sent", *words, "sampler.steps=3", "prompt.negative='${oc.env:PRIVATE}'")
    evil.write_text("# @package _global_\noutput: ${oc.env:PRIVATE}\nname: ${oc.env:PRIVATE}\nrun_dir: /etc\n")
    given = ("input=x",) if verb == "restore" else ()
    status, out, err = run(verb, f"weights={folder}", *given, "--cfg", "job", "--resolve")
    assert status == 0 and len(err) == 1, err
    assert err[0].startswith("restore-lab: the weights bring along sampler.steps=3 (follow=false: without); leave out")
    for word in ("experiment=", "backbone.cache_dir=/home", "backbone.path=org/name", "prompt/semantic=vlm"):
        assert word in err[0]
    for word in (SECRET, "org/name", "/etc", "/home", "captioner"):
        assert word not in out
    assert "steps: 3" in out


def test_trust_true_lets_paths_of_the_manifest_in(run, tmp_path) -> None:
    folder = manifest_folder(tmp_path, "backbone.path=/models/mine", "output=/etc", "sampler.steps=3")
    status, out, err = run("restore", f"weights={folder}", "input=x", "trust=true", "--cfg", "job")
    assert status == 0 and "path: /models/mine" in out and "/etc" not in out
    assert err == [
        "restore-lab: the weights bring along backbone.path=/models/mine sampler.steps=3 (follow=false: without)"
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"identity":' * 9000 + "1" + "}" * 9000,
        "[" * 100_000,
        '{"identity": "' + "a" * 300 + '"}',
        "{}",
        "\x1b[2J",
        "null",
        '{"identity": "a", "kind": "weights", "extra": [1]}',
    ],
    ids=["deep", "open", "long", "empty", "escape", "null", "extra"],
)
def test_a_malformed_manifest_is_refused_in_one_line(text, run, tmp_path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    status, _, err = run("restore", f"weights={tmp_path}", "input=x")
    assert status == 2 and len(err) == 1 and "not a manifest" in err[0] and len(err[0]) < 500 and "\x1b" not in err[0]


def test_escape_sequences_of_a_manifest_are_spelled_out(run, tmp_path) -> None:
    folder = manifest_folder(tmp_path, "sampler.x=\x1b]0;owned\x07\x1b[2J", "prompt.positive=\u202egnp.exe")
    _, _, err = run("restore", f"weights={folder}", "input=x", "--cfg", "job")
    assert len(err) == 1 and "\\x1b[2J" in err[0] and not set("\x1b\x07\u202e") & set(err[0])


def test_escape_sequences_on_stdout_and_in_logs_are_spelled_out(run) -> None:
    assert escape_control("a\tb\nc \x9b1m\u2067") == "a\tb\nc \\x9b1m\\u2067"
    logged = logging.LogRecord("x", logging.INFO, "", 0, "left out: %s", ("\x1b[2J.jpg",), None)
    assert Formatter("%(message)s").format(logged) == "left out: \\x1b[2J.jpg"
    status, out, _ = run("restore", "input=x", "caption=\x1b[31mred", "--cfg", "hydra")
    assert f"{Formatter.__module__}.Formatter" in out
    status, out, _ = run("restore", "input=x", "caption=\x1b[31mred", "--cfg", "job")
    assert status == 0 and "\x1b" not in out and "[31mred" in out and out.count("\n") > 50


# Weights -------------------------------------------------------------------------------------------------------------


def test_weights_with_a_stolen_identity_get_a_separate_record(tmp_path) -> None:
    """Else the person's numbers would be printed as theirs, or the other way round."""
    runs, claimed = tmp_path / "runs", "a" * 16
    for place, content in ((runs / "mine" / f"adaptor-{claimed}", b"mine"), (tmp_path / "sent", b"theirs")):
        place.mkdir(parents=True)
        (place / WEIGHTS).write_bytes(content)
        Manifest(identity=claimed, kind="adaptor").write(place)

    def scores(weights: Path) -> Any:
        return plan_evaluation(composed("evaluate", *few_photos(), f"runs_dir={runs}", f"weights={weights}"))

    mine, theirs = scores(runs / "mine" / f"adaptor-{claimed}"), scores(tmp_path / "sent")
    assert mine.parents == (claimed,) and theirs.parents == () and mine.identity != theirs.identity
    (tmp_path / "sent" / WEIGHTS).write_bytes(b"others")
    assert scores(tmp_path / "sent").identity != theirs.identity
    os.symlink(tmp_path / "sent", runs / "mine" / "link")
    assert scores(runs / "mine" / "link").parents == ()


def test_weights_that_link_out_of_their_folder_are_refused(tmp_path) -> None:
    os.symlink(ASSETS / "spire_tiny_sd" / WEIGHTS, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="is a link that leads out of the folder; give the file itself"):
        weights_file(str(tmp_path))
    assert read_weights(weights_file(str(tmp_path / WEIGHTS)), base=None)  # typed, so the person's word
    (tmp_path / WEIGHTS).unlink()
    os.mkfifo(tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="no such weights"):
        read_weights(weights_file(str(tmp_path)), base=None)
    with pytest.raises(ValueError, match="a pipe or a device has no fingerprint"):
        fingerprint(tmp_path / WEIGHTS)
    (tmp_path / "empty").mkdir()
    assert fingerprint(tmp_path) == fingerprint(tmp_path / "empty")  # of a folder it is passed over, and not waited for


@pytest.mark.parametrize("hashes", [7, "x", ["adaptor.safetensors"], {"adaptor.safetensors": 7}])
def test_weights_with_a_malformed_hash_are_refused(hashes, tmp_path) -> None:
    shutil.copy(ASSETS / "spire_tiny_sd" / WEIGHTS, tmp_path)
    Manifest(identity="a" * 16, kind="adaptor", extra={"sha256": hashes}).write(tmp_path)
    with pytest.raises(ValueError, match="not what its manifest says was written"):
        read_weights(tmp_path / WEIGHTS, base=None)


# Models --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "settings", "says"),
    [
        ("config.json", {"text_config": {"attn_implementation": "org/kernel"}}, "names code on the hub"),
        ("config.json", {"_attn_implementation": {"text_config": "org/kernel"}}, "names code on the hub"),
        ("adapter_config.json", {"base_model_name_or_path": "org/name"}, "names another model to load"),
        ("tokenizer_config.json", {"vocab_file": __file__}, "names a file elsewhere"),
        ("tokenizer_config.json", {"merges_file": "/etc/passwd"}, "names a file elsewhere"),
    ],
)
def test_a_model_config_that_names_other_files_is_refused(file, settings, says, tmp_path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(ASSETS / "tiny_clip", folder)
    check_model(folder)
    there = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps({**there, **settings}))
    with pytest.raises(ValueError, match=says):
        check_model(folder)
    with pytest.raises(ValueError, match=says):
        ClipVision(path=str(folder))


@pytest.mark.parametrize("shards", [7, ["../x.safetensors"], {"a": "../../x.safetensors"}, {"a": 7}, {"a": ["b"]}])
def test_an_index_of_shards_outside_its_folder_is_refused(shards, run, tmp_path) -> None:
    folder = tmp_path / "prior"
    shutil.copytree(ASSETS / "tiny_sd", folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "x.safetensors")
    (folder / "unet" / f"{weights.name}.index.json").write_text(json.dumps({"weight_map": shards}))
    shutil.copy(ROOT / "docs" / "tutorials" / "photo.jpg", tmp_path)
    status, _, err = run("restore", f"input={tmp_path / 'photo.jpg'}", f"backbone.path={folder}", "device=cpu")
    assert status == 2 and len(err) == 1 and "not all the shards that their index names" in err[0]


# Records -------------------------------------------------------------------------------------------------------------


def data_of(text: str) -> dict[str, Any]:
    return json.loads(text.partition('id="data">')[2].partition("</script")[0])


def test_a_link_in_a_record_is_not_embedded(tmp_path, caplog) -> None:
    """Nor a file that is no image, nor what hangs on an image, nor a history that is a link."""
    sent_, own = tmp_path / "sent", tmp_path / "own.txt"
    place = sent_ / "scores-a"
    record(place, "a")
    own.write_text(SECRET)
    image = image_file(place, "own", KEYS[0])
    whole = image.read_bytes()
    image.unlink()
    os.symlink(own, image)
    image_file(place, "own", KEYS[1]).write_bytes(SECRET.encode())
    image_file(place, "own", KEYS[2]).write_bytes(whole + SECRET.encode())
    elsewhere = tmp_path / "private.webp"
    elsewhere.write_bytes(whole[:-1] + b"\1")
    image_file(place, "own", KEYS[3]).unlink()
    os.symlink(elsewhere, image_file(place, "own", KEYS[3]))
    text = render_page(of_records([place]), images=64, worst=10)
    data = data_of(text)
    shown = [base64.b64decode(uri.partition(",")[2]) for uri in data["pictures"]]
    assert (
        SECRET not in text and not any(SECRET.encode() in one for one in shown) and elsewhere.read_bytes() not in shown
    )
    assert len([entry for entry in caplog.messages if entry.startswith("not shown: ")]) == 4
    assert "is a link that leads out of" in data["missing"] and "not a WebP image" in data["missing"]


def test_a_record_with_circular_parents_ends(tmp_path) -> None:
    place = tmp_path / "scores-a"
    record(place, "a")
    head = json.loads((place / RECORD).read_text())
    (place / RECORD).write_text(json.dumps({**head, "parents": ["wa"]}))
    for name, parent in (("wa", "wb"), ("wb", "wa")):
        losses(tmp_path / f"adaptor-{name}", start=1.0)
        Manifest(identity=name, kind="adaptor", parents=(parent,), code="").write(tmp_path / f"adaptor-{name}")
    os.unlink(tmp_path / "adaptor-wb" / "losses.jsonl")
    (tmp_path / "private.jsonl").write_text('{"step": 1, "train/secret": 42.0}\n')
    os.symlink(tmp_path / "private.jsonl", tmp_path / "adaptor-wb" / "losses.jsonl")
    charts = data_of(render_page(of_records([place]), images=4, worst=1))["charts"]
    assert charts and not any("secret" in chart["title"] for chart in charts)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "../../x"},
        {"identity": "*"},
        {"parents": ["../**/*"]},
        {"parents": "abc"},
        {"cells": "abc"},
        {"cells": [7]},
        {"cells": [{"row": 7}]},
        {"notes": {"a": 1}},
        {"settings": [1]},
        {"code": None},
        {"format": "1"},
        {"extra": 1},
    ],
)
def test_a_record_with_fields_of_other_types_is_refused_in_one_line(change, run, tmp_path) -> None:
    place = tmp_path / "scores"
    record(place, "a")
    head = json.loads((place / RECORD).read_text())
    (place / RECORD).write_text(json.dumps({**head, **change}))
    status, _, err = run("report", f"records=[{place}]", f"output={tmp_path / 'r.html'}")
    assert status == 2 and len(err) == 1 and "is not a record" in err[0] and not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("value", ["NaN", "1e999", "-Infinity", "1e300", '"1"', "true", "[1]", "9" * 5000])
def test_a_mean_that_is_no_number_is_refused_in_one_line(value, tmp_path) -> None:
    place = tmp_path / "scores"
    record(place, "a")
    head = json.loads((place / RECORD).read_text())
    head["cells"][0]["mean"] = "HERE"
    (place / RECORD).write_text(json.dumps(head).replace('"HERE"', value))
    with pytest.raises(ValueError, match="is not a record"):
        read_record(place)


def test_a_bad_table_of_images_is_refused_in_one_line(tmp_path, monkeypatch) -> None:
    import hashlib

    from restore_lab.data import parquet

    place = tmp_path / "scores"
    record(place, "a")
    head = json.loads((place / RECORD).read_text())
    lines = pq.read_table(place / PER_IMAGE)

    def put(table: Any) -> None:
        sink = io.BytesIO()
        pq.write_table(table, sink)
        (place / PER_IMAGE).write_bytes(sink.getvalue())
        digest = hashlib.sha256(sink.getvalue()).hexdigest()
        (place / RECORD).write_text(json.dumps({**head, "per_image_sha256": digest}))

    for table in (lines.drop(["value"]), lines.append_column("x", [["a"] * len(lines)]), pa.table({"a": [1]})):
        put(table)
        with pytest.raises(ValueError, match="holds other columns"):
            read_record(place)
    put(lines.set_column(lines.column_names.index("key"), "key", [[None] * len(lines)]))
    with pytest.raises(ValueError, match="holds other columns"):
        read_record(place)
    put(pa.concat_tables([lines] * 400))
    monkeypatch.setattr(parquet, "MAX_UNPACKED_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"no parquet that can be read .unpacks to more than"):
        read_record(place)


def test_long_names_are_shortened_and_stay_distinct(tmp_path) -> None:
    long = ["n" * 254, "n" * 253 + "m", "\u732b" * 120, "a/" + "n" * 5000, "\ud800" * 300]
    files = [image_file(tmp_path, "row" * 200, name) for name in long]
    assert len(set(files)) == len(long) and all(len(part.encode()) <= 255 for file in files for part in file.parts)
    assert shorten("trip/cat 1") == "trip/cat 1"
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


# Tables --------------------------------------------------------------------------------------------------------------


def test_a_tables_text_is_escaped_in_every_format(tmp_path) -> None:
    from dataclasses import replace

    plan, spec = toy_table(tmp_path, images=False)
    titles = ("=cmd|' /C calc'!A0", HOSTILE + " ^^5c \n\\write18{id} ~", "<img src=x onerror=alert(1)>\n| a | b |")
    rows = {name: replace(row, title=title) for (name, row), title in zip(spec.rows.items(), titles, strict=True)}
    spec = replace(spec, rows=rows, title="@SUM(A1)\n\\input{x}")
    table = grid(plan, read_numbers(plan, spec))
    table = replace(table, notes=[*table.notes, "a note\n\\input{x}\r\\input{y}"])
    latex = render_table(table, "latex")
    assert all(line.startswith("%") for line in latex.splitlines() if "\\input" in line)
    assert "\\textbackslash{}input\\{/etc/passwd\\}" in latex
    assert "\\textbackslash{}write18\\{id\\} \\textasciitilde{}" in latex and "^^" not in latex
    assert "\r" not in latex
    markdown = render_table(table, "markdown")
    assert "<img" not in markdown and "&lt;img src=x" in markdown
    assert "<img" not in render_table(table, "html")
    lines = list(csv.reader(io.StringIO(render_table(table, "csv"))))
    assert len({len(line) for line in lines}) == 1
    for line in lines:
        assert not [
            cell for cell in line if cell.startswith(("=", "@", "+", "\t")) or (cell[:1] == "-" and not cell[1:2])
        ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("@x", "'@x"),
        ("-2+3", "'-2+3"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        (-0.5, -0.5),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_restored_csv_holds_no_formula(value, shown) -> None:
    assert spreadsheet_cell(value) == shown


# Files ---------------------------------------------------------------------------------------------------------------


def test_pipes_and_devices_are_not_opened(tmp_path) -> None:
    """No pipe is waited for, no device read, no circle followed, nothing without end."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "circle", tmp_path / "circle")
    os.symlink("/dev/zero", tmp_path / "zero")
    for name in ("pipe", "circle", "zero", "n" * 300):
        with pytest.raises(ValueError, match=r"not a plain file|cannot be read as a file") as caught:
            bytes_of(tmp_path / name)
        assert len(str(caught.value)) < 300
    for read in (bytes_of, read_image, read_photograph):
        for name in ("pipe", "zero"):
            with pytest.raises(ValueError, match=r"not a plain file"):
                read(tmp_path / name)
    with pytest.raises(ValueError, match=r"not a plain file|cannot be read as a file"):
        bytes_of(tmp_path)
    (tmp_path / "large").write_bytes(b"x" * 101)
    with pytest.raises(ValueError, match="no such file is so large"):
        bytes_of(tmp_path / "large", limit=100)
    (tmp_path / "deep").write_text("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        json_of(tmp_path / "deep")
    (tmp_path / "fine").write_text("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert json_of(tmp_path / "fine")


def test_every_reader_of_json_and_yaml_is_bounded_in_size_and_depth() -> None:
    """What reads by itself reads the package's own files; YAML is read from no folder but the person's configs."""
    own = {
        "inspection/needs.py",  # hub_facts.yaml
        "cli/errors.py",  # conf/VERB.yaml
        "config/manifest_overrides.py",  # experiments/
        "config/unused.py",  # conf/train.yaml and those that it names
        "prepare/photographs.py",  # photographs.yaml
        "priors/clip.py",  # what a tokenizer just said
        "tables/file.py",  # experiments/, and the person's
        "launch/cost.py",  # cost.json
    }
    package, found = ASSETS.parent, set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.fullmatch(
                r"json\.loads?|(yaml|OmegaConf)\.(safe_)?load", ast.unparse(node.func)
            ):
                found.add(file.relative_to(package).as_posix())
    assert found == own | {"storage/foreign.py"}


def test_completion_omits_names_that_a_shell_would_run(run, tmp_path, monkeypatch) -> None:
    for name in ("$(touch mark)", "`touch mark`", "fine.jpg", "a;b"):
        (tmp_path / name).touch()
    line = f"restore-lab restore input={tmp_path}/"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    _, out, _ = run("-sc", "query=bash")
    assert f"input={tmp_path}/fine.jpg" in out and "touch" not in out and ";" not in out
