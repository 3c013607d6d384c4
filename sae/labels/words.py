"""Words of a stretch of tokens, and in which stretches of the background each word stands."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from ..evidence.background import Silence
from ..evidence.passages import PARTS
from ..evidence.reading import Evidence

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]|_")
KEPT = 32_768
"""Stretches whose words are remembered: features share most of their contexts, held-out ones above all."""
FEATURES = 1024
"""Features whose held-out contexts are remembered, a part each: every proposal is scored on them."""
SILENT = 200
"""Silent contexts that fuzzing reads, an even draw as all of them are."""
Scores = tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " q"]]
"""Of firing contexts, of silent ones."""


class Word(NamedTuple):
    """A word, number or single sign in a context."""

    text: str
    """In lower case."""
    stem: str
    activation: float
    """The largest over its tokens."""


@cache
def stem(word: str) -> str:
    """What two words are compared by: lower case, without a possessive, without a plural s."""
    word = re.sub(r"['’]s?$", "", word.casefold()) or word
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def stems(text: str) -> list[str]:
    """Stems of the words of a text, each once, in order; signs only where there is no word."""
    found = _WORD.findall(text)
    named = [w for w in found if w[0].isalnum()] or found
    return list(dict.fromkeys(stem(w) for w in named))


class Span(NamedTuple):
    """A word and the tokens that spell it."""

    text: str
    stem: str
    first: int
    last: int


def spans_of(pieces: Sequence[str], *, cut: bool = False) -> tuple[Span, ...]:
    """The words that token strings spell together, each with its first and last token; arguments as of `words_of`."""
    text, owner = "".join(pieces), [i for i, p in enumerate(pieces) for _ in p]
    found = []
    for match in _WORD.finditer(text):
        word = match.group()
        if cut and match.start() == 0 and word[0].isalnum():
            continue
        found.append(Span(word.casefold(), stem(word), owner[match.start()], owner[match.end() - 1]))
    return tuple(found)


def words_of(pieces: Sequence[str], activations: Sequence[float] | None = None, *, cut: bool = False) -> list[Word]:
    """The words that token strings spell together.

    Args:
        pieces: A string a token, leading spaces in them.
        activations: A value a token; None: zeros.
        cut: The stretch may begin inside a word: a first piece without a leading space is then left out.
    """
    values = activations or [0.0] * len(pieces)
    return [Word(text, word, max(values[first : last + 1])) for text, word, first, last in spans_of(pieces, cut=cut)]


@dataclass(frozen=True, slots=True)
class Stretch:
    """The words of a context or tile."""

    spans: tuple[Span, ...]
    stems: frozenset[str]
    owners: tuple[tuple[str, ...], ...]
    """A token -> the stems that it helps to spell."""

    @classmethod
    def of(cls, pieces: Sequence[str], cut: bool) -> "Stretch":
        """The words that token strings spell; `cut` as of `words_of`."""
        spans = spans_of(pieces, cut=cut)
        owners: list[tuple[str, ...]] = [()] * len(pieces)
        for _, word, first, last in spans:
            for i in range(first, last + 1):
                owners[i] += (word,)
        return cls(spans, frozenset(s.stem for s in spans), tuple(owners))

    def active(self, activations: Sequence[float]) -> dict[str, float]:
        """Stem -> its largest activation, of stems with one above 0."""
        found: dict[str, float] = {}
        for i, a in enumerate(activations):
            if a > 0:
                for s in self.owners[i]:
                    if a > found.get(s, 0.0):
                        found[s] = a
        return found


class WordIndex:
    """Which stems stand in which stretches of text."""

    def __init__(self, stretches: Sequence[Iterable[str]]) -> None:
        self.n = len(stretches)
        self._where: dict[str, list[int]] = {}
        for i, found in enumerate(stretches):
            for s in set(found):
                self._where.setdefault(s, []).append(i)

    def where(self, word: str) -> Sequence[int]:
        """Numbers of the stretches that hold the stem `word`, ascending."""
        return self._where.get(word, ())

    def present(self, word: str) -> Bool[np.ndarray, " n"]:
        """True at the stretches that hold the stem `word`."""
        mask = np.zeros(self.n, dtype=bool)
        mask[list(self.where(word))] = True
        return mask

    def count(self, word: str) -> int:
        """Stretches that hold the stem `word`."""
        return len(self.where(word))

    def rarity(self, word: str) -> float:
        """`-log` of the share of stretches that hold it, half a count added: what one occurrence is worth."""
        return -math.log((self.count(word) + 0.5) / (self.n + 1))


class EvidenceWords:
    """The contexts of an SAE's features as words: what labels are made of and scored by.

    Args:
        evidence: What was collected.
        pieces: The string of every token id, leading spaces in them.
    """

    def __init__(self, evidence: Evidence, pieces: Sequence[str]) -> None:
        self.evidence, self.pieces = evidence, pieces
        self.stretch = lru_cache(KEPT)(self._stretch)
        self.held = lru_cache(FEATURES)(lambda part, feature: self.evidence.held[part].contexts(feature))
        self.tiles = {part: evidence.background[part].tiles() for part in PARTS}
        self.index = {p: WordIndex([self.stretch(t.tokens, t.position > 0).stems for t in ts]) for p, ts in self.tiles.items()}
        self.silence = {p: Silence(ts) for p, ts in self.tiles.items()}

    def spelled(self, tokens: Sequence[int]) -> list[str]:
        """The string of each token."""
        return [self.pieces[t] for t in tokens]

    def _stretch(self, tokens: tuple[int, ...], cut: bool) -> Stretch:
        return Stretch.of(self.spelled(tokens), cut)

    def positives(self, part: str, feature: int) -> list[frozenset[str]]:
        """Stems of each held-out context of `part` in which the feature fires."""
        return [self.stretch(c.tokens, c.position > c.peak).stems for c in self.held(part, feature)]

    def scores(self, part: str, feature: int, label: Sequence[str]) -> Scores:
        """What a label predicts for held-out contexts: the sum of the rarity of those of its stems that stand there.

        Firing contexts, then the background's contexts in which the feature is silent. Rarity is that of the evidence
        part. Nothing of the feature but its label enters.
        """
        weight = {s: self.index["evidence"].rarity(s) for s in label}
        positive = [sum(w for s, w in weight.items() if s in found) for found in self.positives(part, feature)]
        total = np.zeros(self.index[part].n)
        for s, w in weight.items():
            total += w * self.index[part].present(s)
        return np.asarray(positive, dtype=np.float64), total[self.silence[part].of(feature).numpy()]

    def marked_scores(self, part: str, feature: int, label: Sequence[str], seed: int = 0) -> Scores:
        """What a label predicts of marked tokens: as `scores`, of the marked words alone.

        In a firing context the tokens are marked on which the feature is active; in a silent one as many as in a firing
        context drawn at random, anywhere. A word is marked where one of its tokens is. At most `SILENT` silent ones are read.

        Source: Automatically interpreting millions of features in large language models (Paulo et al., 2024), fuzzing.
        Here a sum over the label's words judges in place of a language model.
        """
        weight = {s: self.index["evidence"].rarity(s) for s in label}
        positive, counts = [], []
        for c in self.held(part, feature):
            positive.append(_weight(self.stretch(c.tokens, c.position > c.peak).active(c.activations), weight))
            counts.append(sum(a > 0 for a in c.activations))
        quiet = self.silence[part].of(feature).numpy().nonzero()[0][:SILENT]
        total = np.zeros(len(quiet))
        if not counts:
            return np.asarray(positive, dtype=np.float64), total
        rng = np.random.default_rng([seed, feature])
        sizes, ranks = rng.choice(counts, len(quiet)), rng.random((len(quiet), self.evidence.config.span))
        for row, i in enumerate(quiet.tolist()):
            tile = self.tiles[part][i]
            here = self.stretch(tile.tokens, tile.position > 0)
            if not here.stems.isdisjoint(weight):
                marks = ranks[row, : len(tile.tokens)].argsort()[: sizes[row]].tolist()
                total[row] = _weight({s for m in marks for s in here.owners[m]}, weight)
        return np.asarray(positive, dtype=np.float64), total


def _weight(found: Iterable[str], weight: Mapping[str, float]) -> float:
    """Sum of the weights of stems, each once."""
    return sum((weight[s] for s in found if s in weight), 0.0)
