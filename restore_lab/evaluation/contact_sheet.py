"""The images of an evaluation: a contact sheet (one row per image, input | restored | original, with its prompts
below), and every image as a file next to the record."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from restore_lab.evaluation.records import image_file
from restore_lab.storage.atomic import write_bytes_atomic

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MARGIN, GAP, LINE = 16, 8, 15
WIDTH_IN_LETTERS = 6.2
TILE_SIDE = 192
QUALITY = 90  # of the WebP files, which are not measured


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One row of the contact sheet: images CHW in [0, 1] of one size, their titles, and the prompts."""

    images: tuple[Tensor, ...]
    titles: tuple[str, ...]
    caption: str
    instruction: str


def contact_sheet(panels: Sequence[Panel], path: Path, *, columns: int = 2) -> Path:
    """Draw the panels in a grid of `columns`, write it as PNG, and return the path."""
    from PIL import Image

    drawn = [_panel(panel) for panel in panels]
    width, height = max(p.width for p in drawn), max(p.height for p in drawn)
    lines = -(-len(drawn) // columns)
    columns = min(columns, len(drawn))
    sheet = Image.new("RGB", (MARGIN + columns * (width + MARGIN), MARGIN + lines * (height + MARGIN)), "white")
    for index, panel in enumerate(drawn):
        line, column = divmod(index, columns)
        sheet.paste(panel, (MARGIN + column * (width + MARGIN), MARGIN + line * (height + MARGIN)))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_bytes_atomic(path, buffer.getvalue())
    return path


def keep_images(folder: Path, rows: Mapping[str, Tensor], keys: Sequence[str]) -> None:
    """Write images_BCHW in [0, 1] by row next to a record, one WebP file per image (`records.image_file`)."""
    for row, image_BCHW in rows.items():
        for key, image_CHW in zip(keys, image_BCHW.cpu(), strict=True):
            buffer = io.BytesIO()
            _image(image_CHW).save(buffer, format="WEBP", quality=QUALITY)
            write_bytes_atomic(image_file(folder, row, key), buffer.getvalue())


def _panel(panel: Panel) -> Image:
    """The images side by side, with titles above and prompts below."""
    from PIL import Image, ImageDraw, ImageFont

    tiles = [_tile(image) for image in panel.images]
    width = sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1)
    letters = int(width / WIDTH_IN_LETTERS)
    words = textwrap.wrap(f"instruction: {panel.instruction or '(none)'}", letters)
    words += textwrap.wrap(f"caption: {panel.caption or '(none)'}", letters)
    canvas = Image.new("RGB", (width, LINE + 4 + max(t.height for t in tiles) + 6 + LINE * max(len(words), 3)), "white")
    pen, font, x = ImageDraw.Draw(canvas), ImageFont.load_default(size=12), 0
    for tile, title in zip(tiles, panel.titles, strict=True):
        pen.text((x, 0), title, fill="black", font=font)
        canvas.paste(tile, (x, LINE + 4))
        x += tile.width + GAP
    for number, line in enumerate(words):
        pen.text((0, LINE + 10 + tiles[0].height + LINE * number), line, fill="black", font=font)
    return canvas


def _tile(image_CHW: Tensor) -> Image:
    """An image upsampled by an integer factor (nearest) to about `TILE_SIDE` pixels."""
    from PIL import Image

    tile = _image(image_CHW)
    factor = max(1, round(TILE_SIDE / max(tile.size)))
    return tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.NEAREST)


def _image(image_CHW: Tensor) -> Image:
    """An image in [0, 1] as 8-bit RGB."""
    from PIL import Image

    return Image.fromarray((image_CHW.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy())
