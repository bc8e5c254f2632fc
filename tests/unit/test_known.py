"""Public datasets by name: a toy copy of every layout is read, and what is wrong with a copy is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from restore_lab.build import build
from restore_lab.cli.doctor import run
from restore_lab.conf_dir import conf_dir
from restore_lab.data.known import Known, checkup
from tests.composed import composed

# Files of a toy copy, as the public ones are laid out, and the keys and partners that must come out.
LAYOUTS: dict[str, tuple[list[str], list[str]]] = {
    "realphoto60": (["RealPhoto60/LQ/01.png", "RealPhoto60/LQ/02.jpg"], ["01", "02"]),
    "real47": (["real47/a.png"], ["a"]),
    "rtts": (["RTTS/JPEGImages/AM_Bing_211.png"], ["AM_Bing_211"]),
    "div2k_val": (["DIV2K/DIV2K_valid_HR/0801.png", "DIV2K/DIV2K_valid_HR/0802.png"], ["0801", "0802"]),
    "lsdir_val": (["LSDIR/val1/HR/val/0000001.png"], ["0000001"]),
    "cbsd68": (["CBSD68/3096.jpg"], ["3096"]),
    "urban100": (["Urban100/HR/img_001.png"], ["img_001"]),
    "live1": (["LIVE1/bikes.bmp"], ["bikes"]),
    "div2k_stablesr": (
        ["StableSR_testsets/DIV2K_V2_val/test_LR/0801_pch_00001.png",
         "StableSR_testsets/DIV2K_V2_val/test_HR/0801_pch_00001.png"],
        ["0801_pch_00001"],
    ),
    "realsr": (
        ["StableSR_testsets/RealSRVal_crop128/test_LR/Canon_001.png",
         "StableSR_testsets/RealSRVal_crop128/test_HR/Canon_001.png"],
        ["Canon_001"],
    ),
    "drealsr": (
        ["StableSR_testsets/DrealSRVal_crop128/test_LR/P1.png",
         "StableSR_testsets/DrealSRVal_crop128/test_HR/P1.png"],
        ["P1"],
    ),
    "lol": (["LOL/eval15/low/1.png", "LOL/eval15/high/1.png", "LOL/eval15/__MACOSX/low/1.png"], ["1"]),
    "sots_outdoor": (
        ["SOTS/outdoor/hazy/0364_0.85_0.12.jpg", "SOTS/outdoor/hazy/0364_0.9_0.2.jpg", "SOTS/outdoor/gt/0364.png"],
        ["0364_0.85_0.12", "0364_0.9_0.2"],
    ),
    "realsnow": (["RealSnow/testing/input/1.png", "RealSnow/testing/gt/1.png"], ["1"]),
    "raindrop": (["raindrop/test_a/data/0_rain.png", "raindrop/test_a/gt/0_clean.png"], ["0_rain"]),
    "snow100k": (
        ["Snow100K/test/Snow100K-L/synthetic/city_1.jpg", "Snow100K/test/Snow100K-L/gt/city_1.jpg",
         "Snow100K/test/Snow100K-S/synthetic/sea_2.jpg", "Snow100K/test/Snow100K-S/gt/sea_2.jpg"],
        ["city_1"],
    ),
    "rain100h": (["Rain100H/test/rainy/rain-001.png", "Rain100H/test/norain/norain-001.png"], ["rain-001"]),
    "rain1400": (
        ["rain1400/test/rainy_image/901_1.jpg", "rain1400/test/rainy_image/901_14.jpg",
         "rain1400/test/ground_truth/901.jpg"],
        ["901_1", "901_14"],
    ),
    "gopro": (["GoPro/test/input/GOPR0384-000001.png", "GoPro/test/target/GOPR0384-000001.png"], ["GOPR0384-000001"]),
    "sidd": (["SIDD/test/input/0_0.png", "SIDD/test/target/0_0.png"], ["0_0"]),
}  # fmt: skip


def names() -> list[str]:
    """Every config of a known dataset."""
    found = []
    for file in sorted((conf_dir() / "data").glob("*.yaml")):
        if yaml.safe_load(file.read_text()).get("_target_", "").endswith(".Known"):
            found.append(file.stem)
    return found


def copy(folder: Path, files: list[str]) -> None:
    for number, file in enumerate(files):
        place = folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * number % 256, dtype=np.uint8)).save(place)


def coco(folder: Path, count: int) -> None:
    copy(folder, [f"coco/val2017/{i:012d}.jpg" for i in range(count)])
    annotations = [{"image_id": i, "caption": f" scene {i} "} for i in range(1, count)]  # the first has none
    annotations += [{"image_id": 1, "caption": "another"}]
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(count)]
    (folder / "coco" / "annotations").mkdir()
    text = json.dumps({"images": images, "annotations": annotations})
    (folder / "coco" / "annotations" / "captions_val2017.json").write_text(text)


def source(name: str, folder: Path, *words: str) -> Known:
    return build(composed("evaluate", f"eval_data={name}", f"datasets_dir={folder}", *words).eval_data)


def test_every_known_dataset_has_a_toy_copy_here() -> None:
    assert set(names()) == {*LAYOUTS, "coco_val"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_toy_copy_of_a_layout_is_read(name, tmp_path) -> None:
    files, keys = LAYOUTS[name]
    copy(tmp_path, files)
    known = source(name, tmp_path)
    assert known.keys() == keys and len(known) == len(keys)
    for index in range(len(known)):
        picture = known.read(index)
        seen = [image_HWC is not None for image_HWC in (picture.lq_HWC, picture.hq_HWC)]
        lone = [False, True] if name not in ("realphoto60", "real47", "rtts") else [True, False]
        assert seen == ([True, True] if "rule" in Path(conf_dir() / "data" / f"{name}.yaml").read_text() else lone)


def test_a_dataset_with_sizes(tmp_path) -> None:
    copy(tmp_path, LAYOUTS["snow100k"][0])
    assert source("snow100k", tmp_path, "+snow_size=S").keys() == ["sea_2"]


def test_coco_draws_captioned_images(tmp_path) -> None:
    """Those with a caption, its first; the same draw every time, and all of them if no count is given."""
    coco(tmp_path, 9)
    some = source("coco_val", tmp_path, "eval_data.source.count=4")
    assert len(some) == 4 and some.keys() == source("coco_val", tmp_path, "eval_data.source.count=4").keys()
    every = source("coco_val", tmp_path, "eval_data.source.count=null")
    assert every.keys() == [f"{i:012d}" for i in range(1, 9)]
    assert every.read(0).caption == "scene 1"
    with pytest.raises(ValueError, match=r"MS-COCO validation: .*8 captioned images, fewer than count=3000; it comes"):
        source("coco_val", tmp_path)


def test_a_dataset_that_is_not_there_is_one_line(tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"^RealPhoto60: .*{tmp_path}/RealPhoto60/LQ.*; it comes from the SUPIR"):
        source("realphoto60", tmp_path)


def test_the_doctor_says_what_is_wrong_with_a_copy(tmp_path, capsys) -> None:
    copy(tmp_path, [f"DIV2K/DIV2K_valid_HR/{i:04d}.png" for i in (801, 803, 804)])
    copy(tmp_path, ["DIV2K/DIV2K_valid_HR/0001.png"])
    (tmp_path / "DIV2K/DIV2K_valid_HR/0804.png").write_bytes(b"no image")
    found = checkup(source("div2k_val", tmp_path))
    assert (found.found, found.expected, found.extra) == (3, 100, ("0001",))
    assert "0802" in found.missing and "0803" not in found.missing and len(found.missing) == 97
    assert len(found.unreadable) == 1 and "0804.png" in found.unreadable[0]
    with pytest.raises(SystemExit) as left:
        run(composed("doctor", "data=div2k_val", f"datasets_dir={tmp_path}"))
    assert left.value.code == 1 and "DIV2K validation: NOT whole, 3 of 100 pictures" in capsys.readouterr().out
    copy(tmp_path, [f"LIVE1/{i}.bmp" for i in range(29)])
    run(composed("doctor", "data=live1", f"datasets_dir={tmp_path}"))
    assert capsys.readouterr().out == "LIVE1: whole, 29 of 29 pictures can be read\n"
    with pytest.raises(ValueError, match="name what to check"):
        run(composed("doctor"))
