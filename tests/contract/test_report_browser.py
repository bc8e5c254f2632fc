"""The page of `restore-lab report` in Chromium: slider, common zoom, sorting, keys, and no requests.

Needs the extra `browser` (playwright) and a Chromium on the machine (Debian: apt install chromium).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from restore_lab.tables.page.sources import of_table
from restore_lab.tables.page.write import render_page
from tests.helpers.toy_report import KEYS, N, toy_table

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((place for place in map(shutil.which, NAMES) if place), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install restore-lab[browser]")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; on Debian: apt install chromium")


@dataclass(kw_only=True)
class Opened:
    """A page in the browser, what it asked for, and what it complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    (place / "page.html").write_text(render_page(of_table(*toy_table(place)), images=64, worst=10))
    return place / "page.html"


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    """The page, freshly opened; at its end nothing but the file was asked for, and nothing went wrong."""
    own = Opened(page=browser.new_page(viewport={"width": 1200, "height": 900}))
    own.page.on("request", lambda request: own.requests.append(request.url))
    own.page.on("console", lambda message: own.errors.append(message.text) if message.type == "error" else None)
    own.page.on("pageerror", lambda error: own.errors.append(str(error)))
    own.page.goto(file.as_uri())
    yield own
    assert [url for url in own.requests if not url.startswith("data:")] == [file.as_uri()]
    assert own.errors == []
    own.page.close()


def names(page: Any) -> list[str]:
    return page.locator(".thumbnail span:not(.value)").all_text_contents()


def transforms(page: Any) -> list[str]:
    return page.locator(".view img").evaluate_all("images => images.map((image) => image.style.transform)")


def clip(page: Any) -> str:
    return page.locator("#left-pane").evaluate("pane => getComputedStyle(pane).clipPath")


def test_a_hostile_caption_is_shown_as_text(opened) -> None:
    page = opened.page
    assert page.title() == "toy/one: two rows"
    page.locator("#search").fill("bold")
    assert names(page) == [KEYS[3]]
    assert page.locator("#words b, #words script").count() == 0
    assert "</script>" in page.locator("#words").inner_text()


def test_the_content_policy_blocks_requests(opened) -> None:
    """Not only is nothing asked for: nothing could be."""
    attempt = "fetch('https://example.org/').then(() => 'left', () => 'stopped')"
    assert opened.page.evaluate(attempt) == "stopped"
    assert any("Content Security Policy" in error for error in opened.errors)
    opened.errors.clear()


def test_the_slider_moves_by_pointer_and_by_keys(opened) -> None:
    page = opened.page
    assert clip(page) == "inset(0px 50% 0px 0px)"
    page.locator("#compare").scroll_into_view_if_needed()
    box = page.locator("#compare").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20, steps=3)
    page.mouse.up()
    after = clip(page)
    assert float(after.split()[1].rstrip("%")) == pytest.approx(75, abs=0.5)
    page.locator("#slider").focus()
    page.keyboard.press("End")
    assert clip(page) in ("inset(0px 0% 0px 0px)", "inset(0px)")
    page.keyboard.press("ArrowLeft")
    assert clip(page) == "inset(0px 0.5% 0px 0px)"
    assert page.locator("#divider").evaluate("divider => divider.style.left") == "99.5%"


def test_the_two_sides_are_the_rows_that_are_chosen(opened) -> None:
    page = opened.page
    assert page.locator("#left-tag").inner_text() == "LQ" and page.locator("#right-tag").inner_text() == "Ours (a)"
    before = page.locator("#left-image").get_attribute("src")
    page.locator("#left-row").select_option(label="original")
    assert page.locator("#left-tag").inner_text() == "original"
    assert page.locator("#left-image").get_attribute("src") != before


def test_zoom_is_common_to_all_views(opened) -> None:
    """A wheel over one of the small views enlarges all of them about the same point; a drag moves all."""
    page = opened.page
    assert len(transforms(page)) == 2 + 4  # compare: left and right; side by side: original, LQ, two methods
    page.locator("#side-by-side .view").nth(2).scroll_into_view_if_needed()
    box = page.locator("#side-by-side .view").nth(2).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -400)
    page.wait_for_function("zoom.scale > 1")
    (enlarged,) = set(transforms(page))
    scale = 1.25**4
    expected = [scale, 0.25 * (1 - scale), 0.5 * (1 - scale)]
    assert page.evaluate("[zoom.scale, zoom.x, zoom.y]") == pytest.approx(expected, abs=0.02)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=2)
    page.mouse.up()
    (moved,) = set(transforms(page))
    assert moved != enlarged
    assert page.evaluate("zoom.x") == pytest.approx(0.25 * (1 - scale) + 0.25, abs=0.02)


def test_keys_zoom_to_single_pixels(opened) -> None:
    page = opened.page
    page.locator("#compare").focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    (text,) = set(transforms(page))
    assert "scale(1.25)" in text
    rendering = "image => getComputedStyle(image).imageRendering"
    assert page.locator("#left-image").evaluate(rendering) == "pixelated"  # 32 pixels over some hundreds
    page.keyboard.press("0")
    assert set(transforms(page)) == {"translate(0%, 0%) scale(1)"}
    page.keyboard.press("n")
    assert page.locator("#image-name").inner_text() == KEYS[1]


def test_images_sort_by_any_metric_row_and_difference(opened) -> None:
    """a's PSNR rises with the image and b's falls; GMSD rises with PSNR, but less of it is better."""
    page = opened.page
    assert names(page) == KEYS  # the worst of a first
    page.locator("#order").select_option("best")
    assert names(page) == KEYS[::-1]
    page.locator("#order").select_option("worst")
    page.locator("#sorted-row").select_option(label="Ours (b)")
    assert names(page) == KEYS[::-1]
    page.locator("#metric").select_option(label="gmsd \u2193")
    assert names(page) == KEYS
    page.locator("#metric").select_option(label="psnr \u2191")
    page.locator("#minus-row").select_option(label="Ours (a)")
    assert names(page) == KEYS[::-1]  # b - a = 20 - 2 i
    assert page.locator(".thumbnail .value").first.inner_text() == "-18.00"
    page.locator("#order").select_option("name")
    assert names(page) == KEYS


def test_the_worst_ten_of_each_method_are_listed(opened) -> None:
    page = opened.page
    page.get_by_role("button", name="worst ten of Ours (b)").click()
    assert names(page) == KEYS[: N - 11 : -1] and len(names(page)) == 10
    page.get_by_role("button", name="worst ten of Ours (a)").click()
    assert names(page) == KEYS[:10]
    page.get_by_role("button", name="all images").click()
    assert len(names(page)) == N


def test_keys_move_between_thumbnails(opened) -> None:
    """One stop for the tab key, arrows inside, and the viewer follows."""
    page = opened.page
    assert page.locator(".thumbnail[tabindex='0']").count() == 1
    page.locator(".thumbnail").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent").startswith(KEYS[1])
    page.keyboard.press("End")
    assert page.locator("#image-name").inner_text() == KEYS[-1]


def test_the_table_sorts_by_a_click_and_by_enter(opened) -> None:
    """Measured rows first, then what only the paper has; the third time as it was."""
    page = opened.page

    def rows() -> list[str]:
        return page.locator("#table-place tbody tr").evaluate_all("rows => rows.map((row) => row.innerText)")

    before = rows()
    assert [row.split("\t")[0] for row in before] == ["LQ", "Ours", "Ours", "SwinIR"]
    page.get_by_role("button", name="GMSD").click()
    assert [row.split("\t")[-1].strip() for row in rows()] == ["0.160", "0.295 [0.300]", "0.305", "[?]"]
    page.get_by_role("button", name="GMSD").press("Enter")
    assert rows()[0].split("\t")[-1].strip() == "0.305"
    assert page.locator("th[aria-sort='descending']").inner_text().startswith("GMSD")
    page.get_by_role("button", name="GMSD").press("Enter")
    assert rows() == before


def test_curves_show_values_at_the_cursor(opened) -> None:
    page = opened.page
    assert page.locator(".chart path.smooth").count() == 2
    page.locator(".chart").focus()
    for _ in range(49):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#charts figcaption output").inner_text() == "step 10"
    first, second = (float(text) for text in page.locator(".key output").all_text_contents())
    assert second == pytest.approx(2 * first) and first < 1.0
    page.locator(".key").first.click()
    assert page.locator(".chart path.smooth").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_horizontal_scroll(browser, file, scheme) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(int(part) for part in background.removeprefix("rgb(").rstrip(")").split(","))
    assert (bright > 600) == (scheme == "light")
    page.close()
