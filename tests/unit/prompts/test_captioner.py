"""Captions by image-text-to-text models of the common classes with random weights; the pass; the verb."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restore_lab.inference.captioning import caption_ahead, caption_folder, shrink
from restore_lab.prompts.captioner import Captioner, GumbelSampling
from restore_lab.prompts.semantic import FromFile
from restore_lab.prompts.slots import PromptSources
from restore_lab.prompts.vlm import Vlm
from restore_lab.storage.outputs import write_output
from tests.helpers.configs import composed
from tests.helpers.toy_captioners import KINDS, toy_captioner
from tests.helpers.toy_methods import toy_batch, toy_spire


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return toy_captioner(tmp_path_factory.mktemp("llava"), "llava")


def made(model: Path | str, **changes) -> Captioner:
    settings = {
        "question": "What is it?",
        "batch_size": 2,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_p": 0.9,
        "bits": None,
        "cache": None,
        "device": "cpu",
    }
    return Captioner(model=str(model), **{**settings, **changes})


def images(count: int, *, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 255, (20 + i, 30, 3), dtype=np.uint8) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_depends_on_its_image_alone(kind, tmp_path) -> None:
    captioner = made(toy_captioner(tmp_path, kind))
    captioner._load()[1].double()  # in float32 a batch's last bits may tip a draw: seen once in seven runs
    together = list(captioner.captions(images(5)))
    assert len(set(together)) == 5  # a random model's may be empty
    assert [caption for image in images(5) for caption in captioner.captions([image])] == together
    assert list(made(tmp_path, question="Why?").captions(images(1))) != together[:1]


def test_existing_captions_are_not_made_again(llava, tmp_path, monkeypatch) -> None:
    one = made(llava, cache=str(tmp_path))
    captions = list(one.captions(images(3)))
    entry = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))
    assert entry["question"] == "What is it?" and entry["model"] == str(llava) and entry["caption"] in captions
    other = made(llava, cache=str(tmp_path))
    asked: list[int] = []
    monkeypatch.setattr(other, "_ask", lambda images: asked.append(len(images)) or ["new"] * len(images))
    assert list(other.captions([*images(3), *images(1, seed=9)])) == [*captions, "new"]
    assert asked == [1] and other._loaded is None  # nothing was loaded for what was known
    for file in tmp_path.glob("*.json"):
        file.write_text("{")  # damaged entries count as none
    assert list(other.captions(images(2))) == ["new", "new"]


def test_sampled_tokens_follow_the_logits() -> None:
    """Gumbel noise: the largest of logits / temperature + noise falls on each word as often as its probability says."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]]).repeat(4000, 1)
    drawing = GumbelSampling([str(i) for i in range(4000)], temperature=2.0, top_p=1.0)
    found = torch.bincount(drawing(None, logits).argmax(dim=1), minlength=4) / 4000
    torch.testing.assert_close(found, (logits[0] / 2).softmax(0), atol=0.03, rtol=0)
    nucleus = GumbelSampling([str(i) for i in range(500)], temperature=2.0, top_p=0.5)
    assert set(nucleus(None, logits[:500]).argmax(dim=1).tolist()) == {0}
    again = GumbelSampling(["7"], temperature=2.0, top_p=1.0)(None, logits[:1]).argmax(dim=1)
    assert torch.equal(again, drawing.__class__(["7"], 2.0, 1.0)(None, logits[:1]).argmax(dim=1))


def test_a_missing_model_is_refused_in_one_line(tmp_path, llava, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for model in ("nobody/nothing", str(tmp_path)):
        with pytest.raises(ValueError, match=r"cannot be used .* prompt/semantic=caption, file or none") as caught:
            list(made(model).captions(images(1)))
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"cannot be used .*bitsandbytes"):
        list(made(llava, bits=4).captions(images(1)))
    with pytest.raises(ValueError, match=r"Captioner\.bits=3: there are: 4, 8, or null"):
        made(llava, bits=3)
    with pytest.raises(ValueError, match=r"Captioner\.top_p=0\.0: expected a number above 0 and at most 1"):
        made(llava, top_p=0.0)


def test_bits_reach_the_loader(llava, monkeypatch) -> None:
    import transformers

    asked = {}

    def stop(source, **settings):
        asked.update(settings)
        raise OSError("far enough")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", stop)
    monkeypatch.setattr(transformers.BitsAndBytesConfig, "post_init", lambda self: None)
    with pytest.raises(ValueError, match="far enough"):
        list(made(llava, bits=4).captions(images(1)))
    assert asked["quantization_config"].load_in_4bit and asked["device_map"] == {"": "cpu"}


def with_vlm(llava, looks_at: str):
    module = toy_spire()
    old = module.conditioner.prompts
    source = Vlm(captioner=made(llava), looks_at=looks_at, side=8)
    module.conditioner.prompts = PromptSources(
        semantic=source, instruction=old.instruction, dropout=old.dropout, positive="", negative=""
    )
    return module, source


@pytest.mark.parametrize("looks_at", ["lq", "reconstruction", "hq"])
def test_the_pass_captions_the_requested_images(llava, looks_at) -> None:
    module, source = with_vlm(llava, looks_at)
    pairs = toy_batch(3)
    shown: list[np.ndarray] = []
    source.captioner.captions = lambda images: (f"caption {len(shown)}" for image in images if not shown.append(image))
    with pytest.raises(ValueError, match=r"key_0: not captioned yet; for training caption the clean images first"):
        source(pairs)
    halves = (pairs.select([0, 1]), pairs.select([2]))
    caption_ahead(module, [module.conditioner.prompts] * 2, halves)  # two rows with one source: looked at once
    wanted = {"lq": pairs.lq_BCHW, "hq": pairs.hq_BCHW, "reconstruction": module.reconstruct(pairs.lq_BCHW)}[looks_at]
    assert len(shown) == 3 and all(image.shape == (8, 8, 3) for image in shown)
    for image, view in zip(shown, wanted, strict=True):
        full = (view.permute(1, 2, 0) * 255).round().byte().numpy()
        np.testing.assert_array_equal(image, shrink(full, side=8))
    assert module.conditioner.prompts(pairs, training=False).semantic == ("caption 1", "caption 2", "caption 3")
    assert module.restore(pairs).shape == pairs.lq_BCHW.shape


def test_the_pass_needs_a_captioner_and_its_images(llava) -> None:
    module = toy_spire()

    def never():
        raise AssertionError("nothing should be read")
        yield

    caption_ahead(module, [module.conditioner.prompts], never())
    module, _ = with_vlm(llava, "hq")
    with pytest.raises(ValueError, match=r"looks_at=hq: these images have none"):
        caption_ahead(module, [module.conditioner.prompts], [replace(toy_batch(), hq_BCHW=None)])
    with pytest.raises(ValueError, match="looks_at=sq: did you mean lq"):
        Vlm(captioner=made(llava), looks_at="sq", side=8)


def test_caption_writes_a_table_that_a_folder_source_reads(llava, tmp_path, caplog) -> None:
    from restore_lab.data.sources.folder import FolderSource

    for name, image in zip(("a", "b"), images(2), strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    small = ("prompt.semantic.captioner.max_new_tokens=4", "progress=false", f"runs_dir={tmp_path / 'runs'}")
    cfg = composed("caption", f"input={tmp_path}", f"prompt.semantic.captioner.model={llava}", *small)
    with caplog.at_level(logging.WARNING):
        done = caption_folder(cfg)
    assert done.written == 2 and len(done.bad) == 1 and "c.png" in caplog.text
    table = json.loads((tmp_path / "captions.json").read_text(encoding="utf-8"))
    assert list(table) == ["a.png", "b.png"]
    source = FolderSource(tmp_path)
    assert source.read(0).caption == " ".join(table["a.png"].split())
    assert FromFile(path=str(tmp_path / "captions.json"))(toy_named("a", "b")) == tuple(
        " ".join(text.split()) for text in table.values()
    )


def test_caption_keeps_the_tables_other_rows(llava, tmp_path) -> None:
    Image.fromarray(images(1)[0]).save(tmp_path / "a.png")
    table, words = tmp_path / "captions.json", json.dumps({"a.png": "old", "b.png": "of another image"})
    small = ("prompt.semantic.captioner.max_new_tokens=4", "progress=false", f"runs_dir={tmp_path / 'runs'}")
    cfg = composed("caption", f"input={tmp_path / 'a.png'}", f"prompt.semantic.captioner.model={llava}", *small)
    table.write_text(words)  # a person's
    with pytest.raises(ValueError, match=r"captions\.json: not written by restore-lab"):
        caption_folder(cfg)
    assert table.read_text() == words
    table.unlink()
    write_output(table, words.encode())  # as the command leaves it
    caption_folder(cfg)
    captions = json.loads(table.read_text(encoding="utf-8"))
    assert captions["b.png"] == "of another image" and captions["a.png"] != "old"


def toy_named(*names: str):
    return replace(toy_batch(len(names)), key=names)


def test_captions_from_a_table_name_every_image(tmp_path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"trip/cat 1.png": "a cat", "dog": "a dog"}))
    source = FromFile(path=str(tmp_path / "t.json"))
    assert source(toy_named("trip/cat 1", "dog")) == ("a cat", "a dog")
    with pytest.raises(ValueError, match=r"t\.json: names no image 'cow'; it names trip/cat 1\.png"):
        source(toy_named("cow"))


def test_an_ambiguous_short_name_has_no_caption(tmp_path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"photo": "A", "photo.v2": "B", "x.jpg": "C", "x.png": "D"}))
    source = FromFile(path=str(tmp_path / "t.json"))
    assert source(toy_named("photo", "photo.v2", "x.png")) == ("A", "B", "D")
    with pytest.raises(ValueError, match="names no image 'x'"):
        source(toy_named("x"))
