"""Association of words in an embedding: the WEAT effect size with its exact permutation test, and nearest neighbours."""

from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError, MatchedNothing

MOST = 200_000
"""Partitions beyond which they are drawn and not counted."""


@dataclass(frozen=True)
class Weat:
    """Word embedding association test."""

    d: float
    """Effect size, in standard deviations."""
    p: float
    """Share of equal-size partitions of the targets whose statistic is larger (one-sided)."""
    partitions: int
    """How many were looked at; all of them where `exact`."""
    exact: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def weat(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], a: Float[Tensor, "p d"], b: Float[Tensor, "q d"], *, seed: int = 0) -> Weat:
    """Semantics derived automatically from language corpora contain human-like biases (Caliskan et al., Science 2017).

    s(w) = mean cos(w, A) - mean cos(w, B); d = (mean_X s - mean_Y s) / std of s over both; vectors of length 0 have cosine 0.

    Args:
        x: Target words.
        y: As many others.
        a: Attribute words.
        b: The others.
        seed: Of the partitions, where there are more than `MOST`.

    Raises:
        MatchedNothing: An empty list.
        InputError: Target lists of unlike length.
    """
    if not (len(x) and len(y) and len(a) and len(b)):
        raise MatchedNothing("weat: a list of words is empty")
    if len(x) != len(y) or len(x) < 2:
        raise InputError(f"weat: target lists of equal length, two words at least; {len(x)} and {len(y)} found")
    words, a, b = (torch.nn.functional.normalize(t.double(), dim=1) for t in (torch.cat([x, y]), a, b))
    s = (words @ a.T).mean(1) - (words @ b.T).mean(1)
    n, spread = len(x), s.std(correction=1)
    if not spread > 0:
        return Weat(0.0, 1.0, 0, False)
    exact = comb(2 * n, n) <= MOST
    sums = s[_partitions(2 * n, n, exact, seed)].sum(1)
    p = float((sums > s[:n].sum() + 1e-12).double().mean())
    return Weat(float((s[:n].mean() - s[n:].mean()) / spread), p, len(sums), exact)


def _partitions(total: int, n: int, exact: bool, seed: int) -> Int[Tensor, "m n"]:
    if exact:
        return torch.tensor(list(combinations(range(total), n)))
    g = torch.Generator().manual_seed(seed)
    return torch.rand(MOST, total, generator=g).argsort(1)[:, :n]


def neighbours(vectors: Float[Tensor, "v d"], ids: list[int], k: int = 3) -> Int[Tensor, "n k"]:
    """The k vectors of the largest cosine to each of `ids`, themselves left out.

    Raises:
        InputError: k is not in [1, v - 1].
    """
    if not 1 <= k < len(vectors):
        raise InputError(f"neighbours: k must lie in [1, {len(vectors) - 1}], {k} found")
    unit = torch.nn.functional.normalize(vectors, dim=1)
    cosine = unit[ids] @ unit.T
    cosine[torch.arange(len(ids)), ids] = -2
    return cosine.topk(k).indices
