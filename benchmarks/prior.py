"""What a shipped prior can do: its codec on held-out photographs, and whether its captions steer it.

    .venv/bin/python benchmarks/prior.py --prior restore_lab/assets/tiny_sd --images 128 --sheet prior.png

The prior is loaded by plain diffusers (DiffusionPipeline), which shows that the folder is what it says it is.
Steering: images are drawn from captions of unseen scenes; tiny_clip must tell the caption of each from another scene's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from restore_lab.backbones.codec.codec import Codec
from restore_lab.data.image_io import to_tensor
from restore_lab.data.sources.photos import PhotosSource
from restore_lab.data.sources.procedural import draw_captions
from restore_lab.evaluation.metrics.clip import ClipText

PHOTOS = (
    ["astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry"]
    + ["stereo_motorcycle", "camera", "brick", "grass", "gravel", "moon", "coins"]
)  # fmt: skip
BATCH = 16


def codec_psnr(codec: Codec, *, size: int | None) -> float:
    """Mean PSNR in dB of D(E(x)) over 64x64 crops, four a photograph, of short side `size` (None: as they are)."""
    source = PhotosSource(PHOTOS, size=size, crops=4, crop=64)
    found = []
    for index in range(len(source)):
        picture = source.read(index, epoch=0)
        x_BCHW = to_tensor(picture.hq_HWC)[None]
        with torch.no_grad():
            error = (codec.decode(codec.encode(x_BCHW)) - x_BCHW).square().mean()
        found.append(float(-10 * error.log10()))
    return float(np.mean(found))


def steering(pipeline: DiffusionPipeline, *, images: int, scale: float, steps: int, sheet: Path | None) -> float:
    """The share of images whose own caption fits better, by tiny_clip, than the next image's."""
    texts = draw_captions(seed=99, count=images)
    clip = ClipText(name="tiny_clip_t", path="asset:tiny_clip")
    right, drawn = [], []
    for start in range(0, images, BATCH):
        own = texts[start : start + BATCH]
        other = [texts[(start + i + images // 2) % images] for i in range(len(own))]
        arrays = pipeline(
            own,
            height=64,
            width=64,
            guidance_scale=scale,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(start),
            output_type="np",
            **(
                {"max_sequence_length": 0} if hasattr(pipeline, "text_encoder_3") else {}
            ),  # trained without T5's tokens
        ).images
        x_BCHW = torch.from_numpy(arrays).permute(0, 3, 1, 2).float()
        drawn.extend(arrays)
        right.extend((clip(x_BCHW, None, own) > clip(x_BCHW, None, other)).tolist())
    if sheet is not None:
        _sheet(np.stack(drawn[:48])).save(sheet)
    return float(np.mean(right))


def told_size(pipeline: DiffusionPipeline, *, images: int, scale: float, steps: int) -> dict[int, float]:
    """Mean absolute difference of neighbouring pixels in samples that are told they were 16, 32 and 64 pixels once."""
    texts, found = draw_captions(seed=99, count=images), {}
    for side in (16, 32, 64):
        rough = []
        for start in range(0, images, BATCH):
            arrays = pipeline(
                texts[start : start + BATCH],
                height=64,
                width=64,
                original_size=(side, side),
                target_size=(64, 64),
                guidance_scale=scale,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(start),
                output_type="np",
            ).images
            rough += [np.abs(np.diff(image, axis=0)).mean() + np.abs(np.diff(image, axis=1)).mean() for image in arrays]
        found[side] = round(float(np.mean(rough)) / 2, 4)
    return found


def _sheet(images_NHWC: np.ndarray) -> Image.Image:
    lines = [np.concatenate(list(images_NHWC[i : i + 12]), axis=1) for i in range(0, len(images_NHWC), 12)]
    picture = Image.fromarray((np.concatenate(lines, axis=0) * 255).round().astype(np.uint8))
    return picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)


def main() -> None:
    """Print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", required=True)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    index = json.loads((Path(given.prior) / "model_index.json").read_text())
    absent = {name: None for name, value in index.items() if value == [None, None]}  # SD3's pipeline wants to be told
    pipeline = DiffusionPipeline.from_pretrained(given.prior, torch_dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    codec = Codec(pipeline.vae)
    facts = {
        "codec_psnr_native": round(codec_psnr(codec, size=None), 2),
        "codec_psnr_256": round(codec_psnr(codec, size=256), 2),
        "own_caption_preferred": steering(
            pipeline, images=given.images, scale=given.scale, steps=given.steps, sheet=given.sheet
        ),
        "images": given.images,
    }
    if type(pipeline).__name__ == "StableDiffusionXLPipeline":
        facts["roughness_by_told_size"] = told_size(pipeline, images=given.images, scale=given.scale, steps=given.steps)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
