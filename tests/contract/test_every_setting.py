"""Bad values for every setting of every verb: each is refused in one line, or has a meaning.

The settings are those of the composed configs, leaves and groups, so a new one comes in unasked. A case is a setting
with one of tests/helpers/settings.py's values: all are checked against the annotations; the whole check of the
command line, what a verb plans, and the building of light parts run for some, chosen in turn. The slow ring types them.
"""

from __future__ import annotations

import ast
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from restore_lab.config import checks, signatures
from restore_lab.config import settings as settings_module
from restore_lab.config.arguments import arguments
from restore_lab.config.build import build
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.kinds import coerce
from restore_lab.config.settings import verb_settings
from tests.helpers.settings import VALUES, VERBS, Changed, config, kinds, refusal, settings

LIGHT = ("data", "eval_data", "degradation", "eval_degradation", "sampler", "objective", "optimisation", "speed")
EVERY = list(VALUES.values())
CONFIGS = "\n".join(file.read_text(encoding="utf-8") for file in conf_dir().rglob("*.yaml"))


def check(cfg: DictConfig, verb: str) -> None:
    """What the command line does with a config before it runs."""
    checks.check_config(cfg, verb=verb)
    checks.check_files(cfg, verb=verb)


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_is_annotated(verb) -> None:
    """A verb's own in settings.py, a part's in its constructor, a mapping's by the mapping.

    One that only parts read has their annotations, and none where the composition has no such part.
    """
    cfg = config(verb)
    shared = {argument.place.partition(".")[0] for argument in arguments(cfg) if argument.is_reference}
    named = re.findall(r"\$\{(?:oc\.select:)?(\w+)", OmegaConf.to_yaml(cfg))
    elsewhere = {name for name in re.findall(r"\$\{(?:oc\.select:)?(\w+)", CONFIGS) if name not in named}
    assert [str(name) for name in cfg if name not in {*verb_settings(verb), *shared, *elsewhere}] == []
    for place, kind in settings(cfg):
        parent, _, name = place.rpartition(".")
        node: Any = OmegaConf.select(cfg, parent) if parent else None
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        if isinstance(target, str) and target.startswith("restore_lab.") and name not in signatures.HYDRA_KEYS:
            assert kind is not None, f"{place}: {target} does not say what it may be"


def test_no_annotated_setting_is_missing_from_all_configs() -> None:
    named = {name for verb in VERBS for name in verb_settings(verb)} - {
        str(name) for verb in VERBS for name in config(verb)
    }
    assert [name for name in sorted(named) if f"{name}:" not in CONFIGS and f"@{name}:" not in CONFIGS] == []


def test_no_setting_restates_the_annotation_of_the_argument_that_reads_it() -> None:
    """A setting that both a verb and a part's argument read has an alias of kinds.py, or no entry in settings.py."""
    shared = {one.place for verb in VERBS for one in arguments(config(verb)) if one.is_reference}
    tree = ast.parse(Path(settings_module.__file__).read_text(encoding="utf-8"))
    own = {node.targets[0].id for node in tree.body if isinstance(node, ast.Assign) and hasattr(node.targets[0], "id")}
    fields = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    restated = {
        field.target.id
        for field in fields
        if {"Annotated", "Literal", *own} & {n.id for n in ast.walk(field.annotation) if isinstance(n, ast.Name)}
    }
    assert {"format", "precision", "port"} <= restated  # a verb's own
    assert sorted(restated & shared) == []


def test_every_value_fits_its_annotation_or_is_refused() -> None:
    cases = refused = 0
    for verb in VERBS:
        for kind in kinds(verb).values():
            for value in EVERY:
                cases += 1
                refused += refusal(partial(coerce, value, Any if kind is None else kind)) is not None
    assert cases > 15_000 and refused > cases / 3, (cases, refused)


@pytest.mark.parametrize("verb", VERBS)
def test_the_check_refuses_a_value_in_one_line(verb) -> None:
    """On every setting that is the verb's own; on those that verbs share in `train`, and on some of them elsewhere."""
    cfg, refused = config(verb), 0
    shared = set() if verb == "train" else kinds("train").keys()
    places = [place for number, place in enumerate(kinds(verb)) if place not in shared or number % 20 == 0]
    for number, place in enumerate(places):
        for value in (EVERY[number % 8], EVERY[(number + 3) % 8]):
            with Changed(cfg, place, value):
                refused += refusal(partial(check, cfg, verb)) is not None
    assert refused > len(places) / 4
    checks.check_config(cfg, verb=verb)  # all was put back


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_config_that_passes_the_check_can_be_planned(verb, tmp_path, monkeypatch) -> None:
    from restore_lab.evaluation.evaluate import plan_evaluation
    from restore_lab.training.run import plan_training

    monkeypatch.chdir(tmp_path)
    cfg, planned = config(verb), 0
    for number, place in enumerate(list(kinds(verb))[::3]):
        with Changed(cfg, place, EVERY[number % 8]):
            if refusal(partial(check, cfg, verb)) is None:
                planned += refusal(partial({"train": plan_training, "evaluate": plan_evaluation}[verb], cfg)) is None
    assert planned > 10


@pytest.mark.parametrize("part", LIGHT)
def test_a_light_part_builds_or_is_refused_in_one_line(part) -> None:
    cfg, refused = config("train"), 0
    for place in [place for place, _ in settings(cfg[part], part)]:
        for value in EVERY:
            with Changed(cfg, place, value):
                refused += refusal(partial(build, cfg[part])) is not None
    assert refused
