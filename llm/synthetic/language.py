"""A second language with the first one's grammar: every word has its own word there; names stay. Torch-free."""

import random
import re
from collections.abc import Mapping
from functools import cache

from .templates import vocabulary
from .words import HEADS, ONSETS, TAILS, VOWELS

_WORD = re.compile(r"[A-Za-z]+")
_NAMES = frozenset(h + t for h in HEADS for t in TAILS)


@cache
def word_map(seed: int = 0) -> Mapping[str, str]:
    """Word in lower case -> its word in the second language: a bijection onto words that the first has not, and no name either."""
    words = list(dict.fromkeys(vocabulary()))
    taken = {*words, *(n.lower() for n in _NAMES)}
    made = [a + b + c + d for a in ONSETS for b in VOWELS for c in ONSETS for d in VOWELS]
    free = [w for w in made if w not in taken]
    return dict(zip(words, random.Random(f"language/{seed}").sample(free, len(words)), strict=True))


def translate(text: str, seed: int = 0) -> str:
    """Into the second language, word by word; capitals, punctuation and names are kept.

    Raises:
        KeyError: A word that the world has not.
    """
    words = word_map(seed)
    return _WORD.sub(lambda found: _other(found[0], words), text)


def back(text: str, seed: int = 0) -> str:
    """From the second language, the inverse of `translate`."""
    inverse = {b: a for a, b in word_map(seed).items()}
    return _WORD.sub(lambda found: _other(found[0], inverse), text)


def _other(word: str, words: Mapping[str, str]) -> str:
    """The word's counterpart, with its capital; a name's is itself."""
    if word in _NAMES:
        return word
    return words[word.lower()].capitalize() if word[0].isupper() else words[word]
