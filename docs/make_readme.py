"""Writes the README's table of erasers, from the registry, between its two marks.

python docs/make_readme.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "src")]

from make_site import card_of, cell  # noqa: E402

from efface.deactivate.registry import methods  # noqa: E402

README = ROOT / "README.md"
MARKS = ("<!-- erasers: python docs/make_readme.py -->\n", "<!-- /erasers -->\n")
ON = {"llm": "language", "t2i": "images", "any": "both"}


def table() -> str:
    """A row an eraser: name with a link to its card, hosts, what it changes, what it needs, paper."""
    rows = [
        f"| [`{m.name}`]({card_of(m).resolve().relative_to(ROOT).as_posix()}) | {ON[m.domain]} | {', '.join(m.parts)} "
        f"| {', '.join(m.needs) or '–'} | {cell(m.paper)} |"
        for m in methods()
    ]
    return "\n".join(["| | works on | changes | needs | paper |", "|---|---|---|---|---|", *rows, ""])


def written(text: str) -> str:
    """The README with the table as it should be.

    Raises:
        SystemExit: A mark is missing.
    """
    head, first, rest = text.partition(MARKS[0])
    _, last, tail = rest.partition(MARKS[1])
    if not first or not last:
        raise SystemExit(f"{README.name}: the marks {MARKS} must stand in it")
    return head + first + table() + last + tail


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
