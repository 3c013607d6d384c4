"""What pages are made of: plain values for JSON, figures no longer than a reader needs."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 4
"""Significant digits of a figure on a page."""
_SPACE = re.compile(r"(?<!^[A-Za-z])(?<!_[A-Za-z])_")
"""An underscore between words, not one behind a single letter: d_sae, b_dec."""


def short(value: float | None, digits: int = DIGITS) -> float | int | None:
    """The figure with so many significant digits; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    number = float(f"{value:.{digits}g}")
    return int(number) if number == int(number) and abs(number) < 1e15 else number


def shortened(value: Any, digits: int = DIGITS) -> Any:
    """Every float in nested plain values shortened; tuples become lists."""
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return short(value, digits)
    if isinstance(value, Mapping):
        return {str(k): shortened(v, digits) for k, v in value.items()}
    return [shortened(v, digits) for v in value]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested mappings as [dotted name, printed value], in their order; empty values are left out."""
    rows: list[list[str]] = []
    for name, value in values.items():
        words = f"{prefix}{_SPACE.sub(' ', str(name))}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{words}.")
        elif value is not None and value != "" and value != [] and value != ():
            rows.append([words, _printed(value)])
    return rows


def _printed(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(map(_printed, value))
    return json.dumps(value, ensure_ascii=False)


class Words:
    """Strings by number, so that each stands once in a file."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, word: str) -> int:
        """The number of a string."""
        return self.known.setdefault(word, len(self.known))

    def listed(self) -> list[str]:
        """All strings in the order of their numbers."""
        return list(self.known)
