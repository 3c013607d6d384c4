"""Words of a stretch of tokens, and in which stretches of the background each word stands."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ..evidence.background import Silence
from ..evidence.passages import PARTS
from ..evidence.reading import Evidence

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]|_")


@dataclass(frozen=True)
class Word:
    """A word, number or single sign in a context."""

    text: str
    """In lower case."""
    stem: str
    activation: float
    """The largest over its tokens."""


def stem(word: str) -> str:
    """What two words are compared by: lower case, without a possessive, without a plural s."""
    word = re.sub(r"['’]s?$", "", word.casefold()) or word
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def stems(text: str) -> list[str]:
    """Stems of the words of a text, each once, in order; signs only where there is no word."""
    found = _WORD.findall(text)
    named = [w for w in found if w[0].isalnum()] or found
    return list(dict.fromkeys(stem(w) for w in named))


def words_of(pieces: Sequence[str], activations: Sequence[float] | None = None, *, cut: bool = False) -> list[Word]:
    """The words that token strings spell together.

    Args:
        pieces: A string a token, leading spaces in them.
        activations: A value a token; None: zeros.
        cut: The stretch may begin inside a word: a first piece without a leading space is then left out.
    """
    text, owner = "".join(pieces), [i for i, p in enumerate(pieces) for _ in p]
    values = activations or [0.0] * len(pieces)
    found = []
    for match in _WORD.finditer(text):
        if cut and match.start() == 0 and match.group()[0].isalnum():
            continue
        peak = max(values[i] for i in range(owner[match.start()], owner[match.end() - 1] + 1))
        found.append(Word(match.group().casefold(), stem(match.group()), peak))
    return found


class WordIndex:
    """Which stems stand in which stretches of text."""

    def __init__(self, stretches: Sequence[Iterable[str]]) -> None:
        self.n = len(stretches)
        self._where: dict[str, list[int]] = {}
        for i, found in enumerate(stretches):
            for s in set(found):
                self._where.setdefault(s, []).append(i)

    def present(self, word: str) -> Bool[Tensor, " n"]:
        """True at the stretches that hold the stem `word`."""
        mask = torch.zeros(self.n, dtype=torch.bool)
        mask[self._where.get(word, [])] = True
        return mask

    def count(self, word: str) -> int:
        """Stretches that hold the stem `word`."""
        return len(self._where.get(word, ()))

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
        tiles = {part: evidence.background[part].tiles() for part in PARTS}
        self.index = {p: WordIndex([self._stems(t.tokens, t.position > 0) for t in ts]) for p, ts in tiles.items()}
        self.silence = {p: Silence(ts) for p, ts in tiles.items()}

    def spelled(self, tokens: Sequence[int]) -> list[str]:
        """The string of each token."""
        return [self.pieces[t] for t in tokens]

    def _stems(self, tokens: Sequence[int], cut: bool) -> list[str]:
        return [w.stem for w in words_of(self.spelled(tokens), cut=cut)]

    def positives(self, part: str, feature: int) -> list[set[str]]:
        """Stems of each held-out context of `part` in which the feature fires."""
        contexts = self.evidence.held[part].contexts(feature)
        return [set(self._stems(c.tokens, c.position > c.peak)) for c in contexts]

    def scores(self, part: str, feature: int, label: Sequence[str]) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " q"]]:
        """What a label predicts for held-out contexts: the sum of the rarity of those of its stems that stand there.

        Firing contexts, then the background's contexts in which the feature is silent. Rarity is that of the evidence
        part. Nothing of the feature but its label enters.
        """
        weight = {s: self.index["evidence"].rarity(s) for s in label}
        positive = [sum(w for s, w in weight.items() if s in found) for found in self.positives(part, feature)]
        total = np.zeros(self.index[part].n)
        for s, w in weight.items():
            total += w * self.index[part].present(s).numpy()
        return np.asarray(positive, dtype=np.float64), total[self.silence[part].of(feature).numpy()]
