"""Texts as rows of equal length that a model trains on without padding to speak of; no text sees another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...base.errors import InputError, MatchedNothing


@dataclass(frozen=True)
class Packed:
    """Rows of tokens; where a text ends another begins."""

    ids: Int[Tensor, "n t"]
    texts: Int[Tensor, "n t"]
    """Which text of its row a token belongs to, from 1; 0 is padding."""
    positions: Int[Tensor, "n t"]
    """Of a token in its text."""

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, rows: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """What a causal LM is called with: a token sees those before it in its own text."""
        return {
            "input_ids": self.ids[rows],
            "attention_mask": own_text(self.texts[rows]),
            "position_ids": self.positions[rows],
        }

    def targets(self, rows: Int[Tensor, " b"]) -> Int[Tensor, "b t"]:
        """The next token of the same text; -100 where there is none."""
        texts, out = self.texts[rows], torch.full_like(self.ids[rows], -100)
        follows = (texts[:, 1:] == texts[:, :-1]) & (texts[:, 1:] > 0)
        out[:, :-1] = torch.where(follows, self.ids[rows][:, 1:], out[:, :-1])
        return out


def own_text(texts: Int[Tensor, "b t"]) -> Float[Tensor, "b 1 t t"]:
    """Additive attention mask: 0 where a token may look, the least float elsewhere."""
    same = (texts[:, :, None] == texts[:, None, :]).tril()
    return torch.zeros(same.shape).masked_fill(~same, torch.finfo(torch.float32).min)[:, None]


def pack(tokenizer: Any, texts: Sequence[str], length: int) -> Packed:
    """The texts in their order, each with EOS behind it, in as few rows as a greedy fill makes.

    Raises:
        MatchedNothing: No texts.
        InputError: A text that is longer than a row.
    """
    if not texts:
        raise MatchedNothing("no texts to train on: was every domain left out?")
    rows: list[list[list[int]]] = [[]]
    used = 0
    for text, ids in zip(texts, tokenizer(list(texts))["input_ids"], strict=True):
        whole = [*ids, tokenizer.eos_token_id]
        if len(whole) > length:
            raise InputError(f"context: {length} tokens are too few for the text {text[:40]!r}…, which has {len(whole)}")
        if used + len(whole) > length:
            rows.append([])
            used = 0
        rows[-1].append(whole)
        used += len(whole)
    shape = (len(rows), length)
    out, which, at = torch.full(shape, tokenizer.pad_token_id), torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for i, row in enumerate(rows):
        flat = [t for text in row for t in text]
        out[i, : len(flat)] = torch.tensor(flat)
        which[i, : len(flat)] = torch.tensor([n for n, text in enumerate(row, 1) for _ in text])
        at[i, : len(flat)] = torch.tensor([p for text in row for p in range(len(text))])
    return Packed(out, which, at)
