"""Every part under conf/ composes in its verb and builds, every experiment composes; new files are found.

Backbones are replaced by a toy folder, missing values by a toy folder of images, so that nothing is downloaded.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from restore_lab.cli.errors import groups
from restore_lab.config.build import build
from restore_lab.config.checks import check_config
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.config_source import GROUP_ALIASES
from restore_lab.data.sources.named_dataset import dataset_paths
from restore_lab.methods.weights import weights_file
from restore_lab.training.run import plan_training
from restore_lab.training.trainer import trainer_for
from tests.helpers.configs import composed, small
from tests.helpers.toy_priors import toy_backbone, toy_dino, toy_unet_folder

CONF = conf_dir()
# Hydra's own groups are in tests/contract/test_launchers.py.
SKIPPED = ("experiment", "hydra/", "method_")  # the last are aliases of `method`
GROUPS = {g: options for g, options in groups([CONF]).items() if not g.startswith(SKIPPED)}
EXPERIMENTS = groups([CONF]).get("experiment", [])
# Groups and parts that the train verb does not have, and parts that must be chosen before a group of theirs.
VERB = {"metrics": "evaluate", "memory": "restore", "protocol": "evaluate", "prompt/instruction=given": "restore"}
FIRST = {
    "data/rule": ("data=paired",),
    "eval_data/rule": ("eval_data=paired",),
    "variant": ("method=supir",),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, Any]:
    """What stands in for values that a yaml leaves to the user, by the key's last name."""
    folder = tmp_path_factory.mktemp("images")
    for side, names in (("lq", ["1", "0364_0.85_0.12", "12_rain"]), ("hq", ["1", "0364", "12_clean"])):
        (folder / side).mkdir()
        for name in names:
            Image.new("RGB", (16, 16)).save(folder / side / f"{name}.png")
    with tarfile.open(folder / "hq" / "shard.tar", "w") as tar:  # no image: folders of images pass over it
        tar.add(folder / "hq" / "1.png", arcname="1.png")
    (folder / "manifest.csv").write_text("lq,hq\n1.png,1.png\n")
    hq = str(folder / "hq")
    table = str(folder / "manifest.csv")
    (folder / "captions.json").write_text('{"1.png": "a cat"}')
    words = str(folder / "captions.json")
    found = {"root": hq, "hq": hq, "lq": str(folder / "lq"), "path": table, "input": hq, "text": "a cat"}
    return found | {"prompt.semantic.path": words}


def missing(node: Any, place: str = "") -> list[str]:
    """The dotted places of ???; OmegaConf's own search resolves all interpolations on its way."""
    if isinstance(node, dict):
        return [found for key, value in node.items() for found in missing(value, f"{place}.{key}".lstrip("."))]
    if isinstance(node, list):
        return [found for number, value in enumerate(node) for found in missing(value, f"{place}[{number}]")]
    return [place] if node == "???" else []


def filled(cfg: DictConfig, values: dict[str, Any]) -> DictConfig:
    """The config with every ??? replaced."""
    for key in missing(OmegaConf.to_container(cfg, resolve=False)):
        name = key if key in values else key.rpartition(".")[2]
        assert name in values, f"{key} is ???: say in tests/contract/test_configs.py what stands in for it"
        OmegaConf.update(cfg, key, values[name])
    return cfg


# Groups whose options say nothing of each other's, nor of the method: an option of each is composed in one config.
ALONE = ("data", "eval_data", "degradation", "eval_degradation", "logger", "objective")


@functools.cache
def side_by_side(number: int) -> DictConfig:
    """The config with the option of this number of each group in `ALONE`; of a shorter group one comes again."""
    return composed("train", *(f"{group}={GROUPS[group][number % len(GROUPS[group])]}" for group in ALONE))


def chosen(group: str, option: str) -> DictConfig:
    if group in ALONE:
        return copy.deepcopy(side_by_side(GROUPS[group].index(option)))
    verb = VERB.get(f"{group}={option}") or VERB.get(group, "train")
    if group.startswith("method/"):
        return composed(verb, group.replace("/", "=", 1), *CHOICE.get(option, ()))
    return composed(verb, *FIRST.get(group, ()), f"{group}={option}")


# The files of a method's folder, which other groups choose.
CHOICE = {"tiny": ["scale=tiny"], "full": ["scale=full"], "release": ["variant=release"], "stages": []}
# The priors without their scale are options of `backbone` too: backbone=full/sdxl.
INNER = ("backbone/full", "backbone/tiny")
ALIASES = [("backbone", f"{group.partition('/')[2]}/{option}") for group in INNER for option in GROUPS[group]]
PARTS = ALIASES + [(group, option) for group, options in GROUPS.items() if group not in INNER for option in options]
PARTS.sort(key=lambda part: GROUPS[part[0]].index(part[1]) if part[0] in ALONE else -1)  # those of one config together


@pytest.mark.parametrize(("group", "option"), PARTS, ids=[f"{group}={option}" for group, option in PARTS])
def test_every_part_composes_and_builds(group, option, images, toy_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = filled(chosen(group, option), images)
    family = cfg.backbone.family
    cfg.backbone.path = str(toy_folder if family == "unet" else toy_unet_folder(tmp_path, "sd3"))
    if cfg.adaptor.get("stream") is not None:
        cfg.adaptor.stream.update(hidden=16, depth=1, heads=2, dim_head=8, queries=4)
    visual = cfg.prompt.visual
    if visual is not None and visual["_target_"].endswith("DinoVision"):
        visual.path = str(toy_dino(tmp_path / "dino"))
    cfg.runs_dir = str(tmp_path)
    node = OmegaConf.select(cfg, group.replace("/", "."))
    if group == "adaptor/reference":
        node = cfg.adaptor_reference
    if group == "prompt/quality" or f"{group}={option}" == "prompt/visual=none":  # strings and a null of the prompt
        node = cfg.prompt
    if f"{group}={option}" in ("adaptor/lora=none", "adaptor/stream=none"):  # nulls of the adaptor
        node = cfg.adaptor
    if f"{group}={option}" == "sampler/tiling=none":  # a null of the sampler
        node = cfg.sampler
    if f"{group}={option}" == "decoder=consistency":
        with pytest.raises(ValueError, match=r"decodes SD 1\.x's latents"):
            build(node)(toy_backbone("sd"))
        return
    if group.partition("/")[0] in ("method", "scale", "variant"):  # presets: the module that they make
        if "hint_widths" in cfg.adaptor and cfg.adaptor.hint_widths is not None:
            cfg.adaptor.hint_widths, cfg.adaptor.hint_channels = [4, 4, 8], 4
        if visual is not None and visual["_target_"].endswith("ClipVision"):
            visual.path = "asset:tiny_clip"  # the paper's encoder is not here
        if "encoder_weights" in cfg:
            cfg.encoder_weights = None  # an earlier stage's artefact
        module = build(cfg.module)
        assert module.trainable()
        return
    if group == "trainer":
        settings = plan_training(chosen(group, option))[-1].node["trainer"]
        absent = {"deepspeed": "(?i)deepspeed"}  # it wants CUDA, and the extra
        if importlib.util.find_spec("torch_xla") is None:  # in an environment of its own
            absent["tpu"] = "torch-xla is not installed here"
        if option in absent:
            with pytest.raises(ValueError, match=absent[option]):
                trainer_for(settings, folder=tmp_path, average=False)
            return
        assert trainer_for(settings, folder=tmp_path, average=False).max_steps == settings["max_steps"]
        return
    if group == "metrics":
        made = build(node, protocol=build(cfg.protocol))
        assert made.metrics or made.notes
        return
    # tests/unit/data/sources/test_named_dataset.py reads copies
    if node is not None and dataset_paths(OmegaConf.to_container(node, resolve=True)):
        with pytest.raises(ValueError, match="; it comes from "):
            build(node)
        return
    made = build(node)
    if "_target_" not in node:
        assert group in ("logger", "callbacks") and not made
        return
    name = node["_target_"].rpartition(".")[2]
    if node.get("_partial_") and group.startswith(("adaptor", "lq_encoder", "decoder")):
        width = {"adaptor": "visual", "adaptor/stream": "inputs"}.get(group)  # of what an image encoder sees
        made = made(toy_backbone("sd"), **({width: 16} if width and option != "none" else {}))
    assert type(made).__name__ == name or (callable(made) and not name[0].isupper())


def takes_experiments() -> list[str]:
    """The verbs whose yaml leaves room for an experiment."""
    found = []
    for path in sorted(CONF.glob("*.yaml")):
        entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
        if any(isinstance(entry, dict) and "experiment" in entry for entry in entries):
            found.append(path.stem)
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name, images) -> None:
    """In the verb that it is for, all interpolations resolved, and nothing in it is refused."""
    refusals = {}
    for verb in takes_experiments():
        try:
            cfg = filled(composed(verb, f"experiment={name}"), images)
            OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
            check_config(cfg, verb=verb)
            return
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            refusals[verb] = str(error)
    pytest.fail(f"{name}: {refusals}")


def test_groups_are_the_folders_of_conf() -> None:
    """Were `groups` to miss a folder, the tests above would pass over it."""
    there = {Path(base).relative_to(CONF).as_posix() for base, _, _ in os.walk(CONF)} - {"."}
    with_parts = {name for name in there if any((CONF / name).glob("*.yaml")) and not name.startswith("hydra/")}
    second = {group for group in GROUPS if group.partition("/")[0] in GROUP_ALIASES}
    assert with_parts == GROUPS.keys() - second
    own = [part for part in PARTS if part[0] not in second]
    assert sum(len(list((CONF / name).glob("*.yaml"))) for name in with_parts) == len(own)
    assert {"priors/tiny_sd", "priors/tiny_clip"} <= set(EXPERIMENTS)
    assert {"train", "evaluate"} <= set(takes_experiments())


def test_every_method_builds_at_toy_size(toy_folder) -> None:
    module = build(composed("train", *small(toy_folder)).module)
    assert type(module).__name__ == "SPIRE"


def test_a_missing_setting_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"^not set: data\.root; give data\.root=\.\.\.$"):
        plan_training(composed("train", "data=folder"))
    assert plan_training(composed("train", "scale=full"))[-1].node["trainer"]["max_steps"] == 300000


@pytest.mark.parametrize("verb", ["restore", "evaluate"])
def test_shipped_weights_are_the_default(verb) -> None:
    assert weights_file(composed(verb).weights).is_file()
    missing = weights_file(composed(verb, "scale=full").weights)
    assert missing.name == "spire_full"
