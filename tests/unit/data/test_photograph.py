"""A photograph keeps its file's levels, opacity, greyness, EXIF and profile, and is upright."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from restore_lab.data.image_io import BadImage, read_image
from restore_lab.data.photograph import Photograph, photograph_of, read_photograph
from restore_lab.data.photograph_file import write_photograph
from tests.helpers.photographs import DATE, EXPOSURE, MAKER, SRGB, exif, random_levels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_levels_and_opacity_survive(tmp_path, dtype, channels, suffix) -> None:
    planes = random_levels(7, 9, channels, dtype=dtype)
    grey, alpha = channels < 3, planes[..., -1] if channels in (2, 4) else None
    rgb = np.repeat(planes[..., :1], 3, axis=2) if grey else planes[..., :3]
    said = Photograph(rgb_HWC=rgb, alpha_HW=alpha, grey=grey, profile=b"" if grey else SRGB)
    write_photograph(tmp_path / f"a{suffix}", said)
    if dtype is np.uint16 and channels == 2 and suffix == ".tif":
        return  # Pillow reads no such TIFF; the next line's claim is about what we can read
    found = read_photograph(tmp_path / f"a{suffix}")
    assert found.rgb_HWC.dtype == dtype
    assert np.array_equal(found.rgb_HWC, rgb)
    assert (found.alpha_HW is None) == (alpha is None)
    assert alpha is None or np.array_equal(found.alpha_HW, alpha)
    assert (found.grey, found.profile) == (grey, said.profile)


def test_a_sixteen_bit_png_is_read_by_opencv(tmp_path) -> None:
    """Read by OpenCV, which knows nothing of how it was written, if it is here."""
    cv2 = pytest.importorskip("cv2")
    rgb = random_levels(5, 6, 3, dtype=np.uint16)
    write_photograph(tmp_path / "a.png", Photograph(rgb_HWC=rgb, profile=SRGB, exif=exif().tobytes()))
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)[..., ::-1], rgb)
    seen = Image.open(tmp_path / "a.png")
    assert (seen.info["icc_profile"], seen.getexif()[DATE]) == (SRGB, "2024:05:01 10:00:00")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_and_profile_are_kept_and_the_picture_is_upright(tmp_path, suffix) -> None:
    for orientation in range(1, 9):
        Image.fromarray(random_levels(6, 4, 3)).save(
            tmp_path / "in.jpg", exif=exif(orientation).tobytes(), icc_profile=SRGB, quality=100, subsampling=0
        )
        found = read_photograph(tmp_path / "in.jpg")
        assert np.array_equal(found.rgb_HWC, read_image(tmp_path / "in.jpg")), orientation
        write_photograph(tmp_path / f"out{suffix}", found, quality=100)
        seen = Image.open(tmp_path / f"out{suffix}")
        assert seen.size == found.rgb_HWC.shape[1::-1]
        assert seen.info["icc_profile"] == SRGB
        assert seen.getexif().get(0x0112, 1) == 1
        assert (seen.getexif()[DATE], seen.getexif()[MAKER]) == ("2024:05:01 10:00:00", "A camera")
        assert float(seen.getexif().get_ifd(0x8769)[EXPOSURE]) == 0.25


def test_a_tiffs_layout_is_not_taken_for_exif(tmp_path) -> None:
    Image.fromarray(random_levels(6, 4, 3)).save(tmp_path / "in.tif", exif=exif().tobytes())
    found = read_photograph(tmp_path / "in.tif")
    kept = Image.Exif()
    kept.load(found.exif)
    assert DATE in kept
    assert not {256, 257, 258, 259, 273, 278, 279} & set(kept)


def test_grey_images_of_any_depth_are_read(tmp_path) -> None:
    deep = random_levels(5, 6, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "float.tif", deep.astype(np.float32) / 65535)
    tifffile.imwrite(tmp_path / "wild.tif", deep.astype(np.float32))
    Image.fromarray(deep > 30000).save(tmp_path / "bits.png")
    for name in ("deep.png", "float.tif"):
        found = read_photograph(tmp_path / name)
        assert found.grey
        assert np.array_equal(found.rgb_HWC, np.repeat(deep[..., None], 3, axis=2))
    assert set(np.unique(read_photograph(tmp_path / "bits.png").rgb_HWC)) == {0, 255}
    with pytest.raises(BadImage, match=r"wild\.tif: pixel values .* expected 0 to 1"):
        read_photograph(tmp_path / "wild.tif")


def test_palettes_cmyk_and_transparency_are_read(tmp_path) -> None:
    colours = Image.fromarray(random_levels(6, 6, 3)).quantize(8)
    colours.save(tmp_path / "palette.png", transparency=0)
    found = read_photograph(tmp_path / "palette.png")
    assert found.alpha_HW is not None
    assert np.array_equal(found.alpha_HW == 0, np.asarray(colours) == 0)
    inks = Image.fromarray(random_levels(6, 6, 3)).convert("CMYK")
    inks.save(tmp_path / "inks.jpg", quality=100, subsampling=0)
    assert np.array_equal(read_photograph(tmp_path / "inks.jpg").rgb_HWC, read_image(tmp_path / "inks.jpg"))


def test_jpeg_lays_transparency_on_white(tmp_path) -> None:
    clear = np.zeros((8, 8), np.uint8)
    write_photograph(tmp_path / "a.jpg", Photograph(rgb_HWC=np.zeros((8, 8, 3), np.uint8), alpha_HW=clear))
    assert np.asarray(Image.open(tmp_path / "a.jpg")).min() > 250


def test_a_result_has_the_files_depth_and_stays_grey() -> None:
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        before = Photograph(rgb_HWC=np.zeros((2, 2, 3), dtype))
        after = before.with_rgb(np.full((2, 2, 3), 0.3, np.float64))
        assert (after.rgb_HWC.dtype, int(after.rgb_HWC[0, 0, 0])) == (dtype, round(0.3 * top))
    grey = Photograph(rgb_HWC=np.zeros((1, 1, 3), np.uint8), grey=True).with_rgb(np.array([[[1.0, 0.0, 0.0]]]))
    assert grey.rgb_HWC.ravel().tolist() == [76, 76, 76]  # 0.299 x 255


def test_enlarging_eight_bits_is_as_before_and_sixteen_agree() -> None:
    rgb = np.linspace(40, 200, 8 * 6 * 3).reshape(8, 6, 3).astype(np.uint8)  # Pillow clips 8 bits between its passes
    small = Photograph(rgb_HWC=rgb, alpha_HW=rgb[..., 0]).resize(16, 12)
    assert np.array_equal(small.rgb_HWC, np.asarray(Image.fromarray(rgb).resize((12, 16), Image.Resampling.BICUBIC)))
    assert small.alpha_HW is not None
    assert np.array_equal(small.alpha_HW, small.rgb_HWC[..., 0])
    deep = Photograph(rgb_HWC=rgb.astype(np.uint16) * 257).resize(16, 12)
    assert np.abs(deep.rgb_HWC / 257 - small.rgb_HWC).max() < 1.5


def test_a_photograph_is_read_from_memory(tmp_path) -> None:
    rgb = random_levels(5, 6, 3)
    assert np.array_equal(photograph_of(rgb).rgb_HWC, rgb)
    assert np.array_equal(photograph_of(Image.fromarray(rgb)).rgb_HWC, rgb)
    assert photograph_of(rgb[..., 0]).grey
    assert np.array_equal(photograph_of(rgb / 255.0).rgb_HWC, rgb.astype(np.uint16) * 257)
    inks = Image.fromarray(rgb).convert("CMYK")
    assert np.array_equal(photograph_of(inks).rgb_HWC, np.asarray(inks.convert("RGB")))
    for bad, why in (
        (rgb.astype(np.int64), "int64"),
        (rgb * 1.0, r"\[0, 1\]"),
        (rgb[None], "shape"),
        (np.full((2, 2), np.nan), r"\[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=why):
            photograph_of(bad)


def test_unknown_suffixes_and_bad_files_are_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"a\.xyz: cannot write \.xyz; one of \.png"):
        write_photograph(tmp_path / "a.xyz", photograph_of(random_levels(2, 2, 3)))
    for name, data in (("empty.png", b""), ("text.png", b"hello"), ("cut.png", png()[:60]), ("none.png", None)):
        place = Path(tmp_path / name)
        if data is not None:
            place.write_bytes(data)
        with pytest.raises(BadImage, match=name):
            read_photograph(place)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(random_levels(40, 40, 3)).save(file, format="PNG")
    return file.getvalue()
