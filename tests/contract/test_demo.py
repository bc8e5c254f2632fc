"""`restore-lab demo`: its models and sliders and, with Gradio, the page as a browser and an attacker use it."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from restore_lab.config.compose import OVERRIDES_KEY
from restore_lab.demo.models import ModelCache
from restore_lab.demo.words import NUMBERS, instruction
from restore_lab.storage.artefact import Manifest
from tests.helpers.configs import composed, small

CHROMIUM = next(
    (place for place in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if place), None
)
METHODS = {"spire", "supir", "diff_restorer", "instantir", "dra"}


@pytest.fixture(scope="module")
def cfg(toy_folder, tmp_path_factory) -> Any:
    """The page with one run to choose, next to the shipped models."""
    runs = tmp_path_factory.mktemp("runs")
    place = runs / "mine" / "adaptor-0123456789abcdef"
    place.mkdir(parents=True)
    made = [
        "method=spire",
        *(word for word in small(toy_folder) if word.startswith(("backbone", "adaptor", "sampler"))),
    ]
    Manifest(identity="0" * 16, kind="adaptor", settings={}, extra={OVERRIDES_KEY: made}).write(place)
    from restore_lab.inference.restorer import load_method

    load_method(composed("restore", *small(toy_folder), "weights=null", "input=x", "device=cpu")).export(place)
    return composed("demo", f"runs_dir={runs}", "device=cpu", "max_pixels=2000", "overrides=['trust=true']")


@pytest.fixture(scope="module")
def shelf(cfg) -> ModelCache:
    return ModelCache(cfg)


def test_the_list_of_models_has_shipped_ones_and_runs(shelf, cfg) -> None:
    *shipped, run = shelf.models
    assert {name.partition(" ")[0] for name in shipped} == METHODS
    assert shipped[0].startswith("spire")
    assert run == f"{cfg.runs_dir}/mine/adaptor-0123456789abcdef"
    assert shelf.config(run).weights == run
    with pytest.raises(ValueError, match="no model 'else'"):
        shelf.config("else")


def test_a_model_has_the_sliders_of_its_sampler(shelf) -> None:
    def has(method: str) -> dict[str, float]:
        plain = shelf.config(f"{method} (shipped toy)")
        return {s.settings[-1]: s.value(plain) for s in shelf.sliders if s.value(plain) is not None}

    assert has("supir")["sampler.fidelity.tau_r"] == 4.0
    assert has("dra")["sampler.fidelity.weight"] == 0.05
    assert has("instantir")["sampler.strength.share"] == 1
    assert "sampler.fidelity.tau_r" not in has("spire")
    assert all("sampler.steps" in has(method) for method in METHODS)


def test_sliders_change_the_sampler_without_loading_again(shelf, cfg) -> None:
    run = list(shelf.models)[-1]
    plain = shelf.restorer(run, {})
    module = plain.module
    turned = shelf.restorer(run, {"Steps": 3, "Strength of the adaptor": 0.5, "RSS weight": 0.1})
    assert turned.module is module
    assert (module.sampler.steps, module.sampler.strength.start, module.sampler.strength.end) == (3, 0.5, 0.5)
    shelf.restorer(run, {})
    assert (module.sampler.steps, module.sampler.strength.start) == (2, 1.0)
    creative = next(slider for slider in shelf.sliders if slider.choices)
    instant = shelf.config("instantir (shipped toy)")
    assert creative.words(1, instant) == []
    assert creative.words(0.5, instant) == ["sampler/strength=until", "sampler.strength.share=0.5"]
    assert shelf.config("instantir (shipped toy)", creative.words(0.5, instant)).sampler.strength.share == 0.5


def test_degradation_sliders_write_the_instruction() -> None:
    off = [first for _, first, _, _ in NUMBERS.values()]
    assert instruction(off) == "Remove all degradation"
    everything = instruction([2.4, 6.0, 0.06, 60])
    assert everything == "Deblur with sigma 2.4; Upsample to 6.0x; Denoise with sigma 0.06; Dejpeg with quality 60"


@pytest.fixture(scope="module")
def served(cfg) -> Iterator[str]:
    """The page's address."""
    pytest.importorskip("gradio", reason="no gradio; pip install restore-lab[demo]")
    from restore_lab.demo.page import launch_page

    blocks, address = launch_page(cfg, wait=False, port=None)
    yield address.rstrip("/")
    blocks.close()


def code(address: str, data: bytes | None = None, **headers: str) -> int:
    try:
        return urllib.request.urlopen(urllib.request.Request(address, data=data, headers=headers), timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_serves_only_its_own_files(served, tmp_path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in ("/etc/passwd", secret, Path.cwd() / "pyproject.toml", "../../../../etc/passwd"):
        assert code(f"{served}/gradio_api/file={urllib.parse.quote(str(path))}") in (403, 404)
    assert code(f"{served}/gradio_api/file=http://127.0.0.1:1/") >= 400
    assert served.startswith("http://127.0.0.1:")


def test_an_upload_above_the_size_limit_is_refused(served) -> None:
    def upload(size: int) -> int:
        body = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            + b"0" * size
            + b"\r\n--x--\r\n"
        )
        return code(f"{served}/gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"})

    assert upload(1000) == 200
    assert upload(21 * 1000 * 1000) == 413


def test_a_photograph_is_restored_in_the_browser(served, shelf, tmp_path) -> None:
    """In Chromium: choose the run, upload, restore with two seeds; a bad file is one line; nothing leaves the page."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install restore-lab[browser]")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(tmp_path / "large.png")
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served)
        page.get_by_label("Model").click()
        page.get_by_role("option", name="mine").click()
        page.set_input_files("input[type=file]", tmp_path / "a.png")
        page.wait_for_selector("img[alt]", state="attached")
        page.get_by_label("number input for Seeds").fill("2")
        page.get_by_role("button", name="Restore", exact=True).click()
        page.wait_for_selector("text=The seeds differ by")
        assert "40 x 32 pixels" in page.inner_text("body")
        with page.expect_download() as got:
            page.get_by_role("button", name="Download the restored file").click()
        assert Image.open(got.value.path()).size == (40, 32)
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
        page.set_input_files("input[type=file]", tmp_path / "large.png")
        page.get_by_role("button", name="Restore", exact=True).click()
        page.wait_for_selector("text=80x80 pixels are more than max_pixels=2000")
        browser.close()
    assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []
