"""A config that expands to more than its bound is refused before Hydra reads it."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest

from restore_lab.config import bounds

LEVELS = [f"{name}: &{name} [*{before}, *{before}, *{before}]" for before, name in pairwise("abcdefghijk")]
BOMB = "\n".join(["a: &a [x, x, x]", *LEVELS])


@pytest.mark.parametrize(
    ("text", "values"),
    [("a: 1\nb: [1, 2]", 7), ("", 1), ("a: &x {b: 1}\nc: *x", 9), ("{", 0), ("- \xff\x00", 0)],
)
def test_values_are_counted_with_aliases_expanded(text, values) -> None:
    assert bounds.count_values(text.encode("latin-1")) == values


@pytest.mark.parametrize("text", [BOMB, "&a [*a]", "[" * 50_000], ids=["aliases", "itself", "nested"])
def test_a_yaml_bomb_is_refused_by_name(text, tmp_path) -> None:
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "fine.yaml").write_text("steps: 3")
    bounds.check_config_folder(tmp_path)
    (tmp_path / "sampler" / "bomb.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"sampler/bomb\.yaml: its aliases \(\*name\) stand for more than"):
        bounds.check_config_folder(tmp_path)


@pytest.mark.parametrize("name", ["linked/bomb.yaml", ".hidden/bomb.yaml"])
def test_every_file_that_hydra_could_read_is_checked(name, tmp_path) -> None:
    for folder in ("away", "conf/.hidden"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "conf/linked").symlink_to(tmp_path / "away")
    os.mkfifo(tmp_path / "conf/pipe.yaml")  # would be waited for
    (tmp_path / "conf/dead.yaml").symlink_to("nowhere.yaml")
    bounds.check_config_folder(tmp_path / "conf")
    (tmp_path / "conf" / name).write_text(BOMB)
    with pytest.raises(ValueError, match=r"bomb\.yaml: its aliases"):
        bounds.check_config_folder(tmp_path / "conf")


def test_data_files_are_not_checked(tmp_path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"x: 1\n" * 300_000)
    with pytest.raises(ValueError, match=r"large\.yaml: larger than 1 MiB"):
        bounds.check_config_folder(tmp_path)
