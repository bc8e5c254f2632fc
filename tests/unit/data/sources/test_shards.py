"""Shards: packed samples are read back, each once per epoch by any readers, and hostile tars are refused."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restore_lab.cli import errors
from restore_lab.data.datamodule import RestorationDataModule
from restore_lab.data.image_io import BadImage
from restore_lab.data.sampler import PositionSampler
from restore_lab.data.sources import tar_index
from restore_lab.data.sources.folder import FolderSource
from restore_lab.data.sources.shards import ShardsSource
from restore_lab.data.sources.tar_index import index_of, scan
from restore_lab.prepare.pack import pack
from restore_lab.storage import identity
from restore_lab.storage.identity import fingerprint
from restore_lab.storage.notes import note_place, read_note, stamp
from restore_lab.types import Picture
from tests.helpers.configs import composed

NAMES = ("a", "trip/cat 1", "trip/r\u00f6d.v2", "100%25", "b.c/d..e")


def image(seed: int, *, size: tuple[int, int] = (6, 9)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image(seed)).save(buffer, format=kind)
    return buffer.getvalue()


def folder(place: Path, names: tuple[str, ...] = NAMES) -> Path:
    for number, name in enumerate(names):
        file = place / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(number))
        if number % 2:
            file.with_name(f"{file.name}.txt").write_text(f"picture,\n {number}")
    return place


def packed(root: Path, output: Path, *words: str):
    return pack(composed("data", "make=pack", "data=folder", f"data.root={root}", f"output={output}", *words))


def tar_of(file: Path, *members: tuple[str, bytes], edit=None) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        if edit is not None:
            edit(tar)
    return file


def same(one: Picture, other: Picture) -> bool:
    sides = ((one.hq_HWC, other.hq_HWC), (one.lq_HWC, other.lq_HWC))
    alike = all(np.array_equal(a, b) if a is not None and b is not None else a is b for a, b in sides)
    return alike and (one.key, one.caption) == (other.key, other.caption)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache, where indices are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_packed_samples_are_read_back(tmp_path) -> None:
    root = folder(tmp_path / "photos")
    (root / "bad.png").write_bytes(b"no image")
    done = packed(root, tmp_path / "shards", "shard_size=2")
    assert (done.shards, done.samples) == (3, 5)
    source, original = ShardsSource(done.output), FolderSource(root)
    good = [number for number, key in enumerate(original.keys()) if key != "bad"]
    assert source.keys() == [original.keys()[number] for number in good] and len(source) == len(good) == 5
    assert all(same(source.read(i), original.read(number)) for i, number in enumerate(good))
    assert {source.read(i).caption for i in range(5)} >= {"picture, 1", ""}
    again = pickle.loads(pickle.dumps(source))
    assert all(same(source.read(i), again.read(i)) for i in range(5))


def test_packing_is_deterministic_and_resumes(tmp_path) -> None:
    root = folder(tmp_path / "photos")
    one, two = (packed(root, tmp_path / name, "shard_size=2").output for name in ("one", "two"))
    tars = sorted(path.name for path in one.glob("*.tar"))
    assert tars == ["000000.tar", "000001.tar", "000002.tar"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in tars)
    before = (two / tars[0]).stat().st_mtime_ns
    (two / tars[1]).unlink()
    (two / ".index" / "manifest.json").unlink()
    (two / ".index" / "unfinished.json").write_text((one / ".index" / "manifest.json").read_text())
    assert packed(root, two, "shard_size=2").samples == 5
    assert (one / tars[1]).read_bytes() == (two / tars[1]).read_bytes()
    assert (two / tars[0]).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds shards of something else"):
        packed(root, two, "shard_size=3")
    lossy = ShardsSource(packed(root, tmp_path / "jpg", "images=jpg").output).read(0).hq_HWC
    assert lossy is not None and not np.array_equal(lossy, image(0))


def test_pairs_and_foreign_tars(tmp_path) -> None:
    pair = [("x/1.lq.jpg", encoded(1, "JPEG")), ("x/1.HQ.png", encoded(2)), ("x/1.json", b'{"caption": "a  cat"}')]
    alone = [("./2.png", encoded(3)), ("2.txt", b"a dog"), ("2.cls", b"7"), ("README", b""), (".hidden.png", b"")]
    tar_of(tmp_path / "t.tar", *pair, *alone, ("3.txt", b"no image"))
    source = ShardsSource(tmp_path / "t.tar")
    first, second = source.read(0), source.read(1)
    assert source.keys() == ["x/1", "2"]
    assert first.lq_HWC is not None and np.array_equal(first.hq_HWC, image(2)) and first.caption == "a cat"
    assert second.lq_HWC is None and np.array_equal(second.hq_HWC, image(3)) and second.caption == "a dog"
    bad = ShardsSource(tmp_path / "t.tar", role="lq", captions=False).read(1)
    assert bad.hq_HWC is None and np.array_equal(bad.lq_HWC, image(3)) and not bad.caption


def test_keys_in_two_tars_get_the_tars_name_as_prefix(tmp_path) -> None:
    for name in ("a", "b"):
        tar_of(tmp_path / f"{name}.tar", ("0.png", encoded(0)))
    assert ShardsSource(tmp_path).keys() == ["a/0", "b/0"]


def test_several_images_per_sample_need_the_setting_image(tmp_path) -> None:
    tar_of(tmp_path / "t.tar", ("1.png", encoded(1)), ("1.webp", encoded(2)))
    with pytest.raises(ValueError, match=r"t.tar: 1 has several images, webp among them; say which with image=webp"):
        ShardsSource(tmp_path)
    tar_of(tmp_path / "t.tar", ("1.png", encoded(1)), ("1.webp", encoded(2)))
    assert np.array_equal(ShardsSource(tmp_path, image="png").read(0).hq_HWC, image(1))


def test_the_webdataset_package_reads_what_is_packed_and_its_tars_are_read(tmp_path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"a/{number:04d}", "png": image(number), "txt": f"words {number}", "cls": number})
    theirs = ShardsSource(tmp_path / "theirs.tar")
    assert theirs.keys() == ["a/0000", "a/0001", "a/0002"] and theirs.read(2).caption == "words 2"
    assert all(np.array_equal(theirs.read(number).hq_HWC, image(number)) for number in range(3))
    done = packed(folder(tmp_path / "photos"), tmp_path / "shards", "shard_size=100")
    samples = list(webdataset.WebDataset(str(done.output / "000000.tar"), shardshuffle=False))
    assert len(samples) == 5
    for sample in samples:
        source = ShardsSource(done.output)
        index = source.keys().index(json.loads(sample["json"])["key"])
        assert np.array_equal(np.array(Image.open(io.BytesIO(sample["png"]))), source.read(index).hq_HWC)


# Who sees what -------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path) -> Path:
    """22 samples in 6 tars."""
    names = tuple(f"{number:03d}" for number in range(22))
    return packed(folder(tmp_path / "many", names), tmp_path / "shards", "shard_size=4").output


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_sample_is_read_once_per_epoch_by_any_number_of_readers(many, window, world) -> None:
    """Batches of 4 over 3 epochs of 22 samples, which end within a batch; stopped in the middle of the second."""
    source = ShardsSource(many, window=window)

    def seen(start: int, batches: int) -> list[tuple[int, int]]:
        ranks = [
            itertools.islice(
                PositionSampler(22, batch_size=4, seed=5, start=start, rank=r, world=world, order=source.order), batches
            )
            for r in range(world)
        ]
        whole = [list(rank) for rank in ranks]
        return [whole[slot % world][b][slot // world] for b in range(batches) for slot in range(4)]

    there = seen(0, 8) + seen(32, 9)
    assert there == [PositionSampler(22, batch_size=4, seed=5, order=source.order).at(p) for p in range(68)]
    for epoch in range(3):
        assert Counter(i for e, i in there if e == epoch) == Counter(range(22))
    assert [i for e, i in there if e == 0] != [i for e, i in there if e == 1]


def test_workers_and_a_restart_change_nothing(many) -> None:
    def keys(workers: int, *, start: int = 0, count: int = 11) -> list[str]:
        data = RestorationDataModule(train=ShardsSource(many, window=8), crop=4, batch_size=4, workers=workers)
        data.trainer = type("T", (), {"global_rank": 0, "world_size": 1, "global_step": start})()  # type: ignore
        data.trainer.accumulate_grad_batches, data.trainer.overfit_batches = 1, 0  # type: ignore[union-attr]
        return [key for batch in itertools.islice(iter(data.train_dataloader()), count) for key in batch.key]

    whole = keys(0)
    assert Counter(whole) == Counter({f"{n:03d}": 2 for n in range(22)})
    assert keys(3) == whole and keys(2, count=3) + keys(2, start=3, count=8) == whole


def test_without_a_window_shards_train_as_their_folder(many, tmp_path) -> None:
    streams = []
    for source in (ShardsSource(many), FolderSource(tmp_path / "many")):
        data = RestorationDataModule(train=source, crop=4, batch_size=3, seed=7)
        streams.append([(b.key, b.seed, b.hq_BCHW) for b in itertools.islice(iter(data.train_dataloader()), 9)])
    for one, other in zip(*streams, strict=True):
        assert one[:2] == other[:2] and bool((one[2] == other[2]).all())


def test_a_window_limits_the_tars_read_at_a_time(many) -> None:
    source = ShardsSource(many, window=8)
    order = source.order(seed=0, epoch=0)
    shards = [[int(source._shard[i]) for i in order[first : first + 8]] for first in range(0, 22, 8)]
    assert all(len(set(window)) <= 3 for window in shards)
    assert any(len(set(np.diff(order[first : first + 8]).tolist())) > 3 for first in range(0, 22, 8))  # not in order
    free = ShardsSource(many).order(seed=0, epoch=0)
    assert max(len({int(source._shard[i]) for i in free[first : first + 8]}) for first in range(0, 22, 8)) > 3
    with pytest.raises(ValueError, match="window=0"):
        ShardsSource(many, window=0)


# Indices -------------------------------------------------------------------------------------------------------------


def test_an_index_is_made_once_per_version_of_a_tar(tmp_path, monkeypatch) -> None:
    tar = tar_of(tmp_path / "t.tar", ("1.png", encoded(1)))
    scans: list[Path] = []
    monkeypatch.setattr(tar_index, "scan", lambda place: scans.append(place) or scan(place))
    for _ in range(2):
        assert list(index_of(tar).keys) == ["1"]
    assert len(scans) == 1 and note_place(tar).is_file() and not (tmp_path / ".index").exists()
    tar_of(tar, ("2.png", encoded(1)), ("3.png", encoded(1)))
    assert list(index_of(tar).keys) == ["2", "3"] and len(scans) == 2
    note = json.loads(note_place(tar).read_text())
    for damage in ({"offset": [10**9, 0], "length": [5, 5]}, {"offset": [0], "length": [5]}, {"offset": "x"}):
        note["members"]["png"] = damage
        note_place(tar).write_text(json.dumps(note))
        assert list(index_of(tar).keys) == ["2", "3"]
    assert len(scans) == 5  # an index that does not fit is made again


def test_an_index_that_came_with_a_tar_is_ignored(tmp_path, monkeypatch) -> None:
    """Not next to the tar, nor in another user's cache, nor for a file that replaces the tar."""
    for name in ("mine", "theirs", "other"):
        (tmp_path / name).mkdir()
    mine, theirs = (tar_of(tmp_path / name / "t.tar", ("1.png", encoded(1))) for name in ("mine", "theirs"))
    index_of(mine)
    forged = {**json.loads(note_place(mine).read_text()), **stamp(theirs), "keys": ["forged"], "sha256": "f" * 64}
    for place in (theirs.parent / ".index" / "t.tar.json", theirs.parent / note_place(theirs).name):
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(forged))
    assert read_note(theirs) is None and list(index_of(theirs).keys) == ["1"]
    assert fingerprint(theirs) == fingerprint(mine) != "f" * 32
    before = theirs.stat()
    other = tar_of(tmp_path / "other" / "t.tar", ("2.png", encoded(1)))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, theirs)
    assert theirs.stat().st_size == before.st_size and theirs.stat().st_mtime_ns == before.st_mtime_ns
    assert list(index_of(theirs).keys) == ["2"] and fingerprint(theirs) != fingerprint(mine)


def test_an_unwritable_index_cache_is_one_line(tmp_path, cache) -> None:
    cache.write_text("a file where the folder would be: nobody, root included, can write below it")
    with pytest.raises(ValueError, match=r"its index cannot be written to .*; set XDG_CACHE_HOME"):
        ShardsSource(tar_of(tmp_path / "t.tar", ("1.png", encoded(1))))


def test_the_identity_of_shards_is_their_content(tmp_path, monkeypatch) -> None:
    """The index is no part of it, and once it is there the tars are not read for their name."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tar_of(tmp_path / name / "t.tar", ("1.png", encoded(1)))
    ShardsSource(tmp_path / "a")
    read: list[str] = []
    monkeypatch.setattr(identity.hashlib, "file_digest", lambda *a: read.append("") or real(*a))
    assert fingerprint(tmp_path / "a") and not read
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") and read
    (tmp_path / "a" / "t.tar").write_bytes((tmp_path / "a" / "t.tar").read_bytes() + b"\0" * 512)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


real = identity.hashlib.file_digest


# Hostile tars --------------------------------------------------------------------------------------------------------


def typed(kind: bytes, name: str = "1.png", **fields):
    def edit(tar: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo(name)
        entry.type = kind
        for field, value in fields.items():
            setattr(entry, field, value)
        tar.addfile(entry)

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (typed(tarfile.SYMTYPE, linkname="/etc/passwd"), "member '1.png' is no plain file"),
        (typed(tarfile.LNKTYPE, linkname="0.png"), "member '1.png' is no plain file"),
        (typed(tarfile.CHRTYPE, devmajor=1), "member '1.png' is no plain file"),
        (typed(tarfile.FIFOTYPE), "member '1.png' is no plain file"),
        (typed(tarfile.GNUTYPE_SPARSE), "member '1.png' is no plain file|not a tar that can be read"),
        (typed(tarfile.REGTYPE, "/etc/1.png"), "member '/etc/1.png' has a name that leads elsewhere"),
        (typed(tarfile.REGTYPE, "a/../../1.png"), "member 'a/../../1.png' has a name that leads elsewhere"),
        (typed(tarfile.REGTYPE, "%2E%2E/%2e%2e/1.png"), "has a name that leads elsewhere"),
        (typed(tarfile.REGTYPE, "%2Fetc/1.png"), "has a name that leads elsewhere"),
        (typed(tarfile.REGTYPE, "a\nb.png"), "has a name that leads elsewhere, or cannot be shown"),
        (typed(tarfile.REGTYPE, "0.png"), "member '0.png' is there twice"),
        (typed(tarfile.REGTYPE, "0.PNG"), "member '0.PNG' is there twice"),
    ],
)
def test_hostile_members_are_refused_by_name(edit, says, tmp_path) -> None:
    tar = tar_of(tmp_path / "t.tar", ("0.png", encoded(0)), edit=edit)
    with pytest.raises(ValueError, match=says) as caught:
        ShardsSource(tar)
    assert "\n" not in errors.flatten(caught.value) and str(tar) in str(caught.value)
    assert not note_place(tar).exists()


def claiming(tar: Path, size: int) -> Path:
    """A tar whose second member's header gives another size than it has."""
    tar_of(tar, ("0.png", encoded(0)), ("1.png", encoded(1)))
    with tarfile.open(tar) as opened:
        entry = opened.getmembers()[1]
    data = bytearray(tar.read_bytes())
    entry.size = size
    data[entry.offset : entry.offset + 512] = entry.tobuf(tarfile.GNU_FORMAT)[:512]
    tar.write_bytes(bytes(data))
    return tar


@pytest.mark.parametrize("size", [10**15, 8**11 - 1, -1024, -(10**9)])
def test_sizes_beyond_the_tar_are_refused(size, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"has no place in|not a tar that can be read|cut off or damaged"):
        ShardsSource(claiming(tmp_path / "t.tar", size))


def test_damaged_tars_and_other_files_are_refused_by_name(tmp_path) -> None:
    whole = tar_of(tmp_path / "t.tar", *((f"{n}.png", encoded(n)) for n in range(4))).read_bytes()
    with tarfile.open(tmp_path / "t.tar") as tar:
        third = tar.getmembers()[2]
    for name, data, says in (
        ("in a member", whole[: third.offset_data + 10], "not a tar that can be read|no place in"),
        ("between members", whole[: third.offset], "cut off or damaged"),
        ("a header", whole[: third.offset] + b"x" * 512 + whole[third.offset + 512 :], "cut off or damaged"),
        ("appended", whole + whole, "cut off or damaged|something follows its end"),
        ("empty", b"", "not a tar that can be read"),
        ("text", b"hello" * 200, "not a tar that can be read"),
        ("gzip", b"\x1f\x8b" + whole, "it is compressed"),
        ("no samples", b"\0" * 10240, "holds no samples"),
    ):
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(ValueError, match=says) as caught:
            ShardsSource(tmp_path / f"{name}.tar")
        assert "\n" not in str(caught.value)


def test_a_bad_member_affects_only_its_sample(tmp_path) -> None:
    tar_of(tmp_path / "t.tar", ("0.png", encoded(0)), ("1.png", b"no image"), ("2.png", encoded(2) + b"\0" * 2000))
    source = ShardsSource(tmp_path / "t.tar", max_bytes=2000)
    assert source.read(0).hq_HWC is not None
    for index, says in ((1, r"t.tar: 1: "), (2, r"t.tar: 2: \d+ bytes are more than max_bytes=2000")):
        with pytest.raises(BadImage, match=says):
            source.read(index)


def test_a_tar_that_changes_under_a_run_is_named(tmp_path) -> None:
    tar = tar_of(tmp_path / "t.tar", ("0.png", encoded(0)))
    source = ShardsSource(tar)
    tar.write_bytes(tar.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="changed while it was in use"):
        source.read(0)


@pytest.mark.parametrize("root", ["https://host/{0..9}.tar", "s3://bucket", "pipe:curl x"])
def test_remote_roots_are_refused_in_one_line(root) -> None:
    with pytest.raises(ValueError, match="shards are read by offset from local files"):
        ShardsSource(root)


def test_folders_without_tars_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no .tar in or below it; restore-lab data pack"):
        ShardsSource(tmp_path)
    with pytest.raises(ValueError, match="no such folder of tars"):
        ShardsSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no sample of 1 tars has an image; they have cls"):
        ShardsSource(tar_of(tmp_path / "t.tar", ("1.cls", b"7")))
