"""One self-contained `report.html` that a person can open: no script, no outside address, all text escaped.

Fill a `ReportData` (every part but the first three may stay empty; an empty part is left out of the page) and call
`render_report`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import InputError, NumericsError
from ...base.files import write_text
from .plots import Plot
from .results import Metric, Result, Row

if TYPE_CHECKING:
    from jinja2 import Template

_RELATIVE = re.compile(r"(?:\.\./|[\w-][\w.-]*/)*[\w-][\w.-]*\.html?")
PAGES = "pages.html"
"""Pages to look further, beside a report."""
SHADES = 9
"""Steps of token highlighting, 0 (none) to 9 (strongest): classes, so that the page needs no inline style."""


@dataclass(frozen=True)
class Context:
    """A stretch of text in which a feature is active."""

    tokens: tuple[str, ...]
    """The tokens' text, spaces and line breaks included."""
    activations: tuple[float, ...]
    """One activation a token; shown as shades relative to `scale`."""
    scale: float | None = None
    """Activation of the darkest shade; none: the largest of this context."""

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.activations):
            raise InputError(f"context: {len(self.tokens)} tokens and {len(self.activations)} activations; one each, at least one")
        if any(a != a or abs(a) == float("inf") for a in self.activations):
            raise NumericsError("context: an activation is NaN or infinite")

    def shaded(self) -> list[tuple[str, int, float]]:
        """(token, shade 0…9, activation); a token that is active at all has at least shade 1."""
        top = self.scale if self.scale is not None else max(self.activations)
        shades = [0 if a <= 0 or top <= 0 else min(SHADES, max(1, round(SHADES * a / top))) for a in self.activations]
        return list(zip(self.tokens, shades, self.activations, strict=True))


@dataclass(frozen=True)
class FeatureEvidence:
    """Why a feature is taken to carry the concept."""

    hook_point: str
    """Where its SAE reads: `layers.10.mlp_out`."""
    index: int
    """Its number in the SAE."""
    label: str = ""
    """What it seems to stand for."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Heading -> figure: «AUROC (test)», «density», «weight in the edit», …"""
    promoted: tuple[str, ...] = ()
    """Tokens it pushes up most, strongest first."""
    suppressed: tuple[str, ...] = ()
    """Tokens it pushes down most."""
    contexts: tuple[Context, ...] = ()
    """Where it is most active."""


@dataclass(frozen=True)
class TextSample:
    """One prompt answered by the base and by the edited host."""

    prompt: str
    before: str
    after: str
    about: str = ""
    """What the prompt probes: «target», «neighbour», «neutral»."""


@dataclass(frozen=True)
class ImageSample:
    """One prompt drawn by the base and by the edited host, same seed."""

    prompt: str
    before: Plot
    after: Plot
    about: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows, in the order of the page."""

    title: str
    """Heading and page title: «Harry Potter taken out of SmolLM2»."""
    summary: str
    """One or two sentences a hurried reader needs: what fell, what stayed, against which control."""
    result: Result
    """Table of before, after and controls; its card is the section «How it was measured», its commands «Commands»."""
    verdicts: Mapping[str, bool] = field(default_factory=dict)
    """Claim in words -> whether it held: shown under the summary with a tick or a cross and the word."""
    plots: tuple[Plot, ...] = ()
    """Figures (`plots.bars`, `plots.before_after`, `plots.curve`)."""
    features: tuple[FeatureEvidence, ...] = ()
    """Features that the edit used."""
    samples: tuple[TextSample, ...] = ()
    """Text before | after."""
    images: tuple[ImageSample, ...] = ()
    """Images before | after."""
    notes: tuple[str, ...] = ()
    """Known failures, what was dropped and why: one sentence each."""
    undo: str = ""
    """Command that takes the edit back."""
    also: "tuple[ReportData, ...]" = ()
    """Further evaluations on the same page, each under its own heading."""
    pages: str = ""
    """Where pages to look further lie, relative to the report (`pages.html`): linked under the summary."""

    def __post_init__(self) -> None:
        if self.pages and not _RELATIVE.fullmatch(self.pages):
            raise InputError(f"pages: {self.pages!r} is no file beside the report or below its folder; write it as pages.html")


def render_report(path: Path, data: ReportData) -> Path:
    """Writes the page, whole or not at all; `path` is a file or a folder for `report.html`. Returns the file's path."""
    target = path if path.suffix in (".html", ".htm") else path / "report.html"
    write_text(target, render(data))
    return target


def render(data: ReportData) -> str:
    """The page as text."""
    template, style = _template()
    policy = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    parts = [_part(d) for d in _all(data)]
    return template.render(title=data.title, style=style, style_hash=policy, parts=parts)


def _all(data: ReportData) -> "list[ReportData]":
    """The report and those on its page, in order."""
    return [data, *(inner for other in data.also for inner in _all(other))]


def _part(data: ReportData) -> dict[str, Any]:
    """What the template shows of one evaluation."""
    rows = _ordered(data.result)
    return {
        "data": data,
        "rows": rows,
        "table": [(metric, [_cell(row, name, metric) for row in rows]) for name, metric in data.result.columns().items()],
        "card": _flat(data.result.card.to_json()),
        "protocol": data.result.card.digest,
    }


def _template() -> "tuple[Template, str]":
    """The template with escaping on for everything, and the style sheet, whose hash is in the page's policy."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = package_files(__package__ or __name__) / "templates"
    style = (folder / "report.css").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    return template, Markup(style)


def _ordered(result: Result) -> list[Row]:
    return [row for kind in ("base", "edited", "control") for row in result.rows if row.kind == kind]


def _cell(row: Row, name: str, metric: Metric) -> tuple[Row, str, str, str]:
    """(row, figure, interval, count and method) of one metric; an en dash where the row has no figure."""
    value = row.metrics.get(name)
    if value is None:
        return row, "–", "", "not measured"
    figure, _, interval = metric.text(value).partition(" ")
    count = f"n = {value.n}{' ' + value.unit if value.unit else ''}{', ' + value.method if value.method else ''}"
    return row, figure, interval if row.kind != "base" or value.low != value.high else "", count


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted names with printed values, empty ones left out."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append(
                (
                    f"{prefix}{name}".replace("_", " "),
                    value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
                )
            )
    return rows
