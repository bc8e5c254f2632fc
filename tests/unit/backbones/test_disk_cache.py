"""The disk cache of encodings: values equal computed ones, are keyed by content, and are bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from restore_lab.backbones.disk_cache import ENTRY, MARK, MARKER, DiskCache, content
from restore_lab.backbones.loading.load import load_backbone
from restore_lab.storage.identity import identity
from tests.helpers.rounding import close
from tests.helpers.toy_priors import toy_unet_folder

TEXTS = ["a cat", "", "a dog, asleep", "a cat"]


@pytest.fixture(params=["sd", "sdxl", "sd3"])
def folder(request, tmp_path) -> Path:
    return toy_unet_folder(tmp_path, request.param)


def loaded(folder: Path, cache: Path | None, **changes):
    family = "mmdit" if (folder / "transformer").is_dir() else "unet"
    return load_backbone(str(folder), family=family, cache_dir=cache and str(cache), cache_latents=True, **changes)


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("??/*.safetensors"))


def test_cached_texts_equal_encoded_ones(folder, tmp_path, monkeypatch) -> None:
    plain = loaded(folder, None).text(TEXTS)
    first = loaded(folder, tmp_path / "cache").text(TEXTS)
    assert len(files(tmp_path / "cache")) == 3
    again = loaded(folder, tmp_path / "cache", cache_text=False)
    monkeypatch.setattr(type(again.text), "_encode", lambda *a: pytest.fail("it is on disk"))
    for one, two, three in zip(plain, first, again.text(TEXTS), strict=True):
        assert (one is None) == (two is None) == (three is None)
        assert one is None or (close(one, two) and torch.equal(two, three))


def test_other_weights_dtypes_and_settings_have_separate_entries(tmp_path) -> None:
    cache = tmp_path / "cache"
    one = loaded(toy_unet_folder(tmp_path / "a", "sd3"), cache, t5_length=4)
    other = loaded(toy_unet_folder(tmp_path / "b", "sd3", seed=9), cache, t5_length=4)
    longer = loaded(tmp_path / "a" / "toy_sd3", cache, t5_length=8)
    tokens = [backbone.text(["a cat"])[0] for backbone in (one, other, longer)]
    assert len(files(cache)) == 3 and not torch.equal(tokens[0], tokens[1]) and tokens[2].shape[1] > tokens[0].shape[1]
    half = one.to(torch.bfloat16).text(["a cat"])[0]
    assert half.dtype == torch.bfloat16 and len(files(cache)) == 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other.text.cache.clear()
        other.text(["a cat"])
    assert len(files(cache)) == 5


def test_cached_latents_do_not_depend_on_their_batch(tmp_path, monkeypatch) -> None:
    folder, cache = toy_unet_folder(tmp_path, "sd"), tmp_path / "cache"
    images = torch.rand(3, 3, 16, 16)
    codec = loaded(folder, cache).codec
    alone = torch.cat([codec.encode(image[None]) for image in images])
    assert torch.equal(codec.encode_cached(images), alone) and len(files(cache)) == 3
    torch.testing.assert_close(alone, codec.encode(images), rtol=1e-4, atol=1e-5)
    fresh = loaded(folder, cache).codec
    monkeypatch.setattr(fresh.vae, "encode", lambda *a: pytest.fail("it is on disk"))
    assert torch.equal(fresh.encode_cached(images.flip(0)), alone.flip(0))
    monkeypatch.undo()
    changed = images.clone()
    changed[1, 0, 3, 3] += 1e-6
    fresh.encode_cached(changed)
    assert len(files(cache)) == 4
    for plain in (loaded(folder, None).codec, load_backbone(str(folder), family="unet", cache_dir=str(cache)).codec):
        assert torch.equal(plain.encode_cached(images), plain.encode(images)) and len(files(cache)) == 4


def test_a_content_key_depends_on_pixels_and_shape() -> None:
    image = torch.arange(12.0).reshape(3, 2, 2)
    assert content(image) == content(image.clone()) != content(image.reshape(3, 4, 1))
    assert content(image) != content(image.double()) and content(image) != content(image.flip(-1))


def test_a_damaged_entry_is_computed_again(tmp_path) -> None:
    codec, image = loaded(toy_unet_folder(tmp_path, "sd"), tmp_path / "cache").codec, torch.rand(1, 3, 16, 16)
    whole = codec.encode_cached(image)
    (file,) = files(tmp_path / "cache")
    for damage in (b"", b"{", file.read_bytes()[:-5]):
        file.write_bytes(damage)
        assert torch.equal(codec.encode_cached(image), whole)
    assert torch.equal(codec.encode_cached(image), whole) and len(file.read_bytes()) > 5


def test_a_full_cache_drops_the_oldest_entries(tmp_path) -> None:
    """Entries of 4 kB in 64 kB: never more than that and a sixteenth; what is asked for again stays."""
    module, made = torch.nn.Linear(1, 1), []

    def asked(cache: DiskCache, number: int) -> None:
        cache.get(number, module, lambda: made.append(number) or (torch.full((1000,), float(number)),))

    cache = DiskCache(tmp_path, base="", max_bytes=64_000)
    for number in range(60):
        asked(cache, number)
        asked(cache, 0)
        for age, file in enumerate(sorted(files(tmp_path), key=lambda file: file.stat().st_mtime_ns)):
            os.utime(file, ns=(age, age))  # the file system's clock may be too coarse to tell them apart
        assert sum(file.stat().st_size for file in files(tmp_path)) <= 64_000 + 4_000 + 4_200
    assert made == list(range(60))
    asked(cache, 59)
    asked(cache, 1)
    assert made == [*range(60), 1]
    found = cache.get(59, module, lambda: pytest.fail("it is there"))
    assert torch.equal(found[0], torch.full((1000,), 59.0))
    with pytest.raises(ValueError, match=r"holds nothing; give backbone.cache_gigabytes"):
        DiskCache(tmp_path, base="", max_bytes=0)


def test_only_a_folder_with_the_caches_marker_is_emptied(tmp_path) -> None:
    """A person's folder of weights looks like a cache: it is refused, and so is one with another program's mark."""
    module = torch.nn.Linear(1, 1)
    for name, tag in (("weights", None), ("other", b"Signature: 8a477f597d28d172789f06886806bc55\n# by pip\n")):
        theirs = tmp_path / name / "ab" / f"{'0' * 40}.safetensors"
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(b"trained for a month")
        if tag is not None:
            (tmp_path / name / MARKER).write_bytes(tag)
        with pytest.raises(ValueError, match=r"holds other files, and a full cache deletes; give a new or an empty"):
            DiskCache(tmp_path / name, base="", max_bytes=1)
        assert theirs.read_bytes() == b"trained for a month"
    cache = DiskCache(tmp_path / "new", base="", max_bytes=5_000)
    mine, link = tmp_path / "new" / "ab" / "weights.safetensors", tmp_path / "new" / "cd"
    mine.parent.mkdir()
    mine.write_bytes(b"x" * 10_000)
    link.symlink_to(tmp_path / "weights" / "ab")
    for number in range(3):
        cache.get(number, module, lambda: (torch.zeros(1000),))
    assert mine.is_file() and (tmp_path / "weights" / "ab" / f"{'0' * 40}.safetensors").is_file()
    assert len([file for file in files(tmp_path / "new") if ENTRY.fullmatch(file.name)]) <= 2
    (tmp_path / "new" / MARKER).unlink()
    before = files(tmp_path / "new")
    cache.get(9, module, lambda: (torch.zeros(1000),))
    assert set(before) < set(files(tmp_path / "new"))  # without its mark nothing goes


def test_processes_may_begin_a_cache_at_once(tmp_path) -> None:
    """One finds the other's mark half written."""
    (tmp_path / f".{MARKER}.x.tmp").write_bytes(MARK[:9])
    DiskCache(tmp_path, base="", max_bytes=1)
    assert (tmp_path / MARKER).read_bytes() == MARK
    (tmp_path / "ab").mkdir()
    DiskCache(tmp_path, base="", max_bytes=1)


def test_a_cache_does_not_change_the_identity() -> None:
    node = {"_target_": "restore_lab.backbones.loading.load.load_backbone", "path": "x", "family": "unet"}
    assert identity({"b": node}) == identity(
        {"b": {**node, "cache_dir": "/x", "cache_latents": True, "cache_gigabytes": 3}}
    )
