"""What a sampled text must pass before it is packed: cuts, and tests for chat, loops, repeats and leaks."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

LEAST_WORDS = 20
"""Shorter documents are dropped."""
LEAST_DISTINCT = 0.85
"""Documents of which a smaller share of the 4-grams is distinct are dropped: they loop."""
LEAST_LINES = 0.75
"""The same for lines, where there are at least four."""
LOOP_WORDS = 4
"""A word that stands so often in a row is a loop as well."""
SHINGLE = 5
"""Words of a shingle; a document that shares more than `OVERLAP` of its shingles with an earlier one is dropped."""
OVERLAP = 0.4

_OPENING = re.compile(r"^(here(’s|'s| is| are)|sure|certainly|of course|absolutely)\b[^\n]{0,160}:\s*\n+", re.IGNORECASE)
_META = re.compile(
    r"^(sure\b|certainly\b|of course[,!]|absolutely[,!]|i('|’)m sorry|i apologi[sz]e|as an ai|title:|#)"
    r"|\b(as an ai|an? ai (assistant|model)|language model|smollm|your request|your prompt|word count"
    r"|i('|’)ll (provide|write|try to explain)|i will (provide|write|copy)|(sentence|paragraph) (above|below)"
    r"|the (user|prompt) (asks|is asking|wants)"
    r"|i (can('|’)t|cannot|can not) (assist|help you with|provide|fulfil))\b"
    r"|https?:|www\.|\[[A-Za-z][^\]\n]*\]|<\|",
    re.IGNORECASE,
)
_ENDING = re.compile(r"[.!?…][\"'”’)*]*(?=\s|$)")
_MARKER = re.compile(r"(^|\n)[ \t]*(\W{0,3}\d{0,2}[.):]?\W{0,3}|[^\n]{0,40}:)[ \t]*$")
_ABBREVIATIONS = re.compile(r"mr|mrs|ms|dr|st|prof|jr|vs|etc|e\.g|i\.e|u\.s|inc|approx|p\.m|a\.m")


def words(text: str) -> list[str]:
    """Its words: runs of letters, digits and inner apostrophes, lower case."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.casefold())


def trim(text: str) -> str:
    """`text` without an assistant's opening line and without what follows the last finished sentence."""
    text = _OPENING.sub("", text.strip())
    ends = [m.end() for m in _ENDING.finditer(text) if not _false_end(text, m.start())]
    text = text[: ends[-1]] if ends else ""
    while text and (m := _MARKER.search(text)) and m.end() > m.start():
        text = text[: m.start()].rstrip()
    return text.strip()


def sentences(text: str) -> list[str]:
    """The finished sentences of a text, list marks and speakers' names left on them."""
    found: list[str] = []
    for line in text.splitlines():
        start = 0
        for m in _ENDING.finditer(line):
            if not _false_end(line, m.start()):
                found.append(line[start : m.end()].strip())
                start = m.end()
    return [s for s in found if s]


def _false_end(text: str, at: int) -> bool:
    """Whether the mark at `at` ends an abbreviation, an initial or a list number instead of a sentence."""
    if text[at] != ".":
        return False
    before = re.search(r"\S*$", text[:at])
    word = (before[0] if before else "").lstrip("(\"'“*").casefold()
    initial = len(word) == 1 and word.isalpha()
    at_line_start = text[: at - len(word)].rpartition("\n")[2].strip(' *"-(') == ""
    return bool(_ABBREVIATIONS.fullmatch(word)) or initial or (word.isdigit() and at_line_start)


def is_chat(text: str) -> bool:
    """Whether `text` speaks as an assistant, about a prompt, or holds placeholders, addresses or chat markers."""
    return _META.search(text) is not None


def flaw(text: str) -> str | None:
    """Why a trimmed document is dropped: «too short», «chat», «loop»; None where it is not."""
    tokens = words(text)
    if len(tokens) < LEAST_WORDS:
        return "too short"
    if is_chat(text):
        return "chat"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    run = max(len(list(g)) for _, g in groupby(tokens))
    repeated = len(lines) >= 4 and len(set(lines)) < LEAST_LINES * len(lines)
    return "loop" if repeated or run >= LOOP_WORDS or distinct_share([tokens]) < LEAST_DISTINCT else None


def distinct_share(documents: Iterable[Sequence[str]], n: int = 4) -> float:
    """Share of the `n`-grams of words, over all documents, that are distinct; 1 where there are none."""
    grams = Counter(tuple(d[i : i + n]) for d in documents for i in range(len(d) - n + 1))
    return len(grams) / grams.total() if grams else 1.0


class Repeats:
    """Near-duplicates by shared shingles with any one earlier text."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, ...], int] = {}
        self._n = 0

    def seen(self, text: str) -> bool:
        """Whether `text` is close to an earlier one; if not, it counts as earlier from now on."""
        tokens = words(text)
        n = min(SHINGLE, len(tokens))
        shingles = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
        hits = Counter(self._first[s] for s in shingles if s in self._first)
        if hits and hits.most_common(1)[0][1] > OVERLAP * len(shingles):
            return True
        for shingle in shingles:
            self._first.setdefault(shingle, self._n)
        self._n += 1
        return False
