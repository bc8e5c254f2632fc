"""Public datasets by name: a toy copy of every layout is read, and what is wrong with a copy is said."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image

from restore_lab.cli.doctor import run
from restore_lab.config.build import build
from restore_lab.config.conf_dir import conf_dir
from restore_lab.data.sources.named_dataset import NamedDataset, check_source, dataset_paths
from restore_lab.storage.artefact import identity
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


def names() -> list[str]:
    """Every config of a known dataset."""
    found = []
    for file in sorted((conf_dir() / "data").glob("*.yaml")):
        if yaml.safe_load(file.read_text()).get("_target_", "").endswith(".NamedDataset"):
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


def source(name: str, folder: Path, *words: str) -> NamedDataset:
    return build(composed("evaluate", f"eval_data={name}", f"datasets_dir={folder}", *words).eval_data)


def test_every_known_dataset_has_a_toy_copy_here() -> None:
    assert set(names()) == {*LAYOUTS, "coco_val", "laion", "journeydb"}
    for name in names():  # each says by which name it is found
        assert yaml.safe_load((conf_dir() / "data" / f"{name}.yaml").read_text())["data"] == name


def test_captioned_collections_come_with_their_words(tmp_path) -> None:
    """LAION's alternative texts lie in tars, JourneyDB's prompts in one table beside the images."""
    (tmp_path / "laion").mkdir()
    copy(tmp_path, ["made/000000.png"])
    (tmp_path / "made" / "000000.txt").write_text("a red barn")
    with tarfile.open(tmp_path / "laion" / "00000.tar", "w") as tar:
        for file in sorted((tmp_path / "made").iterdir()):
            tar.add(file, arcname=file.name)
    assert source("laion", tmp_path).read(0).caption == "a red barn"
    copy(tmp_path, ["JourneyDB/data/train/imgs/000/a.jpg", "JourneyDB/data/train/imgs/001/b.jpg"])
    lines = [{"img_path": "./000/a.jpg", "prompt": "a ship, 8k"}, {"img_path": "./001/b.jpg", "prompt": "a fox"}]
    table = tmp_path / "JourneyDB/data/train/train_anno_realease_repath.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = source("journeydb", tmp_path)
    assert [known.read(i).caption for i in range(2)] == ["a ship, 8k", "a fox"]


def test_several_datasets_as_one(tmp_path, capsys) -> None:
    """A pool has each picture of each part once; the doctor looks into every part, those that are not there too."""
    copy(tmp_path, ["DIV2K/DIV2K_train_HR/0001.png", "DIV2K/DIV2K_train_HR/0002.png"])
    copy(tmp_path, ["Flickr2K/Flickr2K_HR/000001.png", "Flickr2K/Flickr2K_HR/000007.png"])
    pool = source("df2k", tmp_path)
    assert pool.keys() == ["div2k_train/0001", "div2k_train/0002", "flickr2k/000001", "flickr2k/000007"]
    assert [pool.read(i).key for i in range(len(pool))] == pool.keys()
    assert [int(pool.read(i).hq_HWC[0, 0, 0]) for i in range(4)] == [0, 10, 0, 10]
    with pytest.raises(SystemExit):
        run(composed("doctor", "data=stablesr_train", f"datasets_dir={tmp_path}"))
    said = capsys.readouterr().out
    assert "DIV2K training: NOT whole, 2 of 800" in said and "Flickr2K: NOT whole, 2 of 2650" in said
    assert f"DIV8K: {tmp_path}/DIV8K: no such folder" in said and "restore-lab doctor data=ost" in said


def test_where_the_datasets_lie_and_what_is_in_them_changes_no_identity(tmp_path) -> None:
    """By name: the same for another folder, with or without a copy; a folder of one's own counts by its content."""
    copy(tmp_path / "full", ["DIV2K/DIV2K_train_HR/0001.png", "Flickr2K/Flickr2K_HR/000001.png"])

    def named_as(*words: str) -> str:
        return identity(OmegaConf.to_container(composed("evaluate", *words), resolve=True)["eval_data"])

    found = {named_as("eval_data=df2k", f"datasets_dir={tmp_path / place}") for place in ("full", "elsewhere")}
    assert len(found) == 1
    assert found != {named_as("eval_data=df2k", "eval_data.sources.flickr2k.source.captions=null")}
    mine = [named_as("eval_data=lol", f"eval_data.source.hq={tmp_path / place}") for place in ("full", "elsewhere")]
    assert mine[0] != mine[1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_toy_copy_of_a_layout_is_read(name, tmp_path) -> None:
    files, keys = LAYOUTS[name]
    copy(tmp_path, files)
    known = source(name, tmp_path)
    node = OmegaConf.to_container(composed("evaluate", f"eval_data={name}").eval_data, resolve=True)
    assert dataset_paths(node).keys() == {name}
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
    found = check_source(source("div2k_val", tmp_path))
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
