"""A shuffling reservoir: activations go in by the sequence and come out in random batches."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...base.errors import InputError
from .base import Batch, SourceState


class MixingBuffer:
    """Holds at most `capacity` vectors (and the last addition beyond it); a batch is drawn uniformly from all it holds.

    Neighbouring tokens of a text are alike, so a batch should hold tokens of many texts. Several hook points share one
    draw: row i is the same token everywhere. Memory is `capacity` vectors whatever the length of the stream.

    Args:
        capacity: Vectors kept for mixing (at least one batch).
        batch: Vectors a batch.
        seed: Of the draws.
    """

    def __init__(self, capacity: int, batch: int, seed: int) -> None:
        if batch < 1 or capacity < batch:
            raise InputError(f"the buffer must hold at least one batch: found capacity {capacity}, batch {batch}")
        self.capacity, self.batch, self.size = capacity, batch, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.store: Batch = {}

    def add(self, acts: Batch) -> None:
        """Copies activations in (`[n, d]` a hook point)."""
        n = len(next(iter(acts.values())))
        if any(len(t) != n for t in acts.values()) or (self.store and self.store.keys() != acts.keys()):
            shapes = {k: tuple(t.shape) for k, t in acts.items()}
            raise InputError(f"additions must have the same hook points and rows; found {shapes}")
        for name, t in acts.items():
            held = self.store.get(name)
            if held is None or len(held) < self.size + n:
                room = max(self.size + n, self.capacity + n)
                self.store[name] = t.new_empty(room, t.shape[1])
                if held is not None:
                    self.store[name][: self.size] = held[: self.size]
            self.store[name][self.size : self.size + n] = t
        self.size += n

    def pop(self) -> Batch:
        """Takes a random batch out (what is left, where that is less)."""
        n = min(self.batch, self.size)
        drawn = torch.randperm(self.size, generator=self.generator)[:n]
        kept = self.size - n
        is_drawn = torch.zeros(self.size, dtype=torch.bool)
        is_drawn[drawn] = True
        holes = is_drawn[:kept].nonzero()[:, 0]
        movers = kept + (~is_drawn[kept:]).nonzero()[:, 0]  # rows behind the new end that stay: they fill the holes
        out = {}
        for name, t in self.store.items():
            index = drawn.to(t.device)
            out[name] = t.index_select(0, index)
            t[holes.to(t.device)] = t.index_select(0, movers.to(t.device))
        self.size = kept
        return out

    def drain(self, mark: int) -> Iterator[Batch]:
        """Batches while at least `mark` vectors are held: `capacity` before more is added, 1 at the end of a stream."""
        while self.size >= mark:
            yield self.pop()

    def state(self) -> SourceState:
        """The vectors held and the generator."""
        tensors: dict[str, Tensor] = {f"held.{k}": t[: self.size].clone() for k, t in self.store.items()}
        return SourceState({**tensors, "generator": self.generator.get_state()})

    def restore(self, state: SourceState) -> None:
        """Inverse of `state`."""
        held = {k.removeprefix("held."): t for k, t in state.tensors.items() if k.startswith("held.")}
        self.store, self.size = {}, 0
        if held:
            self.add(held)
        self.generator.set_state(state.tensors["generator"].to(torch.uint8))
