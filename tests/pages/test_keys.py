"""The pages without a mouse: Tab reaches everything that can be used and shows where it is; tables, contexts and the map work by keys."""

from collections.abc import Iterator

import pytest
from chromium import MISSING, Browser, Tab, find
from site_kit import D_SAE, make_site

from efface.base.files import write_text
from efface.deactivate.inspect.page import render_page

pytestmark = pytest.mark.skipif(find() is None, reason=MISSING)
USABLE = "a[href], button, input, select, textarea, summary, canvas, .vt, .contexts .ctx, pre, .strip .tok"
"""What a mouse can use; links in rows of a table are left out, since Enter on the row opens them."""
PLACES = {
    "#/": (
        "nav a",
        ".theme select",
        "input[type=search]",
        ".controls select",
        "summary",
        "[data-sort=density]",
        ".vt",
        "canvas",
        ".legend button",
    ),
    "#/sae/0/f/0": (".crumb a", "summary", ".ctx", ".near a"),
    "#/concept/0": (".vt", "[data-sort]", "summary", "input[type=search]"),
    "#/concept/0/1": (".vt", "select", "td a"),
    "#/edit/0": ("figure .segmented button", ".vt", "pre", "summary"),
    "#/prompt/0": (".strip .tok", "select"),
    "#/compare/0": ("[data-metric=margin]", ".line select", "summary"),
}
"""Page -> some of what must be reached there."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, str]]:
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch, Browser() as browser:
        patch.setenv("EFFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        write_text(folder / "page.html", render_page(make_site(folder)[0].whole(D_SAE)))
        yield browser, (folder / "page.html").as_uri()


def walked(tab: Tab) -> None:
    """Presses Tab once more than there are places to stop; what gets the focus is marked, also where nothing shows that it has it."""
    tab.run(
        "document.activeElement.blur(); document.addEventListener('focusin', (e) => { e.target.dataset.reached = '1';"
        " const s = getComputedStyle(e.target); if (s.outlineStyle === 'none' || parseFloat(s.outlineWidth) < 1) e.target.dataset.unseen = '1'; })"
    )
    tab.key("Tab", int(tab.run(f"document.querySelectorAll({USABLE!r}).length")) + 2)


@pytest.mark.parametrize("place", PLACES)
def test_tab_reaches_everything_and_shows_where_it_is(page: tuple[Browser, str], place: str) -> None:
    browser, address = page
    tab = browser.open(address)
    tab.go(place)
    tab.until("!document.querySelector('[aria-busy]')")
    walked(tab)
    for selector in PLACES[place]:
        found = f"[...document.querySelectorAll({selector!r})].filter(e => e.checkVisibility())"
        assert tab.run(f"{found}.length") > 0, selector
        assert tab.run(f"{found}.filter(e => !e.dataset.reached).map(e => e.outerHTML.slice(0, 120))") == [], selector
    left = f"[...document.querySelectorAll({USABLE!r})].filter(e => e.checkVisibility() && !e.closest('.vt-row') && !e.dataset.reached)"
    assert tab.run(f"{left}.map(e => e.outerHTML.slice(0, 120))") == []
    assert tab.run("[...document.querySelectorAll('[data-unseen]')].map(e => e.outerHTML.slice(0, 120))") == []
    tab.close()


def pressed_until(tab: Tab, selector: str) -> None:
    for _ in range(60):
        if tab.run(f"document.activeElement.matches({selector!r})"):
            return
        tab.key("Tab")
    raise AssertionError(f"Tab never comes to {selector}")


def test_a_feature_is_found_and_read_without_a_mouse(page: tuple[Browser, str]) -> None:
    browser, address = page
    tab = browser.open(address)
    tab.until("document.querySelector('.vt-row')")
    pressed_until(tab, ".vt")
    tab.key("ArrowDown", 2)
    assert tab.run("document.getElementById(document.querySelector('.vt').getAttribute('aria-activedescendant')).dataset.index") == "2"
    tab.key("Enter")
    tab.until("location.hash === '#/sae/0/f/147' && !document.querySelector('[aria-busy]')")
    pressed_until(tab, ".ctx")
    assert tab.run("document.getElementById('tip').hidden") is True
    tab.key("ArrowRight")
    assert tab.run("document.getElementById('tip').hidden") is False
    tab.key("Escape")
    assert tab.run("document.getElementById('tip').hidden") is True
    tab.close()


def test_a_token_keeps_the_focus_when_it_is_chosen(page: tuple[Browser, str]) -> None:
    browser, address = page
    tab = browser.open(address)
    tab.go("#/prompt/0")
    pressed_until(tab, ".strip .tok:nth-child(2)")
    tab.key("Enter")
    tab.until("document.querySelector('.strip .tok:nth-child(2)').getAttribute('aria-pressed') === 'true'")
    assert tab.run("document.activeElement.matches('.strip .tok:nth-child(2)')")
    tab.close()
