"""What a received manifest may set: exact keys, options of the package, nothing of the user's machine."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from restore_lab.config.compose import NO_FOLLOW, merge_and_log, merge_overrides, training_overrides
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.kinds import Mismatch, coerce
from restore_lab.config.manifest_overrides import MAX_CHARACTERS, OPTION, filter_overrides, summary
from restore_lab.config.manifest_schema import EXCLUDED_OPTIONS, GROUPS, OUTPUT_SETTINGS, SETTINGS, Text
from restore_lab.storage.identity import PATH_ENDINGS, PATH_KEYS
from tests.helpers.manifests import manifest_folder

EXPERIMENTS = conf_dir().parent / "experiments"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
REACHES = ("_target_", "model", "cache", "cache_dir", "cache_latents", "cache_gigabytes", "captioner", "device", "meta")
OUTSIDE = [
    "output=/etc",
    "runs_dir=/etc",
    "run_dir=x",
    "inputs_dir=/tmp/x",
    "weights=/home/x",
    "data.root=/home",
    "logger=wandb",
    "callbacks=[x]",
    "hydra.run.dir=/tmp/x",
    "hydra/launcher=ray",
    "trusted_packages=[evil]",
    "trust=true",
    "follow=true",
    "memory=offload",
    "devices=64",
    "input=/home/x",
    "",
    7,
    None,
    {"method": "spire"},
]
PARTS = [
    "backbone.path=org/name",
    "backbone.path=/home/x/model",
    "backbone.codec_path=org/name",
    "backbone.config_path=/x",
    "backbone.cache_dir=/home/x",
    "backbone.cache_gigabytes=1e-9",
    "backbone._target_=os.system",
    "backbone=/etc/passwd",
    "backbone=../../home/x",
    "backbone={path: x}",
    "experiment=../../../tmp/sent/evil",
    "experiment=..",
    "experiment=no/such",
    "experiment=spire/quickstart_photos",
    "experiment=spire/table6",
    "prompt/semantic=vlm",
    "prompt/semantic=file",
    "prompt.semantic.path=/etc/passwd",
    "prompt.semantic.captioner.model=org/name",
    "prompt.semantic.captioner.cache=/home/x",
    "prompt.visual.path=org/name",
    "prompt.semantic={_target_: os.system}",
    "decoder=consistency",
    "decoder.path=org/name",
    "decoder.weights=/home/x",
    "lq_encoder.weights=/home/x",
    "sampler=../sampler/edm",
    "sampler/edm=x",
    "sampler.steps=${oc.env:HOME}",
    "prompt.negative='${oc.env:HOME}'",
    "prompt.negative='\\${oc.env:HOME}'",
    "prompt.negative='\x1b[2J'",
    "prompt.negative='two\nlines'",
    "sampler.steps=1,2",
    "sampler.steps=range(1,9)",
    "sampler.steps=[1]",
    "sampler.steps=1000000000",
    "sampler.steps=.nan",
    "sampler.steps=true",
    "sampler.steps=" + "9" * 2000,
    "sampler.steps=" + "[" * 2000,
    "adaptor.hint_widths=[1000000]",
    "adaptor.hint_widths=[" + ",".join("8" for _ in range(200)) + "]",
    "adaptor.no_such=1",
    "adaptor/fusion@hydra.launcher=zero_sft",
    "backbone@hydra=tiny_sd",
    "+method=spire",
    "~sampler",
    "method",
    "module.backbone.path=org/name",
    "module._target_=os.system",
    "method._target_=os.system",
    "module.weights_dtype=pickle",
    "adaptor_reference._target_=os.system",
]
OWN = {
    "method=dra": "method=dra",
    "scale=full": "scale=full",
    "variant=release": "variant=release",
    "experiment=spire/quickstart": "experiment=spire/quickstart",
    "backbone=sdxl": "backbone=sdxl",
    "adaptor/fusion=zero_sft": "adaptor/fusion=zero_sft",
    "prompt/semantic=caption": "prompt/semantic=caption",
    "sampler.steps=7": "sampler.steps=7",
    "sampler.fidelity.tau_r=null": "sampler.fidelity.tau_r=null",
    "adaptor.hint_widths=[32, 64]": "adaptor.hint_widths=[32,64]",
    "adaptor.trunk.depth=[1,0,2]": "adaptor.trunk.depth=[1,0,2]",
    "adaptor.trunk.depth=whole": "adaptor.trunk.depth=whole",
    "adaptor.text=none": "adaptor.text=none",
    "+hint_widths=[8,8]": "++hint_widths=[8,8]",
    "resampler.depth=2": "++resampler.depth=2",
    "module.frozen=[stream,lora]": "module.frozen=[stream,lora]",
    "objective.t_max=0.5": "objective.t_max=0.5",
    "prompt.negative='blurry, a cat\\'s'": "prompt.negative='blurry, a cat\\'s'",
    "sampler.fidelity.mode=off": "sampler.fidelity.mode=off",
}


@pytest.mark.parametrize("word", PARTS)
def test_paths_and_unknown_settings_are_rejected_and_named(word) -> None:
    found = filter_overrides([word, "method=dra"])
    assert (found.accepted, found.rejected, found.others) == (("method=dra",), (word,), 0)
    line = summary(found, trust=False)
    assert line.startswith("the weights bring along method=dra (follow=false: without); leave out ")
    assert line.endswith(" (type it again, or trust=true if you trust who made them)") and len(line) < 300


def test_settings_that_are_no_part_are_ignored() -> None:
    found = filter_overrides([*OUTSIDE, "x" * 10_000, "method=dra"])
    assert (found.accepted, found.rejected, found.others) == (("method=dra",), (), len(OUTSIDE) + 1)
    assert not filter_overrides({"method=dra": 1}).accepted and not filter_overrides("method=dra").accepted
    assert len(filter_overrides(["sampler.steps=7"] * 10_000).accepted) == 200


@pytest.mark.parametrize("word", OWN)
def test_settings_that_weights_need_are_accepted(word) -> None:
    assert filter_overrides([word]).accepted == (OWN[word],)


def test_trust_accepts_paths_but_no_output_and_no_code() -> None:
    found = filter_overrides([*PARTS, *OUTSIDE, "method=dra"], trust=True)
    for word in ("backbone.path=org/name", "prompt/semantic=vlm", "decoder.weights=/home/x", "method=dra"):
        assert word in found.accepted
    for word in found.accepted:
        assert "_target_" not in word and "${" not in word and ".." not in word.partition("=")[2], word
    roots = {re.split(r"[./=]", word.lstrip("+"))[0] for word in found.accepted}
    assert roots <= {group.partition("/")[0] for group in GROUPS} | {"module", "adaptor_reference"}
    assert summary(found, trust=True).endswith("(never taken from a manifest)")


def test_trust_comes_only_from_the_command_line(tmp_path) -> None:
    place = manifest_folder(tmp_path, "trust=true", "backbone.path=org/name", "sampler.steps=7")
    typed = (f"weights={place}", "input=x")
    assert merge_and_log(typed) == ("sampler.steps=7", *typed)
    assert merge_and_log((*typed, "trust=false"))[0] == "sampler.steps=7"
    trusting = merge_overrides((*typed, "Trust=True".lower()))
    assert trusting.words[:2] == ("backbone.path=org/name", "sampler.steps=7")
    assert merge_overrides((*typed, NO_FOLLOW)).line == "" and merge_overrides(("input=x",)).line == ""


def test_typed_settings_replace_received_ones_silently(tmp_path) -> None:
    place = manifest_folder(tmp_path, "backbone.path=/x", "sampler.steps=7", "+hint_widths=[8]")
    typed = (f"weights={place}", "backbone.path=/y", "hint_widths=[9]", "sampler.steps=8")
    assert merge_overrides(typed).words == typed and merge_overrides(typed).line == ""


def nodes(node: Any, place: str = "") -> list[tuple[str, Any]]:
    """Leaves of a yaml by dotted place."""
    if not isinstance(node, dict):
        return [(place, node)]
    return [leaf for key, value in node.items() for leaf in nodes(value, f"{place}.{key}" if place else str(key))]


# Folders whose files options of a group have in common.
WITHIN = {"backbone/full": "backbone", "backbone/tiny": "backbone", "scale/parts": "scale"}


def shipped() -> list[tuple[str, str, dict[str, Any], str]]:
    """Group, option, content and package of every config of the groups and of what is merged at the top."""
    found = []
    places = [(file, file.relative_to(conf_dir()).parent.as_posix()) for file in sorted(conf_dir().rglob("*.yaml"))]
    places += [(file, "experiment") for file in sorted(EXPERIMENTS.rglob("*.yaml"))]
    for file, group in places:
        text = file.read_text(encoding="utf-8")
        group = WITHIN.get(group, group)
        package = re.search(r"^# @package (\S+)", text)
        place = {"adaptor/reference": "adaptor_reference"}.get(group, group.replace("/", "."))
        if package is not None:
            place = "" if package[1] == "_global_" else package[1]
        of_method = group.startswith("method/") and file.stem != "stages"  # of training only
        if group in GROUPS or group == "." or of_method:
            base = EXPERIMENTS if group == "experiment" else conf_dir() / group
            name = file.relative_to(base).with_suffix("").as_posix()
            found.append((group, name, yaml.safe_load(text) or {}, "" if group == "." else place))
    return found


def test_every_listed_setting_is_one_of_the_configs() -> None:
    """What the configs do not name a constructor takes all the same, or a size gives: these are named here."""
    there = {leaf for _, _, node, place in shipped() for leaf, _ in nodes(node, place)}
    unnamed = {"lora_rank", "lora_alpha", "sampler.scheduler.steps_offset", "prompt.dropout.visual"}
    odd = [key for key in SETTINGS if key not in there and key not in unnamed]
    assert odd == [] or all(any(leaf.startswith(f"{key}.") for leaf in there) for key in odd), odd


def test_no_listed_setting_is_a_path_a_cache_or_a_class() -> None:
    for key, fact in SETTINGS.items():
        last = key.rpartition(".")[2]
        assert last not in PATH_KEYS | set(REACHES) and not last.endswith(PATH_ENDINGS), key
        for wrong in () if fact is Text else ("/etc/passwd", "org/name", 10**12):
            with pytest.raises(Mismatch):
                coerce(wrong, fact)


def test_only_backbones_and_an_image_encoder_name_a_hub_id() -> None:
    """Of the options that count only these name a place, which the package chose; the weights do not fit without."""
    naming = {
        (group, name)
        for group, name, node, _ in shipped()
        if group in GROUPS - {"experiment"} and (group, name) not in EXCLUDED_OPTIONS
        for leaf, value in nodes(node)
        for one in (value if isinstance(value, list) else [value])
        if leaf.rpartition(".")[2] in PATH_KEYS | {"model"} and HUB_ID.search(str(one))
    }
    assert {pair for pair in naming if pair[0] != "backbone"} == {("prompt/visual", "dino")}


@pytest.mark.parametrize("name", [name for group, name, _, _ in shipped() if group == "experiment"])
def test_an_accepted_experiment_sets_no_output(name) -> None:
    def settings(of: str) -> set[str]:
        node = yaml.safe_load((EXPERIMENTS / f"{of}.yaml").read_text(encoding="utf-8")) or {}
        others = [entry for entry in node.get("defaults", ()) if isinstance(entry, str) and entry != "_self_"]
        return set(node).union(*(settings(other) for other in others))

    taken = bool(filter_overrides([f"experiment={name}"]).accepted)
    assert taken == (not settings(name) & set(OUTPUT_SETTINGS))
    assert OPTION.fullmatch(name)


def test_a_malformed_manifest_is_refused_in_one_line(tmp_path) -> None:
    deep, long = '{"a":' * 5000 + "1" + "}" * 5000, "[1, " + "9" * 9000 + "]"
    for text in ("[1]", "{", deep, '{"identity": NaN}', long):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json: not a manifest \(") as caught:
            training_overrides(tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert training_overrides(tmp_path / "below" / "not_there").accepted == ()
    assert MAX_CHARACTERS < 10_000


def test_every_sampler_setting_is_accepted() -> None:
    """How their maker sampled: a new number of a sampler belongs into the schema."""
    leaves = {
        f"{place}.{leaf}" if place else leaf
        for group, _, content, place in shipped()
        if group.partition("/")[0] == "sampler"
        for leaf, _ in nodes({key: value for key, value in content.items() if key != "defaults"})
    }
    settings = {leaf for leaf in leaves if leaf.rpartition(".")[2][0] != "_"}
    assert settings - SETTINGS.keys() == {"sampler.progress", "sampler.tiling"}
