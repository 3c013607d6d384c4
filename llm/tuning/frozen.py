"""The host's states for rows of ids: as it is trained, with a graph; and as it was before, computed once and kept."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from .losses import next_tokens

if TYPE_CHECKING:
    from ..host import Host
    from .texts import Row

Ids = Sequence[int]
Read = Callable[[Tensor, Tensor], Tensor]
"""(input ids [b t], attention mask [b t]) -> states [b t d]."""
Key = tuple[tuple[int, ...], tuple[int, ...]]
"""A beginning, and the row behind it."""
KEPT = 1 << 30
"""Bytes of states that are kept; what comes later is computed anew each time."""


def final_hidden(host: "Host") -> Read:
    """States behind the final norm: `host.head` makes logits of them."""
    return lambda ids, mask: host.base(input_ids=ids, attention_mask=mask, use_cache=False)[0]


def at_points(host: "Host", hook_points: Sequence[str]) -> Read:
    """States at hook points, side by side in the last dimension; with a graph where gradients are on."""

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        found = host.activations(ids, mask, hook_points, grad=torch.is_grad_enabled())
        return torch.cat([found[p] for p in hook_points], -1)

    return read


def states(host: "Host", read: Read, rows: Sequence[Ids]) -> list[Float[Tensor, "_ d"]]:
    """States of each row, padding cut off."""
    ids, mask = host.pad(rows)
    return [h[: len(row)] for h, row in zip(read(ids, mask), rows, strict=True)]


def kept_tokens(host: "Host", rows: Sequence[Ids]) -> list[Bool[Tensor, " _"]]:
    """Which tokens of each row count as text: no specials, no attention sink (`Host.keep_mask`)."""
    ids, mask = host.pad(rows)
    return [k[: len(row)] for k, row in zip(host.keep_mask(ids, mask), rows, strict=True)]


class Frozen:
    """States of the host without what is being trained; each row is computed once, by itself, and kept on the CPU.

    By itself: rounding depends on what a row is batched with, and a run that goes on meets rows in other company.
    """

    def __init__(self, host: "Host", read: Read, off: Callable[[], AbstractContextManager[None]]) -> None:
        self.host, self.read, self.off = host, read, off
        self.bytes = 0
        self._kept: dict[Key, Tensor] = {}

    def __call__(self, rows: Sequence[Ids]) -> list[Float[Tensor, "_ d"]]:
        """States of each row, without a graph, on the host's device."""
        return self._all([((), tuple(row)) for row in rows])

    def _all(self, keys: Sequence[Key]) -> list[Tensor]:
        missing = [k for k in dict.fromkeys(keys) if k not in self._kept]
        new: dict[Key, Tensor] = {}
        if missing:
            with torch.no_grad(), self.off():
                new = {k: self._computed(*k) for k in missing}
            for key, h in new.items():
                if self.bytes < KEPT:
                    self._kept[key] = h.detach().cpu().clone()
                    self.bytes += h.numel() * h.element_size()
        return [new[k] if k in new else self._kept[k].to(self.host.device) for k in keys]

    def _computed(self, beginning: tuple[int, ...], row: tuple[int, ...]) -> Tensor:
        return states(self.host, self.read, [row])[0]


class FrozenFinal(Frozen):
    """Final states, also of rows that stand behind a beginning: what many rows share is run once."""

    def __init__(self, host: "Host", off: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(host, final_hidden(host), off)
        self._caches: dict[tuple[int, ...], DynamicCache] = {}

    def behind(self, beginnings: Sequence[Ids], rows: Sequence[Ids]) -> list[Float[Tensor, "_ d"]]:
        """States of each row's own tokens, read behind its beginning (which may be empty)."""
        return self._all([(tuple(b), tuple(row)) for b, row in zip(beginnings, rows, strict=True)])

    def _computed(self, beginning: tuple[int, ...], row: tuple[int, ...]) -> Tensor:
        if not beginning:
            return super()._computed(beginning, row)
        host, past = self.host, len(beginning)
        if beginning not in self._caches:
            cache = DynamicCache(config=host.model.config)
            ids, mask = host.pad([beginning])
            host.base(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
            self._caches[beginning] = cache
        ids, mask = host.pad([row])
        cache = copy.deepcopy(self._caches[beginning])
        positions = torch.arange(past, past + len(row), device=ids.device)[None]
        whole = torch.cat([mask.new_ones(1, past), mask], 1)
        return host.base(input_ids=ids, attention_mask=whole, position_ids=positions, past_key_values=cache, use_cache=True)[0][0]


def predictions(
    host: "Host", hidden: Sequence[Float[Tensor, "_ d"]], rows: "Sequence[Row]"
) -> tuple[Float[Tensor, "N V"], Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Logits (float32) at all positions that predict a counted token, those tokens, and the number of each one's row."""
    places, wanted, row = next_tokens([r.ids for r in rows], [r.start for r in rows])
    picked = torch.cat([h[p.to(h.device)] for h, p in zip(hidden, places, strict=True)])
    return host.head(picked).float(), torch.cat(wanted).to(picked.device), row.to(picked.device)
