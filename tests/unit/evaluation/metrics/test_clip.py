"""CLIP metrics on a random CLIPModel folder, against transformers' forward; the message when it is absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from restore_lab.evaluation.metrics.clip import ClipFrechet, ClipImage, ClipText, load_clip, prepare
from restore_lab.evaluation.metrics.frechet import frechet_distance
from restore_lab.evaluation.protocol import MetricUnavailable, Protocol
from restore_lab.evaluation.suite import MetricSuite
from tests.helpers.toy_priors import toy_tokenizer

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clip")
    tokenizer = toy_tokenizer()
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shared,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **shared)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12))
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return place


def pictures(height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_clip_cosines_equal_transformers(folder: Path) -> None:
    first, second = pictures(), pictures().flip(0)
    captions = ["a cat", "stripes"]
    clip = load_clip(folder)
    tokens = clip.tokenizer(captions, padding=True, return_tensors="pt")
    shift, spread = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    out, other = (
        clip.model(
            pixel_values=(image - shift) / spread, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        )
        for image in (first, second)
    )
    measured_i = ClipImage(name="tiny_clip_i", path=str(folder))(first, second, None)
    torch.testing.assert_close(measured_i, (out.image_embeds * other.image_embeds).sum(1))
    measured_t = ClipText(name="tiny_clip_t", path=str(folder))(first, None, captions)
    torch.testing.assert_close(measured_t, (out.image_embeds * out.text_embeds).sum(1))


def test_a_caption_means_the_same_in_any_batch_and_none_has_no_value(folder: Path) -> None:
    metric = ClipText(name="t", path=str(folder))
    image = pictures()
    together = metric(image, None, ["a cat", "a long caption with more words than that " * 5])
    alone = metric(image[:1], None, ["a cat"])
    torch.testing.assert_close(together[:1], alone)
    values = metric(image, None, ["a cat", "  "])
    torch.testing.assert_close(values[:1], alone)
    assert values[1].isnan()
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        metric(image, None, ["a cat"])


@pytest.mark.parametrize(
    ("height", "width", "levels"), [(32, 32, 0.01), (48, 80, 1.2), (100, 64, 1.2), (64, 111, 1.2), (20, 33, 4.0)]
)
def test_preprocessing_equals_clips_processor(height: int, width: int, levels: float) -> None:
    """Within a grey level of transformers, which rounds to 8 bits between passes (and clips: more when enlarging)."""
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    image = (image * 255).round() / 255
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=list(MEAN), image_std=list(STD)
    )
    files = [Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()) for picture in image]
    expected = processor(files, return_tensors="pt")["pixel_values"]
    got = prepare(image, size=32, mean=MEAN, std=STD)
    assert got.shape == expected.shape
    grey_levels = (got - expected).abs() * torch.tensor(STD).view(1, 3, 1, 1) * 255
    assert grey_levels.max() < levels
    assert grey_levels.mean() < 0.4


def test_suite_reports_clip_under_its_own_names_with_the_weights(folder: Path) -> None:
    path = str(folder)
    metrics = {
        "i": ClipImage(name="tiny_clip_i", path=path),
        "t": ClipText(name="tiny_clip_t", path=path),
        "fd": ClipFrechet(name="tiny_fd", path=path),
    }
    suite = MetricSuite(metrics=metrics, protocol=Protocol(colour="y", border=4))
    restored, reference = pictures(40, 48), pictures(40, 48).flip(3)
    suite.update("LQ", restored, keys=["a", "b"], reference_BCHW=reference, captions=["a cat", ""])
    cells = {cell.metric: cell for cell in suite.compute().cells}
    assert {name: cell.n for name, cell in cells.items()} == {
        "tiny_clip_i": 2,
        "tiny_clip_t": 1,
        "tiny_fd": 2,
        "tiny_kd": 2,
    }
    column = cells["tiny_fd"].column
    assert column.weights.startswith(f"{folder.name}:")
    assert (column.colour, column.border) == ("rgb", 0)  # a network sees the whole picture
    clip = load_clip(folder)
    rounded = [(image * 255).round() / 255 for image in (restored, reference)]
    assert cells["tiny_fd"].mean == pytest.approx(frechet_distance(*(clip.images(image).double() for image in rounded)))
    assert cells["tiny_fd"].higher_is_better is False


def test_a_missing_clip_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restore_lab.evaluation.metrics.clip.ASSETS", tmp_path)
    metric = ClipImage(name="tiny_clip_i", path="asset:tiny_clip")
    assert metric.missing().startswith(f"tiny_clip_i: no CLIP in {tmp_path / 'tiny_clip'}; it needs config.json")
    with pytest.raises(MetricUnavailable, match="tiny_clip_i: no CLIP in"):
        metric(pictures(), pictures(), None)
    hub = ClipText(name="clip_t", path="nobody/no-such-clip")
    assert "clip_t: no CLIP at 'nobody/no-such-clip', as a folder or in the Hugging Face cache" in hub.missing()
    (tmp_path / "tiny_clip").mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / "tiny_clip" / name).write_text("{")
    with pytest.raises(MetricUnavailable, match="cannot be read"):
        metric(pictures(), pictures(), None)
