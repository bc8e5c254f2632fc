"""docs/deviations.md names only settings, options and files that exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from restore_lab.config.conf_dir import conf_dir
from tests.helpers.checkout import ROOT
from tests.helpers.configs import composed

PAGE = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
SETTING = re.compile(r"(?P<key>[a-z_0-9]+(?:[./][a-z_0-9]+)*)(?:=(?P<value>\S+))?")
METHODS = {
    "SUPIR (": "supir",
    "Diff-Restorer": "diff_restorer",
    "InstantIR": "instantir",
    "DRA": "dra",
    "Imported": "instantir",
}
# Where a setting may be: a verb, and parts besides the section's own for settings that no method has by default.
COMPOSED = (
    ("train",),
    ("restore",),
    ("evaluate", "degradation=parameterized", "adaptor=controlnet_diffusers", "decoder=cfw", "sampler/strength=until"),
    ("evaluate", "degradation=real_esrgan", "sampler/tiling=gaussian", "prompt/semantic=vlm", "sampler=edm"),
)


@cache
def config(method: str, verb: str, *more: str) -> DictConfig:
    return composed(verb, f"method={method}", "scale=full", *more)


def sections() -> list[tuple[str, str]]:
    """Each heading of the page and the text under it."""
    parts = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def there(word: str, method: str) -> bool:
    """Whether a word between backticks is a setting or an option; what looks like neither is no claim."""
    found = SETTING.fullmatch(word)
    if found is None or not (found["value"] or re.search(r"[./]", word)):
        return True
    key, value = found["key"], found["value"]
    group = ROOT / "experiments" if key == "experiment" else conf_dir() / key.removeprefix("eval_")
    if group.is_dir():
        return value is None or (group / f"{value}.yaml").is_file()
    if Path(word).suffix in (".py", ".yml", ".yaml"):
        names = {path.name for folder in ("restore_lab", "tests") for path in (ROOT / folder).rglob("*.py")}
        return Path(word).name in names or Path(word).suffix != ".py"  # a yaml of someone else's
    missing = object()
    return any(OmegaConf.select(config(method, *words), key, default=missing) is not missing for words in COMPOSED)


@pytest.mark.parametrize(("heading", "text"), sections(), ids=[heading for heading, _ in sections()])
def test_every_setting_option_and_file_exists(heading: str, text: str) -> None:
    method = next((name for start, name in METHODS.items() if heading.startswith(start)), "spire")
    words = {part for quoted in re.findall(r"`([^`]+)`", text) for part in quoted.split()}
    assert sorted(word for word in words if not there(word, method)) == []
