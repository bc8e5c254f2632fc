"""Public datasets by name: a toy copy of every layout is read, and errors of a copy are named."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from restore_lab.cli.doctor import run
from restore_lab.config.build import build
from restore_lab.config.conf_dir import conf_dir
from restore_lab.data.sources.named_dataset import NamedDataset, check_source, dataset_paths
from restore_lab.storage.identity import identity
from tests.helpers.configs import composed, part
from tests.helpers.toy_datasets import LAYOUTS, write_coco, write_images


def names() -> list[str]:
    """Every config of a known dataset."""
    found = []
    for file in sorted((conf_dir() / "data").glob("*.yaml")):
        if yaml.safe_load(file.read_text()).get("_target_", "").endswith(".NamedDataset"):
            found.append(file.stem)
    return found


def source(name: str, folder: Path, *words: str) -> NamedDataset:
    return build(part(f"eval_data={name}", f"+datasets_dir={folder}", *words))


def test_every_named_dataset_has_a_toy_copy() -> None:
    assert set(names()) == {*LAYOUTS, "coco_val", "laion", "journeydb"}
    for name in names():  # each says by which name it is found
        assert yaml.safe_load((conf_dir() / "data" / f"{name}.yaml").read_text())["data"] == name


def test_captioned_datasets_have_their_captions(tmp_path) -> None:
    """LAION's alternative texts are in tars, JourneyDB's prompts in one table next to the images."""
    (tmp_path / "laion").mkdir()
    write_images(tmp_path, ["made/000000.png"])
    (tmp_path / "made" / "000000.txt").write_text("a red barn")
    with tarfile.open(tmp_path / "laion" / "00000.tar", "w") as tar:
        for file in sorted((tmp_path / "made").iterdir()):
            tar.add(file, arcname=file.name)
    assert source("laion", tmp_path).read(0).caption == "a red barn"
    write_images(tmp_path, ["JourneyDB/data/train/imgs/000/a.jpg", "JourneyDB/data/train/imgs/001/b.jpg"])
    lines = [{"img_path": "./000/a.jpg", "prompt": "a ship, 8k"}, {"img_path": "./001/b.jpg", "prompt": "a fox"}]
    table = tmp_path / "JourneyDB/data/train/train_anno_realease_repath.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = source("journeydb", tmp_path)
    assert [known.read(i).caption for i in range(2)] == ["a ship, 8k", "a fox"]


def test_several_datasets_are_read_as_one(tmp_path, capsys) -> None:
    """A pool has each picture of each part once; the doctor looks into every part, those that are not there too."""
    write_images(tmp_path, ["DIV2K/DIV2K_train_HR/0001.png", "DIV2K/DIV2K_train_HR/0002.png"])
    write_images(tmp_path, ["Flickr2K/Flickr2K_HR/000001.png", "Flickr2K/Flickr2K_HR/000007.png"])
    pool = source("df2k", tmp_path)
    assert pool.keys() == ["div2k_train/0001", "div2k_train/0002", "flickr2k/000001", "flickr2k/000007"]
    assert [pool.read(i).key for i in range(len(pool))] == pool.keys()
    assert [int(pool.read(i).hq_HWC[0, 0, 0]) for i in range(4)] == [0, 10, 0, 10]
    with pytest.raises(SystemExit):
        run(composed("doctor", "data=stablesr_train", f"datasets_dir={tmp_path}"))
    said = capsys.readouterr().out
    assert "DIV2K training: NOT whole, 2 of 800" in said and "Flickr2K: NOT whole, 2 of 2650" in said
    assert f"DIV8K: {tmp_path}/DIV8K: no such folder" in said and "restore-lab doctor data=ost" in said


def test_the_identity_of_a_named_dataset_is_its_name(tmp_path) -> None:
    """By name: the same for another folder, with or without a copy; a folder of one's own counts by its content."""
    write_images(tmp_path / "full", ["DIV2K/DIV2K_train_HR/0001.png", "Flickr2K/Flickr2K_HR/000001.png"])

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
    write_images(tmp_path, files)
    known = source(name, tmp_path)
    node = OmegaConf.to_container(part(f"eval_data={name}", "+datasets_dir=datasets"), resolve=True)
    assert dataset_paths(node).keys() == {name}
    assert known.keys() == keys and len(known) == len(keys)
    for index in range(len(known)):
        picture = known.read(index)
        seen = [image_HWC is not None for image_HWC in (picture.lq_HWC, picture.hq_HWC)]
        lone = [False, True] if name not in ("realphoto60", "real47", "rtts") else [True, False]
        assert seen == ([True, True] if "rule" in Path(conf_dir() / "data" / f"{name}.yaml").read_text() else lone)


def test_a_named_dataset_knows_its_image_sizes(tmp_path) -> None:
    write_images(tmp_path, LAYOUTS["snow100k"][0])
    assert source("snow100k", tmp_path, "+snow_size=S").keys() == ["sea_2"]


def test_coco_draws_captioned_images(tmp_path) -> None:
    """Those with a caption, its first; the same draw every time, and all of them if no count is given."""
    write_coco(tmp_path, 9)
    some = source("coco_val", tmp_path, "eval_data.source.count=4")
    assert len(some) == 4 and some.keys() == source("coco_val", tmp_path, "eval_data.source.count=4").keys()
    every = source("coco_val", tmp_path, "eval_data.source.count=null")
    assert every.keys() == [f"{i:012d}" for i in range(1, 9)]
    assert every.read(0).caption == "scene 1"
    with pytest.raises(ValueError, match=r"MS-COCO validation: .*8 captioned images, fewer than count=3000; it comes"):
        source("coco_val", tmp_path)


def test_a_missing_dataset_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"^RealPhoto60: .*{tmp_path}/RealPhoto60/LQ.*; it comes from the SUPIR"):
        source("realphoto60", tmp_path)


def test_the_doctor_names_errors_of_a_copy(tmp_path, capsys) -> None:
    write_images(tmp_path, [f"DIV2K/DIV2K_valid_HR/{i:04d}.png" for i in (801, 803, 804)])
    write_images(tmp_path, ["DIV2K/DIV2K_valid_HR/0001.png"])
    (tmp_path / "DIV2K/DIV2K_valid_HR/0804.png").write_bytes(b"no image")
    found = check_source(source("div2k_val", tmp_path))
    assert (found.found, found.expected, found.extra) == (3, 100, ("0001",))
    assert "0802" in found.missing and "0803" not in found.missing and len(found.missing) == 97
    assert len(found.unreadable) == 1 and "0804.png" in found.unreadable[0]
    with pytest.raises(SystemExit) as left:
        run(composed("doctor", "data=div2k_val", f"datasets_dir={tmp_path}"))
    assert left.value.code == 1 and "DIV2K validation: NOT whole, 3 of 100 pictures" in capsys.readouterr().out
    write_images(tmp_path, [f"LIVE1/{i}.bmp" for i in range(29)])
    run(composed("doctor", "data=live1", f"datasets_dir={tmp_path}"))
    assert capsys.readouterr().out == "LIVE1: whole, 29 of 29 pictures can be read\n"
    with pytest.raises(ValueError, match="name what to check"):
        run(composed("doctor"))
