import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from result_cards import result

from efface.base.errors import InputError, MatchedNothing, NumericsError
from efface.deactivate.evaluation import plots, report
from efface.deactivate.evaluation.results import Metric
from efface.deactivate.evaluation.value import Value

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def sample(text: str) -> report.ReportData:
    bar = plots.bars([plots.Bar(text, Value(0.5, 0.4, 0.6)), plots.Bar("base", Value(1.0), "base")], text, text)
    context = report.Context((text, " lava", " ", "\n"), (0.0, 4.0, 0.1, -1.0))
    feature = report.FeatureEvidence(text, 7, text, {text: 0.98}, (text, " lava"), (text,), (context,))
    one = result()
    row = dataclasses.replace(one.rows[0], name=text, note=text)
    hostile = dataclasses.replace(
        one, rows=(row, *one.rows[1:]), metrics={"margin": Metric(text, "lower", unit=text, about=text)},
        commands=(text,),
        card=dataclasses.replace(one.card, concept=text, extra={text: text}),
    )  # fmt: skip
    image = report.ImageSample(text, bar, bar, text)
    return report.ReportData(
        text, text, hostile, {text: True, text + "2": False}, (bar,), (feature,),
        (report.TextSample(text, text, text, text),), (image,), (text,), text,
    )  # fmt: skip


def parsed(page: str) -> Seen:
    seen = Seen()
    seen.feed(page)
    return seen


def test_hostile_text_is_text_everywhere(tmp_path: Path) -> None:
    page = report.render_report(tmp_path / "r.html", sample(EVIL)).read_text()
    seen = parsed(page)
    names = {t for t, _ in seen.tags}
    assert "script" not in names
    assert not [a for _, attrs in seen.tags for a in attrs if a.startswith("on")]
    assert all((attrs["src"] or "").startswith("data:image/") for t, attrs in seen.tags if t == "img")
    assert seen.text.count(EVIL) > 15  # shown, letter for letter


def test_an_unescaped_page_would_fail_the_test_above(monkeypatch: pytest.MonkeyPatch) -> None:
    import jinja2

    original = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **k: original(**{**k, "autoescape": False}))
    assert "script" in {t for t, _ in parsed(report.render(sample(EVIL))).tags}


def test_the_page_asks_for_nothing_from_outside() -> None:
    page = report.render(sample("Volcanoes"))
    assert not re.search(r"(https?:)?//", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    assert not {t for t, _ in parsed(page).tags} & {"script", "link", "iframe", "object", "base", "form"}
    policy = next(a["content"] for t, a in parsed(page).tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    import hashlib

    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in policy
    assert "style=" not in page  # the policy would refuse inline styles
    assert all(a.get("alt") for t, a in parsed(page).tags if t == "img")


def test_parts_left_empty_leave_no_heading(tmp_path: Path) -> None:
    page = report.render_report(tmp_path, report.ReportData("T", "S", result())).read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Before, after, and controls", "How it was measured", "Commands"]
    assert (tmp_path / "report.html").is_file()
    full = re.findall(r"<h2>(.*?)</h2>", report.render(sample("x")))
    assert len(full) == 8


def test_table_shows_base_first_figures_intervals_and_gaps() -> None:
    page = report.render(report.ReportData("T", "S", result()))
    text = re.sub(r"\s+", " ", parsed(page).text)
    assert text.index("1.000[0.950, 1.050]") < text.index("0.200[0.150, 0.250]")
    assert 'title="n = 8 concepts, t"' in page
    assert "random features control" in text
    assert "–" in text
    assert result().card.digest[:12] in text


def test_what_two_figures_have_in_common_is_said_once() -> None:
    one = result()
    first, own = next(iter(one.metrics.items()))
    metrics = {
        first: dataclasses.replace(own, label="first", about="what both say"),
        "again": dataclasses.replace(own, label="again", about="what both say"),
    }
    rows = tuple(dataclasses.replace(r, metrics={**r.metrics, "again": r.metrics[first]}) for r in one.rows if first in r.metrics)
    text = re.sub(
        r"\s+", " ", parsed(report.render(report.ReportData("T", "S", dataclasses.replace(one, rows=rows, metrics=metrics)))).text
    )
    assert text.count("what both say") == 1
    assert "first; again: what both say" in text


def test_figures_of_features_are_explained_where_they_are_shown() -> None:
    def said(**more: object) -> str:
        feature = report.FeatureEvidence("layers.1.mlp_out", 3, **more)  # type: ignore[arg-type]
        return parsed(report.render(report.ReportData("T", "S", result(), features=(feature,)))).text

    assert "AUROC: how well" in said(scores={"AUROC (train)": 0.7})
    assert "AUROC: how well" not in said(scores={"rho": 2.0})
    assert "Contexts:" not in said(scores={"rho": 2.0})


def test_contexts_shade_by_activation() -> None:
    context = report.Context(("a", "b", "c", "d"), (0.0, 0.01, 5.0, 10.0))
    assert [s for _, s, _ in context.shaded()] == [0, 1, 4, 9]
    assert [s for _, s, _ in dataclasses.replace(context, scale=100.0).shaded()] == [0, 1, 1, 1]
    assert [s for _, s, _ in report.Context(("a",), (0.0,)).shaded()] == [0]
    with pytest.raises(InputError, match="tokens"):
        report.Context(("a",), (1.0, 2.0))
    with pytest.raises(NumericsError):
        report.Context(("a",), (float("nan"),))


def test_plots_are_whole_deterministic_and_say_their_figures() -> None:
    value = [Value(0.5, 0.4, 0.6), Value(0.2, 0.1, 0.3)]
    both = [plots.Bar("a<b", value[0]), plots.Bar("c", value[1], "control")]
    series = plots.Series("full $fine$-tuning", (0.0, 100.0), tuple(value))
    for make in (
        lambda kind: plots.bars(both, "margin", "c", 0.25, kind),
        lambda kind: plots.before_after(["a<b"], value[:1], value[1:], "margin", "c", kind),
        lambda kind: plots.curve([series], "steps", "margin", "c", 1.0, kind),
    ):
        svg, again, png = make("svg"), make("svg"), make("png")
        data = base64.b64decode(svg.uri.partition(",")[2]).decode()
        assert svg.uri == again.uri
        assert "<svg" in data
        assert "DOCTYPE" not in data
        assert "<metadata>" not in data
        assert "<script" not in data
        assert base64.b64decode(png.uri.partition(",")[2]).startswith(b"\x89PNG")
        assert "0.500 [0.400, 0.600]" in svg.alt
        assert "0.200" in svg.alt


def test_plots_refuse_nothing_and_outside_addresses() -> None:
    with pytest.raises(MatchedNothing):
        plots.bars([], "x", "c")
    with pytest.raises(InputError, match="one each"):
        plots.before_after(["a"], [], [], "x", "c")
    with pytest.raises(InputError, match="places"):
        plots.Series("s", (1.0,), ())
    with pytest.raises(NumericsError):
        plots.curve([plots.Series("s", (float("nan"),), (Value(1.0),))], "x", "y", "c")
    with pytest.raises(InputError, match="data URI"):
        plots.Plot("https://example.org/x.png", "alt", "c")
