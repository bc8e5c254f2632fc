"""Every reader of received files reads or refuses in one line: changed, cut, doubled and random bytes.

`RESTORE_LAB_FUZZ=5000` tries so many inputs a reader in the place of some dozens.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from restore_lab.config.compose import training_overrides
from restore_lab.data.image_io import decode_image
from restore_lab.data.photograph import decode_photograph
from restore_lab.data.sources.captions import FolderCaptions
from restore_lab.data.sources.tar_index import scan
from restore_lab.data.word_table import WordTable
from restore_lab.degradation.instruction import parse_instruction
from restore_lab.evaluation.records import read_record
from restore_lab.importing.checkpoint import read_checkpoint
from restore_lab.methods.weights import read_weights
from restore_lab.storage.artefact import Manifest
from restore_lab.types import Recipe, Step
from tests.helpers import hostile_files

TRIES = int(os.environ.get("RESTORE_LAB_FUZZ", "40"))
FUZZED = settings(
    max_examples=TRIES,
    deadline=None,
    derandomize="RESTORE_LAB_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with a few bytes turned, a piece cut out, doubled or put in, or its end missing; or anything at all."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(("turn", "cut", "double", "put", "end"))):
            case "turn" if data:
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case "put":
                data[at:at] = draw(st.binary(max_size=12))
            case _:
                del data[at:]
    return bytes(data)


def refuses_or_reads(read: Callable[[], Any]) -> Any:
    """What a reader gives; its refusal has to be one line and a ValueError, or a file that is not there."""
    try:
        return read()
    except (ValueError, FileNotFoundError) as error:
        if str(error) and "\n" not in str(error):
            return None
        raise AssertionError(f"not one line: {error!r}") from error


IMAGES = {name: what() for name, what in hostile_files.GOOD.items() if len(what()) < 5000}


@pytest.mark.parametrize(
    "name", sorted(name for name in IMAGES if name.startswith(("plain", "deep", "opacity", "inks")))
)
def test_the_image_reader_reads_or_refuses_in_one_line(name) -> None:
    @FUZZED
    @given(damaged(IMAGES[name]))
    def check(data: bytes) -> None:
        refuses_or_reads(lambda: decode_image(data, name="a.png", max_pixels=10_000))
        refuses_or_reads(lambda: decode_photograph(data, name="a.png", max_pixels=10_000))

    check()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TABLE = json.dumps([{"file": "a.png", "caption": "a cat", "instruction": "Deblur"}, {"file": "b", "text": "x"}])


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({"file": ["a.png"], "caption": ["a cat"]}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("suffix", "whole"),
    [
        (".json", TABLE.encode()),
        (".jsonl", b'{"file": "a.png", "caption": "a cat"}\n{"file": "b"}\n'),
        (".csv", b'file,caption,instruction\na.png,"a cat, asleep",Deblur\n'),
        (".parquet", None),
    ],
)
def test_the_caption_reader_reads_or_refuses_in_one_line(suffix, whole, tmp_path) -> None:
    place = tmp_path / f"words{suffix}"

    @FUZZED
    @given(damaged(whole or parquet_bytes()))
    def check(data: bytes) -> None:
        place.write_bytes(data)
        refuses_or_reads(lambda: WordTable(place).of("a.png"))
        if suffix != ".csv":
            refuses_or_reads(lambda: FolderCaptions(tmp_path, table=place).of(tmp_path / "a.png"))

    check()


def test_the_json_readers_read_or_refuse_in_one_line(tmp_path) -> None:
    place = tmp_path / "words.json"

    @FUZZED
    @given(VALUES)
    def check(value: Any) -> None:
        place.write_text(json.dumps(value))
        refuses_or_reads(lambda: WordTable(place).of("a.png"))
        refuses_or_reads(lambda: FolderCaptions(tmp_path, table=place).of(tmp_path / "a.png"))
        refuses_or_reads(lambda: Recipe.from_json(json.dumps(value)))
        (tmp_path / "manifest.json").write_text(json.dumps(value))
        refuses_or_reads(lambda: Manifest.read(tmp_path))
        brought = refuses_or_reads(lambda: training_overrides(tmp_path))
        assert brought is None or brought.accepted == ()

    check = example(value=[{"\n": None}])(check)
    check()


def test_the_recipe_reader_reads_or_refuses_in_one_line() -> None:
    whole = Recipe(pipeline="p", seed=3, steps=(Step(kind="blur", params={"sigma": 1.0}, says="Deblur"),)).to_json()

    @FUZZED
    @given(damaged(whole.encode()))
    def check(data: bytes) -> None:
        found = refuses_or_reads(lambda: Recipe.from_json(data.decode(errors="replace")))
        assert found is None or isinstance(found.instruction(), str)

    check()


@FUZZED
@given(
    st.text(max_size=60)
    | st.from_regex(r"(Deblur|Upsample|Denoise|Dejpeg) (with|to) \w+ [\d.e-]{1,6}x?", fullmatch=True)
)
def test_the_instruction_parser_reads_any_text(text: str) -> None:
    found = refuses_or_reads(lambda: parse_instruction(text, height=16, width=20))
    if found is not None:
        assert found.instruction() == "; ".join(part.strip() for part in text.split(";") if part.strip())


def test_the_record_reader_reads_or_refuses_in_one_line(tmp_path) -> None:
    whole = json.dumps(
        {"identity": "0" * 16, "kind": "scores", "settings": {}, "parents": [], "code": "x", "extra": {}}
    )

    @FUZZED
    @given(damaged(whole.encode()))
    def check(data: bytes) -> None:
        (tmp_path / "manifest.json").write_bytes(data)
        refuses_or_reads(lambda: Manifest.read(tmp_path))
        refuses_or_reads(lambda: read_record(tmp_path))
        brought = refuses_or_reads(lambda: training_overrides(tmp_path))
        assert brought is None or brought.accepted == ()

    check()


def test_the_weight_readers_read_or_refuse_in_one_line(tmp_path) -> None:
    tensors = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}
    pickled = io.BytesIO()
    torch.save({"state_dict": tensors}, pickled)
    light, heavy = tmp_path / "a.safetensors", tmp_path / "a.ckpt"

    @FUZZED
    @given(damaged(save(tensors)), damaged(pickled.getvalue()))
    def check(first: bytes, second: bytes) -> None:
        light.write_bytes(first)
        heavy.write_bytes(second)
        refuses_or_reads(lambda: read_weights(light, base=None))
        refuses_or_reads(lambda: read_checkpoint(light))
        refuses_or_reads(lambda: read_checkpoint(heavy))

    old = b"\x80\x02}q\x00X\n\x00\x00\x00s"  # a bare pickle, cut
    example(first=b"", second=old)(check)()


def test_the_shard_reader_reads_or_refuses_in_one_line(tmp_path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in (("a.png", IMAGES["plain.png"]), ("a.txt", b"a cat")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

    @FUZZED
    @given(damaged(file.getvalue()))
    def check(data: bytes) -> None:
        place = Path(tmp_path / "a.tar")
        place.write_bytes(data)
        refuses_or_reads(lambda: scan(place))

    check()
