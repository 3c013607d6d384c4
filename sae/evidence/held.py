"""Contexts kept a feature, a fixed number of them whatever comes: the largest by a key.

The key is the activation (strongest contexts) or a random priority (an even draw without replacement, of all that ever
came).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .active import Active
from .passages import Kept


@dataclass(frozen=True)
class Context:
    """A stretch of text around (or, held out, at) a place where a feature is active."""

    document: int
    """Number of the document in the corpus, from 0."""
    position: int
    """Of the peak, in the document's tokens."""
    peak: int
    """Index of the peak in `tokens`."""
    value: float
    """Activation at the peak."""
    tokens: tuple[int, ...]
    activations: tuple[float, ...]
    """The feature's, a token each."""


class Held:
    """For each feature the `n` contexts with the largest keys, at most `span` tokens each.

    Memory is fixed when it is made: `d_sae * n * (8 * span + 36)` bytes.
    """

    def __init__(self, d_sae: int, n: int, span: int) -> None:
        self.n, self.span = n, span
        self.key: Float64[Tensor, "d_sae n"] = torch.full((d_sae, n), -torch.inf, dtype=torch.float64)
        self.place: Int[Tensor, "d_sae n 3"] = torch.zeros(d_sae, n, 3, dtype=torch.int64)
        """Document, position, index of the peak."""
        self.value: Float[Tensor, "d_sae n"] = torch.zeros(d_sae, n)
        self.tokens: Int[Tensor, "d_sae n s"] = torch.full((d_sae, n, span), -1, dtype=torch.int32)
        self.activations: Float[Tensor, "d_sae n s"] = torch.zeros(d_sae, n, span)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.key, self.place, self.value, self.tokens, self.activations))

    def offer(
        self,
        kept: Kept,
        active: Active,
        entries: Int[Tensor, " m"],
        keys: Float64[Tensor, " m"],
        first: Int[Tensor, " m"],
        end: Int[Tensor, " m"],
    ) -> None:
        """Takes what belongs among the best of `entries`, whose contexts are rows `first` to `end - 1`."""
        features = active.feature[entries]
        owner, slot, taken = self._chosen(features, keys)
        if not len(taken):
            return
        entry, first, end = entries[taken], first[taken], end[taken]
        rows = first[:, None] + torch.arange(self.span)
        inside = rows < end[:, None]
        rows = torch.where(inside, rows, first[:, None])
        row = active.row[entry]
        self.key[owner, slot] = keys[taken]
        self.value[owner, slot] = active.value[entry]
        self.place[owner, slot] = torch.stack([kept.document[row], kept.position[row], row - first], 1)
        self.tokens[owner, slot] = torch.where(inside, kept.token[rows], -1).int()
        self.activations[owner, slot] = torch.where(inside, active.along(active.feature[entry], rows), 0.0)

    def _chosen(self, features: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature, slot to overwrite, and index of the candidate, for all that displace something.

        Of equal keys the one that came first stays.
        """
        hopeful = (keys > self.key.amin(1)[features]).nonzero()[:, 0]
        order = hopeful[keys[hopeful].sort(descending=True, stable=True).indices]
        order = order[features[order].sort(stable=True).indices]
        owners, row, count = features[order].unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(order)) - (count.cumsum(0) - count)[row]
        best = rank < self.n
        order, row, rank = order[best], row[best], rank[best]
        rivals = torch.full((len(owners), self.n), -torch.inf, dtype=torch.float64)
        rivals[row, rank] = keys[order]
        index = torch.zeros(len(owners), self.n, dtype=torch.int64)
        index[row, rank] = order
        both = torch.cat([self.key[owners], rivals], 1)
        stays = torch.zeros_like(both, dtype=torch.bool)
        stays.scatter_(1, both.sort(dim=1, descending=True, stable=True).indices[:, : self.n], True)
        out, into = (~stays[:, : self.n]).nonzero(), stays[:, self.n :].nonzero()  # as many in a row on either side
        return owners[out[:, 0]], out[:, 1], index[into[:, 0], into[:, 1]]

    def contexts(self, feature: int) -> list[Context]:
        """What is held of a feature, the strongest first."""
        rows = (t[feature].tolist() for t in (self.key, self.value, self.place, self.tokens, self.activations))
        found = []
        for key, value, (document, position, peak), tokens, activations in zip(*rows, strict=True):
            if key == -math.inf:
                continue
            length = tokens.index(-1) if tokens[-1] < 0 else self.span
            found.append(Context(document, position, peak, value, tuple(tokens[:length]), tuple(activations[:length])))
        return sorted(found, key=lambda c: (-c.value, c.document, c.position))
