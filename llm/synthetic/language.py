"""A second language with the first one's grammar: every word has its own word there; names stay. Torch-free."""

import random
import re
from collections.abc import Callable, Mapping
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
    return _WORD.sub(_swap(word_map(seed).__getitem__), text)


def back(text: str, seed: int = 0) -> str:
    """From the second language, the inverse of `translate`."""
    inverse = {b: a for a, b in word_map(seed).items()}
    return _WORD.sub(_swap(inverse.__getitem__), text)


def _swap(look_up: Callable[[str], str]) -> Callable[[re.Match[str]], str]:
    def one(found: re.Match[str]) -> str:
        word = found[0]
        if word in _NAMES:
            return word
        other = look_up(word.lower())
        return other.capitalize() if word[0].isupper() else other

    return one
