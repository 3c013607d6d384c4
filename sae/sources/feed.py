"""Batches of one size out of any source, pass after pass, with a place one can return to."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from ...base.errors import InputError, MatchedNothing
from .base import ActivationSource, Batch, Plain, SourceState, check_same

PLAIN = "x"
"""Name of the only hook point of a source that yields bare tensors."""


class Feed:
    """Endless batches of exactly `batch` vectors; a source that ends is begun again.

    A source with `state` and `restore` (see `ActivationSource`) resumes by itself. Any other iterable resumes by
    reading again what was read before, so it must give the same tensors each time; an iterator that can only be read
    once serves for one pass and cannot be resumed.

    Args:
        source: Yields `[n, d]` tensors, or `{hook point: [n, d]}`.
        batch: Vectors a batch.

    Raises:
        InputError: `source` is not iterable.
    """

    def __init__(self, source: Iterable[Batch | Tensor], batch: int) -> None:
        if isinstance(source, Tensor):
            source = [source]
        if not isinstance(source, Iterable):
            raise InputError(f"source must be an iterable of [n, d] tensors; found {type(source).__name__}")
        self.source, self.batch = source, batch
        self.passes = self.taken = 0  # whole passes, and items taken in this one
        self.pending: list[Batch] = []
        self.size = 0
        self._items: Iterator[Batch | Tensor] | None = None

    @property
    def resumable(self) -> bool:
        """Whether `restore` can work."""
        return isinstance(self.source, ActivationSource) or not isinstance(self.source, Iterator)

    def next(self) -> Batch:
        """The next batch."""
        self._fill(self.batch)
        return self._cut(self.batch)

    def peek(self, batches: int) -> Batch:
        """The next `batches` batches as one, without taking them."""
        n = batches * self.batch
        self._fill(n)
        self._join()
        return {p: t[:n] for p, t in self.pending[0].items()}

    def state(self) -> SourceState:
        """Place in the source, and what was read but not handed out."""
        self._join()
        tensors = {f"pending.{p}": t.clone() for held in self.pending for p, t in held.items()}
        values: Plain = {"passes": self.passes, "taken": self.taken, "batch": self.batch, "source": None}
        if isinstance(self.source, ActivationSource):
            inner = self.source.state()
            tensors |= inner.nested("source").tensors
            values["source"] = inner.values
        return SourceState(tensors, values)

    def restore(self, state: SourceState) -> None:
        """Goes to a saved place.

        Raises:
            InputError: The source cannot be read again, or is not the one of the checkpoint.
        """
        check_same("source", state.values, {"batch": self.batch})
        self.passes, self.taken = int(str(state.values["passes"])), int(str(state.values["taken"]))
        inner = state.values["source"]
        if isinstance(self.source, ActivationSource):
            if not isinstance(inner, dict):
                raise InputError("the checkpoint was written with another kind of source; give the same one or start anew")
            self.source.restore(state.inner("source", inner))
            self._items = iter(self.source)
        elif isinstance(self.source, Iterator):
            raise InputError(
                "the source is an iterator that can be read only once; to resume give a list, or an object whose __iter__ starts anew"
            )
        else:
            self._items = iter(self.source)
            if sum(1 for _ in islice(self._items, self.taken)) < self.taken:
                raise InputError(f"the source is shorter than when the checkpoint was written ({self.taken} items had been taken)")
        pending = {k.removeprefix("pending."): t for k, t in state.tensors.items() if k.startswith("pending.")}
        self.pending = [pending] if pending else []
        self.size = len(next(iter(pending.values()))) if pending else 0

    def _fill(self, n: int) -> None:
        if self._items is None:
            self._items = iter(self.source)
        ends, size = 0, self.size
        while self.size < n:
            item = next(self._items, None)
            if item is not None:
                self.taken += 1
                self._hold({PLAIN: item} if isinstance(item, Tensor) else item)
                continue
            ends = ends + 1 if self.size == size else 1
            if ends > 1 or self._items is self.source:
                raise MatchedNothing(f"the source ended after {self.taken} items and gives no more; give more activations or fewer steps")
            self._items, self.taken, self.passes, size = iter(self.source), 0, self.passes + 1, self.size

    def _hold(self, batch: Batch) -> None:
        shapes = {p: tuple(t.shape) for p, t in batch.items()}
        if not shapes or any(len(s) != 2 for s in shapes.values()) or len({s[0] for s in shapes.values()}) != 1:
            raise InputError(f"the source must yield [n, d] tensors, equally many vectors a hook point; found {shapes}")
        if self.pending and {p: s[1] for p, s in shapes.items()} != {p: t.shape[1] for p, t in self.pending[0].items()}:
            raise InputError(f"the source changed its hook points or widths; found {shapes}")
        rows = next(iter(shapes.values()))[0]
        if rows:
            self.pending.append(batch)
            self.size += rows

    def _cut(self, n: int) -> Batch:
        if len(self.pending) > 1 or self.size != n:
            self._join()
            whole = self.pending[0]
            out = {p: t[:n] for p, t in whole.items()}
            self.size -= n
            self.pending = [{p: t[n:] for p, t in whole.items()}] if self.size else []
            return out
        self.size = 0
        return self.pending.pop()

    def _join(self) -> None:
        if len(self.pending) > 1:
            self.pending = [{p: torch.cat([held[p] for held in self.pending]) for p in self.pending[0]}]
