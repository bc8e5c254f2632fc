"""Identities, fingerprints, manifests and atomic writing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from restore_lab.storage import artefact, atomic
from restore_lab.storage.artefact import Manifest, is_complete
from restore_lab.storage.atomic import write_bytes_atomic, write_json_atomic
from restore_lab.storage.identity import fingerprint, identity

NODE = {"_target_": "restore_lab.storage.artefact.Manifest", "identity": "a", "kind": "b"}


def test_identity_counts_values_parents_and_their_order_but_not_key_order() -> None:
    one = identity({"a": 1, "b": {"c": [1, 2]}}, ["p", "q"])
    assert len(one) == 16
    assert one == identity({"b": {"c": (1, 2)}, "a": 1.0}, ["p", "q"])
    others = [
        identity({"a": 2, "b": {"c": [1, 2]}}, ["p", "q"]),
        identity({"a": 1, "b": {"c": [2, 1]}}, ["p", "q"]),
        identity({"a": 1, "b": {"c": [1, 2]}}, ["q", "p"]),
        identity({"a": True, "b": {"c": [1, 2]}}, ["p", "q"]),
        identity({"a": "1", "b": {"c": [1, 2]}}, ["p", "q"]),
    ]
    assert len({one, *others}) == 6


def test_identity_is_the_same_in_every_process() -> None:
    settings = "{'lr': 0.1, 'x': '\u00fc', 'inf': float('inf')}"
    code = f"from restore_lab.storage.identity import identity; print(identity({settings}))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].decode().strip() == identity({"lr": 0.1, "x": "\u00fc", "inf": float("inf")})


def test_a_constructor_default_leaves_the_identity_as_it_was() -> None:
    old = identity({"part": NODE})
    assert identity({"part": {**NODE, "parents": [], "code": "written"}}) != old
    assert identity({"part": {**NODE, "parents": []}}) == old
    assert identity({"part": {**NODE, "parents": ["p"]}}) != old
    assert identity({"part": {**NODE, "kind": "c"}}) != old


def test_defaults_of_other_packages_count_since_they_change_with_the_version() -> None:
    bare = {"_target_": "torch.optim.AdamW"}
    assert identity({"optimizer": {**bare, "lr": 0.001}}) != identity({"optimizer": bare})


def test_loggers_devices_and_output_folders_do_not_count() -> None:
    extra = {"logger": {"name": "x"}, "devices": 4, "workers": 2, "output_dir": "/x", "trainer": {"accelerator": "gpu"}}
    assert identity({"steps": 1, **extra}) == identity({"steps": 1, "trainer": {}})
    assert identity({"steps": 1, "batch_size": 4}) != identity({"steps": 1, "batch_size": 8})
    assert identity({"steps": 1, "precision": "32"}) != identity({"steps": 1, "precision": "bf16"})


def test_paths_count_by_their_content(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.bin").write_bytes(content)
    a, b, c = (identity({"data": {"root": str(tmp_path / name)}}) for name in "abc")
    assert a == b != c
    assert identity({"caption": str(tmp_path / "a")}) != identity({"caption": str(tmp_path / "b")})
    assert identity({"path": "org/model"}) != identity({"path": "org/other"})


def test_fingerprint_follows_names_and_bytes_but_not_dates(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(b"1")
    first = fingerprint(tmp_path)
    os.utime(tmp_path / "sub" / "x", (1, 1))
    (tmp_path / ".hidden").write_bytes(b"9")
    assert fingerprint(tmp_path) == first
    (tmp_path / "sub" / "x").write_bytes(b"2")
    os.utime(tmp_path / "sub" / "x", (2, 2))
    second = fingerprint(tmp_path)
    (tmp_path / "sub" / "x").rename(tmp_path / "sub" / "y")
    assert len({first, second, fingerprint(tmp_path)}) == 3
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        fingerprint(tmp_path / "nope")


def test_values_without_an_identity_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'callback' is object"):
        identity({"callback": object()})
    with pytest.raises(ValueError, match=r"restore_lab\.storage\.artefact\.Nope"):
        identity({"part": {"_target_": "restore_lab.storage.artefact.Nope"}})


def test_manifest_marks_a_folder_complete_and_reads_back(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
    written = Manifest(identity="abc", kind="weights", settings={"lr": 0.1}, parents=("p",), extra={"n": 3})
    written.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    assert is_complete(tmp_path)
    assert is_complete(tmp_path, identity="abc")
    assert not is_complete(tmp_path, identity="other")


@pytest.mark.parametrize("content", ["", "{", '{"kind": "weights"}', "[]", '{"identity": "a", "kind": "b", "x": 1}'])
def test_a_broken_manifest_is_not_complete(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert not is_complete(tmp_path)
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest"):
        Manifest.read(tmp_path)


def test_a_failed_write_leaves_the_old_content_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "new" / "x.json"
    write_json_atomic(place, {"\u00fc": 1})
    assert place.read_text(encoding="utf-8") == '{\n "\u00fc": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(place, {"x": float("nan")})

    def full(_source: str, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes_atomic(place, b"other")
    assert [file.name for file in place.parent.iterdir()] == ["x.json"]
    assert "\u00fc" in place.read_text(encoding="utf-8")


def test_code_version_never_fails() -> None:
    assert artefact.code_version() not in ("", "unknown")
