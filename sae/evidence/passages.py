"""From documents to forward passes: windows that know their document, their place in it and their part."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PARTS = ("evidence", "validation", "test")
"""What a document serves for: everything that is shown and every label comes from `evidence`; whether a label stands is
decided on `validation`; its score is measured on `test`."""
GROUP = 256
"""Documents tokenised and sorted by length at a time."""


def part_of(text: str, held_out: int) -> int:
    """Index into `PARTS`, from the text alone, so that copies fall on one side."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return 1 + number // held_out % 2 if number % held_out == 0 else 0


@dataclass(frozen=True)
class Window:
    """A stretch of one document as the host reads it."""

    ids: list[int]
    """Token ids, the BOS token first where there is one."""
    document: int
    start: int
    """Position in the document of the first token behind the BOS token."""
    part: int


def windows(tokenizer: Any, texts: Iterable[tuple[int, str]], bos: int | None, context: int, held_out: int) -> Iterator[list[Window]]:
    """Windows of numbered documents, a group of documents at a time, the shortest first."""
    head = [] if bos is None else [bos]
    step = context - len(head)
    stream = iter(texts)
    while group := list(islice(stream, GROUP)):
        rows: Mapping[str, list[list[int]]] = tokenizer([t for _, t in group], add_special_tokens=False, verbose=False)
        found = [
            Window(head + ids[i : i + step], number, i, part_of(text, held_out))
            for (number, text), ids in zip(group, rows["input_ids"], strict=True)
            for i in range(0, len(ids), step)
        ]
        yield sorted(found, key=lambda w: len(w.ids))


def prompts(token_ids: Callable[[list[str]], list[list[int]]], texts: Iterable[tuple[int, str]], held_out: int) -> Iterator[list[Window]]:
    """Numbered prompts as windows, each whole, with the tokens that its tokenizer adds."""
    stream = iter(texts)
    while group := list(islice(stream, GROUP)):
        rows = token_ids([t for _, t in group])
        found = [Window(ids, number, 0, part_of(text, held_out)) for (number, text), ids in zip(group, rows, strict=True)]
        yield sorted(found, key=lambda w: len(w.ids))


def passes(group: Iterable[Window], forward_tokens: int) -> Iterator[list[Window]]:
    """Windows of like length together, at most `forward_tokens` tokens with padding (one window at least)."""
    batch: list[Window] = []
    for w in group:
        if batch and (len(batch) + 1) * len(w.ids) > forward_tokens:
            yield batch
            batch = []
        batch.append(w)
    if batch:
        yield batch


def padded(batch: list[Window], pad: int, width: int | None = None) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Token ids and attention mask, right-padded to `width` (None: to the longest)."""
    width = width or max(len(w.ids) for w in batch)
    ids = torch.tensor([w.ids + [pad] * (width - len(w.ids)) for w in batch])
    mask = torch.tensor([[1] * len(w.ids) + [0] * (width - len(w.ids)) for w in batch])
    return ids, mask


@dataclass(frozen=True)
class Kept:
    """The tokens of a forward pass that count, window after window; row i is also row i of the SAE's input."""

    token: Int[Tensor, " n"]
    document: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    """In the document."""
    part: Int[Tensor, " n"]
    first: Int[Tensor, " n"]
    """Row of the first kept token of the same window."""
    end: Int[Tensor, " n"]
    """One past the row of its last."""

    @classmethod
    def of(cls, batch: list[Window], ids: Int[Tensor, "b t"], keep: Bool[Tensor, "b t"], head: int) -> "Kept":
        """Rows of a forward pass; `head` counts the BOS tokens in front of each window."""
        keep, ids = keep.cpu(), ids.cpu()
        row, column = keep.nonzero(as_tuple=True)
        document, start, part = (torch.tensor([getattr(w, n) for w in batch]) for n in ("document", "start", "part"))
        count = keep.sum(1)
        end = count.cumsum(0)
        return cls(ids[keep], document[row], start[row] + column - head, part[row], (end - count)[row], end[row])

    @cached_property
    def row(self) -> Int[Tensor, " n"]:
        """Its own number: 0, 1, 2 and so on."""
        return torch.arange(len(self.token))

    def tile(self, span: int) -> Int[Tensor, " n"]:
        """First row of the tile that each token lies in, -1 in none: windows are cut into stretches of `span` tokens.

        What is left at a window's end belongs to no tile, as a shorter stretch is likelier to be silent and less likely
        to hold any word; a window shorter than `span` is one tile.
        """
        first = self.first + (self.row - self.first) // span * span
        whole = (first + span <= self.end) | (first == self.first)
        return torch.where(whole, first, -1)
