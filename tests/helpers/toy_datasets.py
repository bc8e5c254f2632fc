"""Toy copies of the public datasets, in the layouts that they are published in."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

# Files of a toy copy, as the public ones are laid out, and the keys that are read from it.
LAYOUTS: dict[str, tuple[list[str], list[str]]] = {
    "realphoto60": (["RealPhoto60/LQ/01.png", "RealPhoto60/LQ/02.jpg"], ["01", "02"]),
    "real47": (["real47/a.png"], ["a"]),
    "rtts": (["RTTS/JPEGImages/AM_Bing_211.png"], ["AM_Bing_211"]),
    "div2k_val": (["DIV2K/DIV2K_valid_HR/0801.png", "DIV2K/DIV2K_valid_HR/0802.png"], ["0801", "0802"]),
    "lsdir_val": (["LSDIR/val1/HR/val/0000001.png"], ["0000001"]),
    "cbsd68": (["CBSD68/3096.jpg"], ["3096"]),
    "urban100": (["Urban100/HR/img_001.png"], ["img_001"]),
    "live1": (["LIVE1/bikes.bmp"], ["bikes"]),
    "photographs_free": (["photographs_free/train/a-288-000.png"], ["a-288-000"]),
    "photographs_free_val": (["photographs_free/val/b-288-000.png"], ["b-288-000"]),
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
    "div2k_train": (["DIV2K/DIV2K_train_HR/0001.png"], ["0001"]),
    "flickr2k": (["Flickr2K/Flickr2K_HR/000001.png"], ["000001"]),
    "div8k": (["DIV8K/0001.png"], ["0001"]),
    "ost": (["OST/OutdoorSceneTrain_v2/sky/sky_0001.png"], ["sky/sky_0001"]),
    "lsdir": (["LSDIR/train/0001000/0000001.png", "LSDIR/val1/HR/val/0000001.png"], ["0001000/0000001"]),
    "ffhq": (["FFHQ/images1024x1024/00000/00000.png"], ["00000/00000"]),
    "ffhq_wild": (["FFHQ/in-the-wild-images/00000/00000.png"], ["00000/00000"]),
    "lol_train": (["LOL/our485/low/2.png", "LOL/our485/high/2.png"], ["2"]),
    "ots": (["OTS_ALPHA/haze/OTS/0005_0.8_0.04.jpg", "OTS_ALPHA/clear/clear_images/0005.jpg"], ["0005_0.8_0.04"]),
    "rain1400_train": (["rain1400/train/rainy_image/1_2.jpg", "rain1400/train/ground_truth/1.jpg"], ["1_2"]),
    "raindrop_train": (["raindrop/train/data/0_rain.png", "raindrop/train/gt/0_clean.png"], ["0_rain"]),
    "snow100k_train": (["Snow100K/train/synthetic/a_1.jpg", "Snow100K/train/gt/a_1.jpg"], ["a_1"]),
    "gopro_train": (["GoPro/train/input/GOPR0372-1.png", "GoPro/train/target/GOPR0372-1.png"], ["GOPR0372-1"]),
    "realsr_canon": (
        ["RealSR(V3)/Canon/Test/4/Canon_001_LR4.png", "RealSR(V3)/Canon/Test/4/Canon_001_HR.png"], ["Canon_001_LR4"]
    ),
    "realsr_nikon": (
        ["RealSR(V3)/Nikon/Test/4/Nikon_001_LR4.png", "RealSR(V3)/Nikon/Test/4/Nikon_001_HR.png"], ["Nikon_001_LR4"]
    ),
    "drealsr_whole": (
        ["DRealSR/Test_x4/test_LR/sony_1_x4.png", "DRealSR/Test_x4/test_HR/sony_1_x1.png"], ["sony_1_x4"]
    ),
    "sidd": (["SIDD/test/input/0_0.png", "SIDD/test/target/0_0.png"], ["0_0"]),
}  # fmt: skip


def write_images(folder: Path, files: list[str]) -> None:
    for number, file in enumerate(files):
        place = folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * number % 256, dtype=np.uint8)).save(place)


def write_coco(folder: Path, count: int) -> None:
    write_images(folder, [f"coco/val2017/{i:012d}.jpg" for i in range(count)])
    annotations = [{"image_id": i, "caption": f" scene {i} "} for i in range(1, count)]  # the first has none
    annotations += [{"image_id": 1, "caption": "another"}]
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(count)]
    (folder / "coco" / "annotations").mkdir()
    text = json.dumps({"images": images, "annotations": annotations})
    (folder / "coco" / "annotations" / "captions_val2017.json").write_text(text)


def write_all(folder: Path) -> Path:
    """A copy of every dataset, of one image or pair each; captions say what they are of."""
    for files, _ in LAYOUTS.values():
        write_images(folder, files)
    write_images(folder, ["laion/0.png", "JourneyDB/data/train/imgs/000/a.jpg", "negatives/000000.png"])
    (folder / "negatives" / "000000.txt").write_text("blurry, messy")
    (folder / "laion" / "0.txt").write_text("a barn for sale")
    with tarfile.open(folder / "laion" / "0.tar", "w") as tar:
        for name in ("0.png", "0.txt"):
            tar.add(folder / "laion" / name, arcname=name)
    table = folder / "JourneyDB/data/train/train_anno_realease_repath.jsonl"
    table.write_text(json.dumps({"img_path": "./000/a.jpg", "prompt": "a ship, 8k"}))
    words = {"lsdir": "0001000/0000001", "div2k": "0001", "flickr2k": "000001", "faces": "00000/00000"}
    for name, key in words.items():
        (folder / f"{name}-0123456789abcdef").mkdir()
        (folder / f"{name}-0123456789abcdef" / "captions.json").write_text(json.dumps({f"{key}.png": f"of {name}"}))
    return folder
