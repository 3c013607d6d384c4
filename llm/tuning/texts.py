"""Texts of a concept as rows of token ids, and batches of them that depend on nothing but their number."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ...base.errors import InputError, MatchedNothing
from ..evaluation.scoring import TEMPLATES
from ..pools import choose, general_texts

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ..host import Host
    from .config import TuningConfig

BUCKET = 8
"""Batches over which rows are sorted by length."""


@dataclass(frozen=True)
class Row:
    """A text as token ids, BOS included where the tokenizer adds one."""

    ids: tuple[int, ...]
    start: int = 1
    """First token that counts where the likelihood of what follows a prompt is trained; at least 1."""

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, counted: bool) -> slice:
        """All positions, or those that predict a token that counts."""
        return slice(self.start - 1, len(self.ids) - 1) if counted else slice(0, len(self.ids))


class Batches:
    """Batches of row numbers, pass after pass, each pass in an order of its own, rows of like length together.

    `batches[i]` is the i-th batch from the start, for any i: what a resumed run needs.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: str) -> None:
        if not lengths:
            raise MatchedNothing("no rows to make batches of")
        self.lengths, self.size, self.seed = tuple(lengths), size, seed
        self.per_pass = -(-len(self.lengths) // size)
        self._of = lru_cache(maxsize=2)(self._pass)

    def __getitem__(self, i: int) -> list[int]:
        return self._of(i // self.per_pass)[i % self.per_pass]

    def _pass(self, number: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{number}")
        order = rng.sample(range(len(self.lengths)), len(self.lengths))
        span = BUCKET * self.size
        whole: list[list[int]] = []
        for start in range(0, len(order), span):
            near = sorted(order[start : start + span], key=lambda r: self.lengths[r])
            found = [near[k : k + self.size] for k in range(0, len(near), self.size)]
            rng.shuffle(found)
            whole += found
        return whole


def forget_rows(host: "Host", concept: "Concept", config: "TuningConfig") -> list[Row]:
    """Rows of what is unlearnt.

    Raises:
        InputError: The concept lacks a field that `forget` names; says how to add it, or what else to set.
    """
    rows: list[Row] = []
    for source in config.forget:
        way_out = f"forget={_others(config.forget, source, 'questions' if source == 'target' else 'target')}"
        if source == "questions":
            rows += _answered(host, concept, "questions", config, way_out)
            continue
        found = _required(concept, source, None if source == "relearn" else "train", way_out)
        rows += _rows(host, choose(found, config.texts, config.seed), config.length)
    return rows


def retain_pools(host: "Host", concept: "Concept", config: "TuningConfig", preserve: Sequence[str] = ()) -> list[list[Row]]:
    """Rows of what must stay, a list for each source; `preserve` is one more.

    Raises:
        InputError: The concept lacks a field that `retain` names; says how to add it, or what else to set.
    """
    pools: list[list[Row]] = []
    for source in config.retain:
        way_out = f"retain={_others(config.retain, source, 'general')}"
        if source == "questions":
            pools.append(_answered(host, concept, "neighbour_questions", config, way_out))
        elif source == "neighbours":
            found = _required(concept, "neighbours", "train", way_out)
            pools.append(_rows(host, choose(found, config.texts, config.seed), config.length))
        else:
            pools.append(_rows(host, general_texts(concept, "train", config.texts, config.seed), config.length))
    if preserve:
        pools.append(_rows(host, choose(preserve, config.texts, config.seed), config.length))
    return pools


class Mixed:
    """Batches in which every pool has an equal share, to within one row; the i-th depends on nothing but i."""

    def __init__(self, pools: Sequence[Sequence[Row]], size: int, seed: str) -> None:
        self.pools, self.size = pools, size
        self.order = [Batches([len(r) for r in pool], 1, f"{seed}/{k}") for k, pool in enumerate(pools)]

    def __getitem__(self, i: int) -> list[Row]:
        found = []
        for n in range(i * self.size, (i + 1) * self.size):
            k, turn = n % len(self.pools), n // len(self.pools)
            found.append(self.pools[k][self.order[k][turn][0]])
        return found


def _others(given: Sequence[str], missing: str, fallback: str) -> str:
    return "[" + ", ".join([s for s in given if s != missing] or [fallback]) + "]"


def _required(concept: "Concept", name: str, split: str | None, way_out: str) -> Sequence[str]:
    try:
        return concept.require(name, split)
    except InputError as e:
        raise InputError(f"{e}; or leave it out (--set {way_out})") from None


def _rows(host: "Host", texts: Sequence[str], length: int) -> list[Row]:
    rows = [Row(tuple(ids[:length])) for ids in host.token_ids(list(texts))] if texts else []
    kept = [r for r in rows if len(r) > 1]
    if not kept:
        raise MatchedNothing("no text of two tokens or more in a pool that is trained on")
    return kept


def _answered(host: "Host", concept: "Concept", name: str, config: "TuningConfig", way_out: str) -> list[Row]:
    """Questions of `train` with their answers, as they are scored; what counts is the answer."""
    try:
        items = choose(concept.require(name, "train"), config.texts, config.seed)
    except InputError as e:
        raise InputError(f"{e}; or leave it out (--set {way_out})") from None
    prompts = [TEMPLATES[concept.form].format(q=i.q.strip()) for i in items]
    alone = host.token_ids(prompts)
    whole = host.token_ids([f"{p} {i.answer.strip()}" for p, i in zip(prompts, items, strict=True)])
    rows = []
    for before, ids in zip(alone, whole, strict=True):
        start = next((n for n, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))
        if max(1, start) < len(ids) <= config.length:
            rows.append(Row(tuple(ids), max(1, start)))
    if not rows:
        raise MatchedNothing(f"{name}.train of {concept.name!r}: no question fits into length={config.length} tokens")
    return rows
