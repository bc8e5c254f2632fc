"""A method's `variant=release` differs from its paper where docs/deviations.md says, and nowhere else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.helpers.checkout import ROOT
from tests.helpers.configs import composed

PAGE = ROOT / "docs" / "deviations.md"


def flat(node: Any, place: str = "") -> dict[str, Any]:
    """Every value by its dotted name."""
    if not isinstance(node, dict):
        return {place: node}
    return {k: v for key, value in node.items() for k, v in flat(value, f"{place}.{key}" if place else key).items()}


def settings(*words: str) -> dict[str, Any]:
    return flat(OmegaConf.to_container(composed("evaluate", *words), resolve=True, throw_on_missing=True))


@pytest.mark.parametrize(("method", "before"), [("supir", ""), ("instantir", "method=instantir ")])
def test_a_release_differs_from_the_paper_as_the_page_says(method, before) -> None:
    """In nothing else at any scale, and in everything that is named at one of them: a toy may have it anyway."""
    page = PAGE.read_text(encoding="utf-8")
    (line,) = re.findall(rf"^`{before}variant=release` sets (.*)$", page, flags=re.MULTILINE)
    named = re.findall(r"`([a-z0-9_.]+)`", line.partition("; a test")[0])
    all_changed: set[str] = set()
    for scale in ("tiny", "full"):
        words = (f"method={method}", f"scale={scale}", "data=procedural")
        paper, release = settings(*words), settings(*words, "variant=release")
        changed = {key for key in paper.keys() | release.keys() if paper.get(key, "?") != release.get(key, "?")}
        changed = {key for key in changed if not key.startswith("module.")} - {"name"}  # the module repeats its parts
        assert {key for key in changed if not key.startswith(tuple(named))} == set(), scale
        all_changed |= changed
    assert [name for name in named if not any(key.startswith(name) for key in all_changed)] == []


def test_a_release_samples_as_its_notes_say() -> None:
    release = composed("evaluate", "method=supir", "variant=release")
    sampler = release.sampler
    assert (sampler.guidance.scale.start, sampler.guidance.scale.end) == (1.0, 4.0)
    assert (sampler.fidelity.tau_r, sampler.fidelity.s_tmin, sampler.fidelity.recode) == (None, 0.05, True)
    assert sampler.colour._target_.endswith("wavelet") and sampler.colour.levels == 5
    assert (sampler.steps, sampler.s_churn, sampler.s_noise) == (50, 5, 1.01)
    assert "unreal engine" in release.prompt.negative and "Unreal Engine 5" not in release.prompt.positive
    assert OmegaConf.to_container(composed("evaluate", "method=supir", "adaptor=supir_release").adaptor)["trunk"][
        "depth"
    ] == ("whole")


def test_variant_release_of_a_method_without_one_is_refused() -> None:
    with pytest.raises(OmegaConfBaseException, match="there_is_no_release_of_this_method"):
        settings("method=spire", "variant=release")


def test_instantirs_training_has_the_dropout_rates_of_its_variant() -> None:
    """The paper: 15 % of the images in both stages; the release's scripts; the shipped toy as it was trained."""

    def rates(*words: str) -> list[tuple[float, float, float] | None]:
        cfg = composed("train", "method=instantir", "data=procedural", *words)
        nodes = (cfg.stages.dcp.module.dropout, cfg.stages.adaptor.module.prompts.dropout)
        return [node and (node.semantic, node.visual, node.get("together", 0.0)) for node in nodes]

    assert rates("scale=full") == [None, (0.1, 0.15, 0.0)]  # None: the method's own, which is the second
    assert rates("scale=full", "variant=release") == [(0.05, 0.05, 0.05), (1.0, 0.15, 0.0)]
    assert rates("scale=tiny") == [None, (0.05, 0.05, 0.05)]
