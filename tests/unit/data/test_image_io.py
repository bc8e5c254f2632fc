"""Hostile image files: each is read right or named in one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restore_lab.data.image_io import BadImage, read_image, resize_image, to_image, to_tensor, write_png

RAMP_HW = np.arange(256, dtype=np.uint8).reshape(16, 16)


def colour(height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png16(path: Path, values_HWC: np.ndarray) -> None:
    """A 16-bit PNG written by hand: Pillow cannot write 16-bit colour."""
    height, width, channels = values_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def bad(path: Path) -> str:
    """The message of the refusal, which must be one line that starts with the path."""
    with pytest.raises(BadImage) as caught:
        read_image(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_png_round_trip_is_exact_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "new" / "Zürich, 東京 1.png"
    write_png(path, colour())
    assert np.array_equal(read_image(path), colour())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, colour())
    with pytest.raises(ValueError, match="uint8 HxWx3"):
        write_png(path, colour().astype(np.float32))
    assert np.array_equal(read_image(path), colour())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_scaled_not_clipped(tmp_path: Path, channels: int) -> None:
    values = np.repeat(np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16, 1), channels, axis=2)
    if channels in (2, 4):
        values[..., -1] = 65535
    png16(tmp_path / "deep.png", values)
    read_HWC = read_image(tmp_path / "deep.png")
    assert read_HWC.shape == (16, 16, 3) and read_HWC.dtype == np.uint8
    assert np.abs(read_HWC[..., 0].astype(int) - RAMP_HW).max() <= 1


def test_16_bit_and_float_tiff(tmp_path: Path) -> None:
    Image.fromarray(RAMP_HW.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    Image.fromarray(RAMP_HW.astype(np.float32) / 255).save(tmp_path / "float.tif")
    for name in ("deep.tif", "float.tif"):
        assert np.array_equal(read_image(tmp_path / name)[..., 1], RAMP_HW)


def test_float_of_unknown_range_is_named(tmp_path: Path) -> None:
    Image.fromarray(RAMP_HW.astype(np.float32)).save(tmp_path / "a.tif")
    assert bad(tmp_path / "a.tif") == "pixel values 0 to 255 in mode F; expected 0 to 1"


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "solid.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert read_image(tmp_path / "solid.png")[0].tolist()[:2] == [[10, 20, 30], [200, 100, 50]]
    assert read_image(tmp_path / "clear.png")[0].tolist()[:2] == [[10, 20, 30], [255, 255, 255]]


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[100, 0, 200, 255], [100, 0, 200, 0], [100, 0, 200, 51]]], np.uint8)).save(
        tmp_path / "a.png"
    )
    Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8), mode="LA").save(tmp_path / "la.png")
    # 0.2 x 100 + 0.8 x 255 = 224, 0.8 x 255 = 204, 0.2 x 200 + 204 = 244.
    assert read_image(tmp_path / "a.png")[0].tolist() == [[100, 0, 200], [255, 255, 255], [224, 204, 244]]
    assert read_image(tmp_path / "la.png")[0].tolist() == [[100, 100, 100], [255, 255, 255]]


def test_grey_bilevel_and_colour_key(tmp_path: Path) -> None:
    Image.fromarray(RAMP_HW).save(tmp_path / "grey.png")
    Image.fromarray(RAMP_HW > 127).save(tmp_path / "bits.png")
    Image.fromarray(RAMP_HW).save(tmp_path / "key.png", transparency=0)
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(RAMP_HW[..., None], 3, axis=2))
    assert np.array_equal(read_image(tmp_path / "bits.png")[..., 2], np.where(RAMP_HW > 127, 255, 0))
    assert read_image(tmp_path / "key.png")[0, :2, 0].tolist() == [255, 1]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_not_inverted(tmp_path: Path, suffix: str) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red.save(tmp_path / f"a.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, orientation: int) -> None:
    upright_HWC = colour(4, 6)
    # The standard's table: where row 0 and column 0 of the stored image lie in the upright one.
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tif"):
        Image.fromarray(np.ascontiguousarray(store(upright_HWC))).save(tmp_path / f"a.{suffix}", exif=exif)
        assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), upright_HWC), suffix


def test_an_image_with_broken_exif_is_read(tmp_path: Path) -> None:
    Image.fromarray(colour()).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0garbage garbage")
    assert np.array_equal(read_image(tmp_path / "a.png"), colour())


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated_files_are_named(tmp_path: Path, format_: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(colour(200, 200)).save(stream, format=format_)
    data = stream.getvalue()
    for kept in (len(data) // 2, len(data) // 10):
        (tmp_path / "a.png").write_bytes(data[:kept])
        assert bad(tmp_path / "a.png")


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert bad(path) == "No such file or directory"
    path.write_bytes(b"")
    assert bad(path) == "empty file (0 bytes)"
    path.write_text("hello, I am a text\n")
    assert bad(path) == "text, not an image"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in bad(path)
    path.write_bytes(bytes(range(256)))
    assert bad(path) == "not an image in any known format, or its header is broken"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert bad(path) == "text, not an image"


def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for side in (14_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT" + bytes(1000))
        assert "exceeds the limit of 178956970 pixels (a decompression bomb?)" in bad(path)
    write_png(path, colour())
    with pytest.raises(BadImage, match="20 x 12 pixels exceeds the limit of 239 pixels"):
        read_image(path, max_pixels=239)
    assert read_image(path, max_pixels=240).shape == (12, 20, 3)


def test_newline_in_a_name_stays_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadImage) as caught:
        read_image(tmp_path / "a\nb.png")
    assert "\n" not in str(caught.value)


def test_tensor_conversions_invert_each_other() -> None:
    image_CHW = to_tensor(colour())
    assert image_CHW.dtype == torch.float32 and image_CHW.shape == (3, 12, 20)
    assert image_CHW[1, 2, 3].item() == pytest.approx(colour()[2, 3, 1] / 255)
    assert np.array_equal(to_image(image_CHW), colour())
    assert to_image(torch.tensor([-1.0, 2.0, 0.5]).reshape(3, 1, 1)).ravel().tolist() == [0, 255, 128]


def test_resize_keeps_a_constant_and_its_size() -> None:
    grey_HWC = np.full((8, 6, 3), 77, np.uint8)
    assert np.array_equal(resize_image(grey_HWC, height=5, width=9), np.full((5, 9, 3), 77, np.uint8))
