"""Bad values for every setting of every verb: each is refused in one line, or has a meaning.

The settings are those of the composed configs, leaves and groups, so a new one comes in unasked. A case is a setting
with one of tests/helpers/settings.py's values: all are checked against the annotations; the whole check of the
command line, what a verb plans, and the building of light parts run for some, chosen in turn. The slow ring types them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from restore_lab.config import checks, signatures
from restore_lab.config.build import build
from restore_lab.config.conf_dir import conf_dir
from restore_lab.config.kinds import fit
from restore_lab.config.settings import settings_of
from tests.helpers.settings import VALUES, VERBS, Changed, config, kinds, refusal, settings

LIGHT = ("data", "eval_data", "degradation", "eval_degradation", "sampler", "objective", "optimisation", "speed")
EVERY = list(VALUES.values())


def check(cfg: DictConfig, verb: str) -> None:
    """What the command line does with a config before it runs."""
    checks.check(cfg, verb=verb)
    checks.check_files(cfg, verb=verb)


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_is_annotated(verb) -> None:
    """A verb's own in settings.py, a part's in its constructor, a mapping's by the mapping."""
    cfg = config(verb)
    assert [str(name) for name in cfg if name not in settings_of(verb)] == []
    for place, kind in settings(cfg):
        parent, _, name = place.rpartition(".")
        node: Any = OmegaConf.select(cfg, parent) if parent else None
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        if isinstance(target, str) and target.startswith("restore_lab.") and name not in signatures.SPECIAL:
            assert kind is not None, f"{place}: {target} does not say what it may be"


def test_no_annotated_setting_is_missing_from_all_configs() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in conf_dir().rglob("*.yaml"))
    named = {name for verb in VERBS for name in settings_of(verb)} - {
        str(name) for verb in VERBS for name in config(verb)
    }
    assert [name for name in sorted(named) if f"{name}:" not in text and f"@{name}:" not in text] == []


def test_every_value_fits_its_annotation_or_is_refused() -> None:
    cases = refused = 0
    for verb in VERBS:
        for kind in kinds(verb).values():
            for value in EVERY:
                cases += 1
                refused += refusal(partial(fit, value, Any if kind is None else kind)) is not None
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
    checks.check(cfg, verb=verb)  # all was put back


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_config_that_passes_the_check_can_be_planned(verb, tmp_path, monkeypatch) -> None:
    from restore_lab.evaluation import evaluate
    from restore_lab.training import run as training

    monkeypatch.chdir(tmp_path)
    cfg, planned = config(verb), 0
    for number, place in enumerate(list(kinds(verb))[::3]):
        with Changed(cfg, place, EVERY[number % 8]):
            if refusal(partial(check, cfg, verb)) is None:
                planned += refusal(partial({"train": training, "evaluate": evaluate}[verb].planned, cfg)) is None
    assert planned > 10


@pytest.mark.parametrize("part", LIGHT)
def test_a_light_part_builds_or_is_refused_in_one_line(part) -> None:
    cfg, refused = config("train"), 0
    for place in [place for place, _ in settings(cfg[part], part)]:
        for value in EVERY:
            with Changed(cfg, place, value):
                refused += refusal(partial(build, cfg[part])) is not None
    assert refused
