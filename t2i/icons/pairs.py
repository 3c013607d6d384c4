"""Byte-pair merges in an order that depends on the texts alone: equally frequent pairs are merged in alphabetical order.

The library's trainer breaks ties by the order of a hash table, and gives another tokenizer in every process.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

END_OF_WORD = "</w>"
_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
"""As `CLIPTokenizer` splits a text."""


def words_of(texts: Iterable[str]) -> Counter[str]:
    """How often each word, number and sign occurs, in lower case."""
    return Counter(piece for text in texts for piece in _PIECES.findall(text.lower()))


def byte_pair_merges(words: Counter[str], n: int) -> list[tuple[str, str]]:
    """At most `n` merges, each of the pair that is then most frequent (Sennrich et al., 2016, Algorithm 1); fewer where every word is one piece."""
    spelt = [[*w[:-1], w[-1] + END_OF_WORD] for w in words]
    often = list(words.values())
    counts: Counter[tuple[str, str]] = Counter()
    holders: dict[tuple[str, str], set[int]] = defaultdict(set)

    def count(i: int, sign: int) -> None:
        for pair in zip(spelt[i], spelt[i][1:], strict=False):
            counts[pair] += sign * often[i]
            holders[pair].add(i)

    for i in range(len(spelt)):
        count(i, 1)
    merges: list[tuple[str, str]] = []
    while len(merges) < n and counts:
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 1:
            break
        merges.append(best)
        for i in holders.pop(best):
            count(i, -1)
            spelt[i] = _merged(spelt[i], best)
            count(i, 1)
        counts = +counts
    return merges


def _merged(pieces: Sequence[str], pair: tuple[str, str]) -> list[str]:
    out, at = list[str](), 0
    while at < len(pieces):
        joined = tuple(pieces[at : at + 2]) == pair
        out.append("".join(pieces[at : at + 2]) if joined else pieces[at])
        at += 2 if joined else 1
    return out
