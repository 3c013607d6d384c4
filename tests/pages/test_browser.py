"""The pages in a real browser: search, sort, filter, open, hover, toggle, type; hostile text; 100,000 rows; three widths, two themes.

Screenshots are kept where EFFACE_SHOTS names a folder.
"""

import base64
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import MISSING, Browser, Tab, find
from site_kit import D_SAE, EVIL, PIXEL, TEXTS, make_site

from efface.base.files import write_text
from efface.deactivate.inspect.page import render_page
from efface.deactivate.inspect.server import Pages, PageServer

pytestmark = pytest.mark.skipif(find() is None, reason=MISSING)
SHOTS = os.environ.get("EFFACE_SHOTS")
PLACES = ("#/", "#/sae/0/f/0", "#/sae/0/f/7", "#/concept/0", "#/concept/0/1", "#/edit/0", "#/edit/1", "#/prompt/0", "#/compare/0")
ROWS = "document.querySelectorAll('.vt-row').length"
COUNT = "parseInt(document.querySelector('.count').textContent.replace(/,/g, ''))"
FIRST = "document.querySelector('.vt-row [role=gridcell]').textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as b:
        yield b


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("site")
        site, reader = make_site(folder)
        write_text(folder / "page.html", render_page(site.whole(D_SAE)))
        yield site, reader, folder / "page.html"


@pytest.fixture
def tab(browser: Browser, made) -> Tab:
    return browser.open(made[2].as_uri())


def typed(tab: Tab, selector: str, text: str) -> None:
    tab.run(
        f"(() => {{ const e = document.querySelector({selector!r}); e.value = {text!r}; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    )


def picked(tab: Tab, words: str, value: str) -> None:
    """Chooses an option of the list with a label."""
    tab.run(
        f"(() => {{ const l = [...document.querySelectorAll('label')].find(l => l.textContent.startsWith({words!r})); const s = l.querySelector('select');"
        f" s.value = {value!r}; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
    )


def test_search_sort_and_filter(tab: Tab) -> None:
    tab.until(f"{COUNT} === {D_SAE}")
    told = tab.run("document.querySelector('.trust').textContent")
    assert told.startswith("149 of 150 features")
    assert "detection 0.800 (shuffled labels: 0.510), fuzzing 0.770 (shuffled labels: 0.520)" in told
    assert tab.run(FIRST) == "149"  # best detection first
    tab.run("document.querySelector('[data-sort=id]').click()")
    tab.until(f"{FIRST} === '149'")
    tab.run("document.querySelector('[data-sort=id]').click()")
    tab.until(f"{FIRST} === '0'")
    assert tab.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "ascending"
    typed(tab, "input[type=search]", "WORD 3")
    tab.until(f"{COUNT} === 27")  # word 3 of 16..149
    typed(tab, "input[type=search]", "no such thing")
    tab.until(f"{COUNT} === 0")
    typed(tab, "input[type=search]", "")
    typed(tab, "[data-bound=auroc-0]", "0.9")
    tab.until(f"{COUNT} === 30")  # .5 + i / 300
    picked(tab, "Labels", "at chance")
    tab.until(f"{COUNT} === 0")
    typed(tab, "[data-bound=auroc-0]", "")
    tab.until(f"{COUNT} === 1")
    assert tab.run(FIRST) == "9"
    picked(tab, "Labels", "")
    picked(tab, "in", "context")
    typed(tab, "input[type=search]", "wizard")
    tab.until(f"{COUNT} > 0 && {COUNT} < {D_SAE}")
    assert tab.complaints() == []


def test_a_feature_opens_by_mouse_and_by_keys_and_its_tokens_speak(tab: Tab) -> None:
    tab.until(f"{COUNT} === {D_SAE}")
    tab.run("document.querySelector('.vt').focus()")
    tab.key("ArrowDown", 3)
    assert tab.run("document.querySelector('.vt-row.active').dataset.index") == "3"
    tab.key("Enter")
    tab.until("location.hash === '#/sae/0/f/146' && document.querySelector('.contexts, section')")
    tab.go("#/sae/0/f/0")
    tab.until("document.querySelector('.ctx .tok')")
    assert tab.run("document.getElementById('tip').hidden") is True
    tab.hover(".ctx .tok.peak")
    tab.until("!document.getElementById('tip').hidden && /: [0-9.]+/.test(document.getElementById('tip').textContent)")
    assert "rgba" in tab.run("getComputedStyle(document.querySelector('.ctx .tok.peak')).backgroundColor")
    tab.run("document.querySelector('.ctx').focus()")
    tab.key("ArrowRight")
    assert tab.run("document.getElementById('tip').hidden") is False
    tab.run("document.querySelector('.near a').click()")
    tab.until("location.hash !== '#/sae/0/f/0'")
    assert tab.complaints() == []


def test_hostile_text_is_shown_and_does_nothing(tab: Tab) -> None:
    for place in PLACES:
        tab.go(place)
        tab.until("!document.querySelector('[aria-busy]')")
    tab.go("#/sae/0/f/7")
    tab.until(f"document.querySelector('h1').textContent === {EVIL!r}")
    assert tab.run("document.title").startswith("Tiny <img")
    assert tab.run("document.querySelectorAll('main img:not([src^=\"data:image/png\"]), main script').length") == 0
    assert tab.complaints() == []
    assert [u for u in tab.asked() if not u.startswith(("file:", "data:"))] == []
    # the control: the same text as markup does run where no policy holds it back
    loose = "data:text/html," + "<script>document.documentElement.dataset.ready=1;document.title='owned'</script>"
    assert tab.browser.open(loose).run("document.title") == "owned"


def test_before_and_after_are_toggled(tab: Tab) -> None:
    tab.go("#/edit/0")
    tab.until("document.querySelector('figure .pair img')")
    seen = "[...document.querySelectorAll('figure .pair')[0].children].map(c => c.hidden)"
    assert tab.run(seen) == [False, False]
    tab.run("document.querySelector('figure [data-value=side1]').click()")
    assert tab.run(seen) == [True, False]
    tab.run("document.querySelector('figure [data-value=side0]').click()")
    assert tab.run(seen) == [False, True]
    tab.until("document.querySelectorAll('.chart .bar').length === 2")  # layers 0 and 2; charts are drawn once their width is known
    assert "efface undo" in tab.run("document.body.innerText")
    assert "asr" not in tab.run("[...document.querySelectorAll('table.figures')][0].textContent")


def test_comparisons_sort_and_plot(tab: Tab) -> None:
    tab.go("#/compare/0")
    tab.until("document.querySelector('.chart svg .point')")
    names = "[...document.querySelectorAll('table.rows tbody th')].map(t => t.textContent)"
    tab.run("document.querySelector('[data-metric=margin]').click()")
    first = tab.run(names)
    tab.run("document.querySelector('[data-metric=margin]').click()")
    assert tab.run(names) != first
    assert first[0].startswith("pisces")  # lower is better: the lowest first
    points = tab.run("document.querySelectorAll('.chart svg .point').length")
    assert points == 3  # two edited, one base; the control has no second figure
    picked(tab, "Retention", "margin")
    tab.until("document.querySelectorAll('.chart svg .point').length === 4")
    tab.size(360)
    picked(tab, "Erasure", "margin")
    tab.until("document.querySelector('.chart svg').clientWidth < 360 && document.querySelectorAll('.chart svg .point').length === 4")
    boxes = tab.run(
        "[...document.querySelectorAll('.chart svg text.edited, .chart svg text.base, .chart svg text.control')].map(t => { const b = t.getBBox();"
        " return [b.x, b.y, b.x + b.width, b.y + b.height, t.textContent]; })"
    )
    assert {b[4] for b in boxes} >= {"pisces", "rmu"}
    for i, a in enumerate(boxes):
        assert not [b for b in boxes[:i] if a[0] < b[2] and b[0] < a[2] and a[1] + 2 < b[3] and b[1] + 2 < a[3]], boxes


def test_prompts_of_a_file(tab: Tab) -> None:
    tab.go("#/prompt/0")
    tab.until("document.querySelector('.strip .tok')")
    assert tab.run("document.querySelector('.strip').textContent").strip() == TEXTS[0]
    assert "✓ fires" in tab.run("document.querySelector('.gate').textContent")
    before = tab.run("document.querySelector('.picked').textContent")
    tab.run("document.querySelectorAll('.strip .tok')[1].click()")
    assert tab.run("document.querySelector('.picked').textContent") != before
    tab.go("#/prompt/1")
    tab.until("document.querySelector('.gate').textContent.includes('stays shut')")


def test_a_hundred_thousand_rows(browser: Browser, made, tmp_path: Path) -> None:
    data = made[0].head()
    rows = [[i, f"label {i}", "labelled", 0.001, 1.5, 1.0, i, i, i / 1e5, 0.4, 0.6, 0.5, 0.5] for i in range(100_000)]
    data["saes"][0] |= {"rows": rows, "details": {}, "map": None}
    write_text(tmp_path / "many.html", render_page({**data, "words": []}))
    tab = browser.open((tmp_path / "many.html").as_uri())
    tab.until(f"{COUNT} === 100000")
    assert tab.run(ROWS) < 60
    tab.run("document.querySelector('.vt').focus()")
    tab.key("End")
    tab.until("[...document.querySelectorAll('.vt-row')].pop().dataset.index === '99999'")
    assert tab.run("[...document.querySelectorAll('.vt-row')].pop().querySelector('[role=gridcell]').textContent") == "0"
    assert tab.run(ROWS) < 60
    start = time.monotonic()
    tab.run("document.querySelector('[data-sort=id]').click()")
    tab.until(f"{FIRST} === '99999'")
    assert time.monotonic() - start < 2


def test_every_page_fits_three_widths_in_both_themes(browser: Browser, made) -> None:
    tab = browser.open(made[2].as_uri())
    for place in PLACES:
        tab.go(place)
        tab.until("!document.querySelector('[aria-busy]')")
        for width in (360, 800, 1400):
            tab.size(width)
            assert tab.run("document.documentElement.scrollWidth") <= width, (place, width)
            for dark in (False, True):
                tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
                ground = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
                assert (max(ground) < 60) if dark else (min(ground) > 200)
                if SHOTS:
                    name = f"{place.strip('#/').replace('/', '-') or 'overview'}-{width}-{'dark' if dark else 'light'}.png"
                    tab.shot(Path(SHOTS) / name)
    tab.size(1400)
    assert tab.complaints() == []


def test_paper_gets_rows_and_what_was_folded_and_no_controls(tab: Tab) -> None:
    tab.until(f"{COUNT} === {D_SAE}")
    seen = "[...document.querySelectorAll('details')].filter(d => d.open).length"
    before, shown = tab.run(seen), tab.run(ROWS)
    tab.call("Emulation.setEmulatedMedia", media="print")
    tab.run("dispatchEvent(new Event('beforeprint'))")
    tab.until(f"{ROWS} === 100 && document.querySelector('.count').textContent.includes('the first 100 are printed')")
    assert shown < 100
    assert tab.run(seen) > before
    assert tab.run("[...document.querySelectorAll('.controls, #top, .segmented')].every(e => !e.checkVisibility())")
    assert tab.run("getComputedStyle(document.querySelector('.vt-row')).position") == "static"  # such rows go to the next sheet whole
    tab.run("dispatchEvent(new Event('afterprint'))")
    tab.call("Emulation.setEmulatedMedia", media="screen")
    tab.until(f"{ROWS} === {shown}")
    assert tab.run(seen) == before


def test_the_theme_of_choice_wins_over_the_systems(browser: Browser, made) -> None:
    tab = browser.open(made[2].as_uri(), dark=True)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = tab.run(ground)
    picked(tab, "Theme", "light")
    assert tab.run(ground) != dark
    picked(tab, "Theme", "auto")
    assert tab.run(ground) == dark


def test_served_pages_read_rows_features_and_prompts_when_they_are_looked_at(browser: Browser, made) -> None:
    site, reader, _ = made
    address = f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    drawn = [{"prompt": EVIL, "seed": 3, "with": address, "without": address}]
    shown = type(site)(site.title, site.saes, site.concepts, site.edits, site.results, pictures=lambda sae, feature: drawn)
    server = PageServer(Pages(shown, lambda: reader))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        tab = browser.open(server.address)
        tab.until(f"{COUNT} === {D_SAE}")
        typed(tab, "input[type=search]", "word 3")
        tab.until(f"{COUNT} === 27")
        tab.go("#/sae/0/f/7")
        tab.until(f"document.querySelector('h1').textContent === {EVIL!r}")
        tab.go("#/sae/0/f/0")
        tab.until("document.querySelector('.ctx')")
        tab.run("[...document.querySelectorAll('button')].find(b => b.textContent.startsWith('Draw the prompts')).click()")
        tab.until("document.querySelectorAll('.pictures img').length === 2")
        assert tab.run("document.querySelector('.pictures figcaption').textContent") == f"{EVIL} (seed 3)"
        assert "[object" not in tab.run("document.body.innerText")
        tab.go("#/prompt")
        typed(tab, "textarea", TEXTS[0])
        tab.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Read it').click()")
        tab.until("document.querySelector('.gate') && document.querySelector('.gate').textContent.includes('fires')")
        typed(tab, "textarea", " ")
        tab.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Read it').click()")
        tab.until("document.querySelector('.error') && document.querySelector('.error').textContent.includes('empty')")
        assert {u.split("/")[2] for u in tab.asked() if u.startswith("http")} == {server.address.split("/")[2]}
    finally:
        server.shutdown()
        server.server_close()
