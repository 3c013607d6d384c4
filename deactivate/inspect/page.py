"""The page itself: one HTML file with its script, its style and its data, which asks for nothing from outside."""

import base64
import hashlib
import json
import re
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import InputError
from ...base.files import write_text

if TYPE_CHECKING:
    from .site import Site

SCRIPTS = (
    *("core.js", "charts.js", "source.js", "table.js", "map.js", "overview.js", "feature.js"),
    *("gate.js", "concept.js", "edit.js", "prompt.js", "compare.js", "main.js"),
)
"""In this order; they share one scope."""
STYLE = "app.css"
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render_page(data: dict[str, Any]) -> str:
    """The page of a site's values (`Site.whole`, or `Site.head` under the server).

    Data stand in a block that no browser runs, every character that could end it escaped; the script puts them into the page as text. The
    page's policy names its one script and its one style by their sha256, and allows pictures that the file holds; with `live`, answers of the server
    that it came from.
    """
    script, style = script_text(), _text(STYLE)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",
        "connect-src": "'self'" if data.get("live") else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parts = {
        "policy": "; ".join(f"{k} {v}" for k, v in policy.items()),
        "title": _escaped(str(data["title"])),
        "style": style,
        "data": json_text(data),
        "script": script,
    }
    pieces = re.split(r"%%(\w+)%%", _text("page.html"))
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def write_page(path: Path, site: "Site", *, features: int = 500, pictured: int = 0) -> Path:
    """Writes the site as one file, whole or not at all.

    Raises:
        InputError: `path` is not named `.html`.
    """
    if path.suffix not in (".html", ".htm"):
        raise InputError(f"--out {path}: a page is written; name it FILE.html")
    write_text(path, render_page(site.whole(features, pictured)))
    return path


def script_text() -> str:
    """All scripts as one, in a scope of its own."""
    return '(() => {\n"use strict";\n' + "\n".join(_text(name) for name in SCRIPTS) + "\n})();\n"


def json_text(value: Any) -> str:
    """JSON without any character that HTML or an old parser of scripts could take for something else; NaN is refused."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(str.maketrans(_UNSAFE))


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return (package_files(__package__ or __name__) / "static" / name).read_text(encoding="utf-8")
