"""Contexts drawn evenly from a part of the corpus whatever fires in them: the negatives of every feature at once."""

import heapq
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from .active import Active
from .passages import Kept


@dataclass(frozen=True)
class Tile:
    """One of the stretches that a window is cut into."""

    document: int
    position: int
    """Of its first token, in the document."""
    tokens: tuple[int, ...]
    features: Int[Tensor, " f"]
    """Features active anywhere in it, ascending."""


class Background:
    """At most `n` tiles, an even draw of all that came; a heap by priority."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._heap: list[tuple[float, int, int, Tile]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def offer(self, kept: Kept, active: Active, first: Int[Tensor, " m"], end: Int[Tensor, " m"], keys: Float64[Tensor, " m"]) -> None:
        """Takes the tiles (rows `first` to `end - 1`) whose keys are among the largest."""
        least = self._heap[0][0] if len(self) == self.n else -1.0
        for i in (keys > least).nonzero()[:, 0].tolist():
            a, b = int(first[i]), int(end[i])
            document, position = int(kept.document[a]), int(kept.position[a])
            entry = (float(keys[i]), document, position)
            if len(self) == self.n and entry <= self._heap[0][:3]:
                continue
            tile = Tile(document, position, tuple(kept.token[a:b].tolist()), active.features_in(a, b).int())
            (heapq.heappush if len(self) < self.n else heapq.heapreplace)(self._heap, (*entry, tile))

    def tiles(self) -> list[Tile]:
        """What is held, in the order of the corpus."""
        return [t for *_, t in sorted(self._heap, key=lambda e: e[1:3])]


class Silence:
    """For any feature, the tiles in which it fires nowhere."""

    def __init__(self, tiles: list[Tile]) -> None:
        self.n = len(tiles)
        counts = torch.tensor([len(t.features) for t in tiles], dtype=torch.int64)
        features = torch.cat([t.features for t in tiles]) if tiles else torch.zeros(0, dtype=torch.int32)
        order = features.sort(stable=True)
        self._feature = order.values
        self._tile = torch.repeat_interleave(torch.arange(self.n), counts)[order.indices]
        self.of = lru_cache(64)(self._of)
        """For a feature, as of `_of`; the same few are asked for several times in a row."""

    def _of(self, feature: int) -> Bool[Tensor, " n"]:
        """True where `feature` is silent."""
        low, high = torch.searchsorted(self._feature, torch.tensor([feature, feature + 1], dtype=torch.int32)).tolist()
        quiet = torch.ones(self.n, dtype=torch.bool)
        quiet[self._tile[low:high]] = False
        return quiet
