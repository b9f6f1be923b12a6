"""The page in a real browser, before a real model in this process: what Ray adds is tested in tests/ray."""

import csv
import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

from biomedclip_ray.config import Serve
from biomedclip_ray.serve.ingress import create_app
from biomedclip_ray.serve.replica import Engine
from tests.ray.test_serve import drawn, make
from tests.serve.live import running

SETTINGS = Serve(thumbnail_licenses=("CC BY",))  # of 60 figures two are under CC0
WAIT_MS = 60_000
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle, index, _ = make(tmp_path_factory.mktemp("page"), 0, *drawn())
    engine = Engine(bundle.place.at("bundle").uri, index.place.at("index.lance").uri, SETTINGS, "f1")
    with running(create_app({"biomedclip": engine}, SETTINGS)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "this test drives a real browser: apt-get install chromium (.ci/run does)"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


def opened(browser: Any, address: str, width: int = 1200, scheme: str = "light") -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page: Page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.wait_for_selector(".card:not(.ghost), .note")
    return page


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (320, "dark")])
def test_axe_finds_nothing_in_results_labels_and_dialog(browser, url, width, scheme):
    page = opened(browser, f"{url}/?q=cells", width, scheme)
    page.get_by_text("Name what it shows").click()
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector("#bars progress")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    results = Axe().run(page).response["violations"]
    page.locator(".whole").first.click()
    page.wait_for_selector("#others .card")
    dialog = Axe().run(page).response["violations"]
    page.context.close()
    assert [(found["id"], [node["target"] for node in found["nodes"]]) for found in [*results, *dialog]] == []


def test_what_is_shown_is_saved_with_whose_it_is(browser, url):
    page = opened(browser, f"{url}/?q=cells")
    files = {}
    for form in ("CSV", "JSON", "BibTeX"):
        with page.expect_download() as coming:
            page.get_by_role("button", name=form).click()
        files[form] = Path(coming.value.path()).read_text(encoding="utf-8")
    shown = page.locator("#results .card").count()
    page.context.close()
    rows = list(csv.DictReader(io.StringIO(files["CSV"])))
    hits = json.loads(files["JSON"])
    assert len(rows) == len(hits) == shown == 24
    assert [row["attribution"] for row in rows] == [hit["attribution"] for hit in hits]
    assert all(f"Licence: {hit['license']}" in hit["attribution"] for hit in hits)
    assert "<b>no." in rows[0]["caption"] and "thumbnail" not in hits[0]
    entries = re.findall(r"^@article\{(PMC\d+\.1),$", files["BibTeX"], re.M)
    assert sorted(entries) == sorted(hit["pair_id"].partition("/")[0] for hit in hits)
    assert files["BibTeX"].count("Licence: CC") == 24


def test_a_picture_that_may_not_be_shown_is_a_link_to_its_article(browser, url):
    page = opened(browser, f"{url}/?q=no.+31&by=words")
    link = page.locator("#results .picture")
    expect(link).to_have_count(1)
    assert "are not shown here" in link.inner_text() and link.locator("img").count() == 0
    assert link.get_attribute("href") == "https://pmc.ncbi.nlm.nih.gov/articles/PMC31/"
    page.context.close()


def test_grouping_counts_and_the_whole_figure(browser, url):
    page = opened(browser, f"{url}/?q=no.+31&by=words&group=article")
    assert page.get_by_label("One figure an article").is_checked()
    expect(page.locator(".kinds label", has_text="gel").locator("small")).to_have_text("1")
    expect(page.locator(".kinds label", has_text="bar chart").locator("small")).to_have_text("0")
    page.get_by_label("One figure an article").uncheck()
    page.wait_for_function("!location.search.includes('group')")
    page.locator(".whole").first.click()
    expect(page.locator("#others .card")).to_have_count(1)
    assert "no. 31" in page.locator("#others .caption").inner_text()
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#beside")).to_be_hidden()
    page.context.close()


def test_the_map_shows_every_figure_and_searches_by_a_click_and_by_a_line_around_some(browser, url):
    page = opened(browser, url)
    page.get_by_text("Map of the index").click()
    page.wait_for_selector("#map canvas[data-points='60']")
    assert page.locator("#map-key li").count() == 3
    assert Axe().run(page).response["violations"] == []
    box = page.locator("#map canvas").bounding_box()
    assert box is not None
    x, y = page.evaluate("place(0, canvas.clientWidth, canvas.clientHeight)")
    page.mouse.move(box["x"] + x, box["y"] + y)
    expect(page.locator("#map-name")).to_contain_text("PMC")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_function("new URLSearchParams(location.search).getAll('like').length === 1")
    page.wait_for_selector(".card:not(.ghost)")
    corners = [(-25, -25), (25, -25), (25, 25), (-25, 25), (-25, -20), (-25, -25)]
    page.locator("#map canvas").scroll_into_view_if_needed()
    box = page.locator("#map canvas").bounding_box()
    assert box is not None
    for n, (dx, dy) in enumerate(corners):
        page.mouse.move(box["x"] + x + dx, box["y"] + y + dy)
        if n == 0:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_function("new URLSearchParams(location.search).getAll('like').length > 1")
    page.wait_for_selector(".card:not(.ghost)")
    page.context.close()


def test_the_map_is_walked_with_arrows_and_searched_with_enter(browser, url):
    page = opened(browser, url)
    page.get_by_text("Map of the index").click()
    page.wait_for_selector("#map canvas[data-points='60']")
    page.locator("#map canvas").focus()
    named, places = [], []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
        named.append(page.locator("#map-name").inner_text())
        places.append(page.evaluate("place(chosen, canvas.clientWidth, canvas.clientHeight)"))
    assert len(set(named)) == 3
    assert places[1][0] > places[0][0] and places[2][1] > places[1][1]
    page.keyboard.press("Enter")
    page.wait_for_function("new URLSearchParams(location.search).getAll('like').length === 1")
    assert named[-1].startswith(page.evaluate("new URLSearchParams(location.search).get('like')"))
    page.context.close()


def test_an_address_with_figures_to_be_like_shows_that_they_are_asked_for(browser, url):
    page = opened(browser, f"{url}/?like=PMC4.1%2FF1%230")
    expect(page.locator("#chip")).to_be_visible()
    page.get_by_label("Remove the picture").click()
    page.wait_for_function("!location.search.includes('like')")
    page.context.close()


def test_nothing_is_lost_or_offered_while_the_server_tells_what_it_holds(browser, url):
    held: list[Any] = []
    page = browser.new_context().new_page()
    page.route("**/v1/models", lambda route: held.append(route))
    page.goto(f"{url}/?q=cells")
    expect(page.locator(".ghost")).to_have_count(8)
    expect(page.locator(".note")).to_have_count(0)
    while not held:
        page.wait_for_timeout(20)
    first = len(held)
    page.goto(url)
    field = page.get_by_label("What should the figure show?")
    field.fill("gel")
    while len(held) == first:
        page.wait_for_timeout(20)
    with page.expect_response("**/v1/models"):
        held[-1].continue_()
    expect(page.locator("#holdings")).to_contain_text("60 figures")
    expect(field).to_have_value("gel")
    page.context.close()


def delayed(route: Any) -> None:
    """Answers the next page late."""
    if '"cursor"' in (route.request.post_data or ""):
        time.sleep(1)
    route.continue_()


def test_a_page_that_comes_late_is_no_part_of_a_newer_search(browser, url):
    page = opened(browser, f"{url}/?q=cells")
    page.route("**/v1/search", delayed)
    page.evaluate("more()")
    page.get_by_label("What should the figure show?").fill("gel")
    page.keyboard.press("Enter")
    page.wait_for_function("location.search === '?q=gel'")
    page.wait_for_timeout(2500)
    expect(page.locator("#results .card")).to_have_count(24)
    assert "nearest" in page.locator("#status").inner_text()
    page.context.close()


def test_pages_follow_as_one_scrolls_and_nothing_jumps(browser, url):
    page = opened(browser, f"{url}/?q=cells")
    field = page.get_by_label("What should the figure show?")
    field.fill("words that nobody has sent yet")
    page.evaluate("scrollTo(0, document.body.scrollHeight - 1150)")
    expect(page.locator("#results .card")).to_have_count(48)
    at = page.evaluate("scrollY")
    expect(field).to_be_focused()
    page.wait_for_timeout(300)
    assert page.evaluate("scrollY") == at
    page.get_by_role("button", name="More figures").click()
    expect(page.locator("#results .card")).to_have_count(60)
    page.context.close()


def test_a_screen_taller_than_the_first_page_gets_the_next_ones(browser, url):
    page = browser.new_context(viewport={"width": 2400, "height": 6000}).new_page()
    page.goto(f"{url}/?q=cells")
    expect(page.locator("#results .card")).to_have_count(60)
    page.context.close()


def test_a_long_caption_is_shown_whole_beside_others_too(browser, url):
    page = opened(browser, f"{url}/?q=no.+31&by=words", 320)
    page.locator(".whole").first.click()
    page.locator("#others .more").click()
    page.wait_for_function("(c => c.scrollHeight <= c.clientHeight + 1)(document.querySelector('#others .caption'))")
    page.context.close()
