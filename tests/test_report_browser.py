"""The report in a real browser: nothing complains, figures stand, marks speak, and it fits a phone and a desktop in both themes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from autocompress.report import write_report
from autocompress.runs import RunPaths, to_json, write_text
from benchmarks.report import made_up_study, told

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[browser]'")

NAMES = ("chromium", "chromium-browser", "google-chrome")
HINT = "no browser is installed: `apt-get install chromium` or `playwright install --with-deps chromium`"
NASTY = "<script>document.title='run'</script>\"&"
FIGURES = ["attribution", "classes", "history", "hypervolume", "layers", "pareto", "sensitivity"]
Page = playwright.Page


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    installed = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as driver:
        if installed is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip(HINT)
        started = driver.chromium.launch(executable_path=installed, args=["--no-sandbox"])  # in a container chromium runs as root
        yield started
        started.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The report of a study of 60 trials with all that a report can show, and a layer's name that would like to be markup."""
    paths = made_up_study(tmp_path_factory.mktemp("runs"), trials=60, layers=8)
    number = told(paths)["best"]["trial"]
    found = paths.inspections()[number]
    nasty = found.classes[0].model_copy(update={"name": NASTY})
    write_text(paths.trial(number).inspection, to_json(found.model_copy(update={"classes": (nasty, *found.classes[1:])})))
    write_report(paths, told(paths))
    return paths


@pytest.fixture(params=[(400, "light"), (400, "dark"), (1200, "light"), (1200, "dark")], ids=lambda one: f"{one[0]}px-{one[1]}")
def page(request: pytest.FixtureRequest, browser: "playwright.Browser", paths: RunPaths) -> Iterator[Page]:
    """The report, open; a word on the console, an error or a request to anywhere is a failure."""
    width, theme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme, has_touch=width == 400)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(paths.report.as_uri())
    yield page
    page.close()
    assert said == []


def test_every_figure_is_seen_and_nothing_scrolls_sideways(page: Page) -> None:
    assert sorted(page.eval_on_selector_all("figure", "all => all.map(one => one.id)")) == [f"figure-{name}" for name in FIGURES]
    for name in FIGURES:
        area = page.locator(f"#figure-{name} svg").bounding_box()
        assert area is not None
        assert area["width"] > 300
        assert area["height"] > 150
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_before_and_after_stand_side_by_side_without_scrolling(page: Page) -> None:
    fit = "all => all.length > 1 && all.every(one => one.scrollWidth <= one.parentElement.clientWidth)"
    assert page.eval_on_selector_all("table.fits", fit)


def test_a_mark_tells_its_recipe_to_a_pointer_and_is_silent_when_it_leaves(page: Page) -> None:
    assert page.locator("#tip").is_hidden()
    page.locator("#figure-pareto [data-tip]").last.hover()
    assert page.locator("#tip").inner_text().startswith("best: trial ")
    assert "% of channels" in page.locator("#tip").inner_text()
    assert inside(page)
    page.mouse.move(1, 1)
    assert page.locator("#tip").is_hidden()


def test_a_mark_tells_its_recipe_to_the_arrow_keys(page: Page) -> None:
    page.locator("#figure-pareto svg").focus()
    page.keyboard.press("ArrowLeft")
    last = page.locator("#tip").inner_text()
    page.keyboard.press("ArrowRight")
    first = page.locator("#tip").inner_text()
    assert first
    assert first != last
    assert page.evaluate("document.querySelectorAll('.on').length") == 1
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_a_finger_shows_a_tip_and_takes_it_away_elsewhere(browser: "playwright.Browser", paths: RunPaths) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 900}, has_touch=True)
    page.goto(paths.report.as_uri())
    page.locator("#figure-pareto [data-tip]").last.tap()
    assert page.locator("#tip").inner_text().startswith("best: trial ")
    page.locator("h1").tap()
    assert page.locator("#tip").is_hidden()
    page.close()


def test_names_are_shown_as_they_are_and_never_run(page: Page) -> None:
    page.locator("#figure-classes [data-tip]").first.hover(force=True)  # the mark of another number may lie on it
    assert page.locator("#tip").inner_text().startswith(NASTY)
    assert page.title() == "autocompress: made-up"


def test_no_colour_of_a_figure_is_the_same_on_a_light_and_a_dark_ground(browser: "playwright.Browser", paths: RunPaths) -> None:
    """Every colour is a variable of the theme, so that no figure is dark on dark."""
    colours = "all => all.map(one => getComputedStyle(one).fill + getComputedStyle(one).stroke)"
    seen = []
    for theme in ("light", "dark"):
        page = browser.new_page(color_scheme=theme)
        page.goto(paths.report.as_uri())
        seen.append(page.eval_on_selector_all("figure text, figure use, figure path:not(defs path):not(clipPath *)", colours))
        page.close()
    painted = [pair for pair in zip(*seen, strict=True) if pair[0] != "nonenone"]
    assert len(painted) > 500
    assert [light for light, dark in painted if light == dark] == []


def inside(page: Page) -> bool:
    """Does the tip lie within the window?"""
    area = page.locator("#tip").bounding_box()
    size = page.viewport_size
    assert area is not None
    assert size is not None
    across, down = area["x"] + area["width"], area["y"] + area["height"]
    return bool(area["x"] >= 0 and across <= size["width"] and area["y"] >= 0 and down <= size["height"])
