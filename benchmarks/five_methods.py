"""One picture: what the five shipped toys make of the same photographs.

    .venv/bin/python benchmarks/five_methods.py --picture docs/results/five_toys.jpg --photo docs/tutorials/photo.jpg

scikit-image's photographs (held out from every training here), shorter side 192, their middle; blurred with sigma 1.5,
then noise of sigma 0.1 of [0, 1]. Every method is asked once, with seed 0, its own defaults, the photograph's caption
and, where it reads one, the true instruction; nothing is chosen among several results. `--photo` writes the degraded
cat at 256 pixels: the photograph that the tutorials restore.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from restore_lab import Restorer
from restore_lab.data.image_io import to_image, to_tensor
from restore_lab.data.sources.photos import PHOTOS, PhotosSource
from restore_lab.degradation.apply import apply_recipe
from restore_lab.degradation.fixed import FixedDegradation
from restore_lab.evaluation.contact_sheet import Panel, contact_sheet
from restore_lab.storage.atomic import write_bytes_atomic

TOYS = {"spire": "SPIRE", "supir": "SUPIR", "diff_restorer": "Diff-Restorer", "instantir": "InstantIR", "dra": "DRA"}
STAGES = {"blur": 1.5, "noise": 0.1}


def degraded(name: str, size: int):
    """A photograph's middle as (LQ, HQ) CHW in [0, 1], and the instruction that is true of it."""
    source = PhotosSource([name], size=size, crops=1, crop=size)
    hq_CHW = to_tensor(source.read(0, epoch=0).hq_HWC)
    recipe = FixedDegradation(name="five", stages=STAGES).draw(0, size, size)
    return apply_recipe(recipe, hq_CHW).clamp(0, 1), hq_CHW, recipe.instruction()


def jpeg(image: Image.Image, path: Path, quality: int) -> None:
    """Write an image as JPEG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=quality, subsampling=0)
    write_bytes_atomic(path, buffer.getvalue())


def picture(names: list[str], path: Path) -> None:
    """Draw a line for each photograph: input, the five, original."""
    toys = {method: Restorer.load(overrides=[f"method={method}"], device="cpu") for method in TOYS}
    panels = []
    for name in names:
        lq_CHW, hq_CHW, instruction = degraded(name, 192)
        caption = PHOTOS[name].caption
        made = [toy(lq_CHW, caption=caption, instruction=instruction, seed=0).tensor for toy in toys.values()]
        titles = ("input", *TOYS.values(), "original")
        panels.append(Panel(images=(lq_CHW, *made, hq_CHW), titles=titles, caption=caption, instruction=instruction))
    with tempfile.TemporaryDirectory() as folder:
        jpeg(Image.open(contact_sheet(panels, Path(folder) / "sheet.png", columns=1)), path, 88)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--names", nargs="+", default=["chelsea", "coffee", "rocket"], choices=PHOTOS)
    args = parser.parse_args()
    if args.photo:
        jpeg(Image.fromarray(to_image(degraded("chelsea", 256)[0])), args.photo, 92)
    if args.picture:
        picture(args.names, args.picture)
