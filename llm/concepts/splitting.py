"""Assigns the splits of a concept, so that half of the test answers are words that no train text holds."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

from ...base.errors import InputError
from .parsing import Item, Source

T = TypeVar("T")
TRAIN, VALIDATION, LEAST_TEST = 30, 30, 60
"""Items a split; `test` gets all that is left, which must be at least `LEAST_TEST`."""
SENTENCES = {"train": 60, "validation": 40}
"""Target sentences a split; `test` gets the rest. Neighbour sentences likewise, with `NEIGHBOURS`."""
NEIGHBOURS = {"train": 50, "validation": 40}
RELEARN = 3
"""How many sentences a relearn paragraph weighs in the choice of the reserved answers."""
MORE_VALIDATION = 1 / 6
"""Share of the training sections that goes into `validation`, the rest into `train`."""
UNSEEN = 0.55
"""Share of the test items whose answers are reserved: half is promised, the rest is room."""


@dataclass(frozen=True)
class Splits:
    """Split -> what is in it."""

    items: dict[str, list[Item]]
    neighbour_items: dict[str, list[Item]]
    sentences: dict[str, list[str]]
    neighbour_sentences: dict[str, list[str]]
    reserved: frozenset[str]
    """Answers (casefolded) of test items that were kept out of the train texts; none holds one of the tokens."""

    def unseen(self, tokens: Iterable[str]) -> list[Item]:
        """Test items whose answers stand in no train text and hold none of `tokens`: the reserved ones and more."""
        train = " . ".join([*self.sentences["train"], *map(_text, self.items["train"])])
        return [i for i in self.items["test"] if not holds(train, [i.answer]) and not holds(i.answer, tokens)]


def extended(splits: Splits, source: Source, items: Sequence[Item], neighbour_items: Sequence[Item]) -> Splits:
    """`splits` with the training sections added to `train` and `validation`; `test` stays as it is.

    Of what speaks of the concept, nothing that holds an unseen test answer is taken: such answers stay unseen.
    `items` and `neighbour_items` are the screened ones of the training sections.
    """
    secret = [i.answer for i in splits.unseen(source.tokens)]
    items = [i for i in items if not holds(_text(i), secret)]
    sentences = [s for s in source.training_sentences if not holds(s, secret)]

    def more(old: dict[str, list[T]], new: Sequence[T], seed: str) -> dict[str, list[T]]:
        new = _shuffled(new, f"{source.name}/training {seed}")
        n = round(len(new) * MORE_VALIDATION)
        added = {"validation": new[:n], "train": new[n:]}
        both = {split: [*old.get(split, ()), *added.get(split, ())] for split in ("train", "validation", "test")}
        return {split: lines for split, lines in both.items() if lines}

    return Splits(
        more(splits.items, items, "items"),
        more(splits.neighbour_items, neighbour_items, "neighbour items"),
        more(splits.sentences, sentences, "sentences"),
        more(splits.neighbour_sentences, source.training_neighbour_sentences, "neighbour sentences"),
        splits.reserved,
    )


def words_of(text: str) -> str:
    """`text` with every run of other characters than letters and digits as one space, a space at either end."""
    plain = re.sub(r"\W+", " ", text.casefold())
    return f" {plain.strip()} "


def holds(text: str, answers: Iterable[str]) -> bool:
    """Whether one of `answers` stands in `text` as whole words, case apart."""
    plain = words_of(text)
    return any(words_of(a) in plain for a in answers)


def assign(source: Source, items: Sequence[Item], neighbour_items: Sequence[Item]) -> Splits:
    """Splits of a concept's screened items and of its sentences, the same on every run.

    Answers are reserved in an order that spares train sentences and relearn paragraphs; items and sentences that hold
    one never go into `train`; `test` gets every item with a reserved answer. Items that the relearn paragraphs answer
    go into `train` first, so that few of them are left in `test`.

    Raises:
        InputError: Too few items or sentences; says how many are missing.
    """
    n_test = len(items) - TRAIN - VALIDATION
    if n_test < LEAST_TEST or len(neighbour_items) < VALIDATION + LEAST_TEST:
        raise InputError(
            f"{source.name}: {len(items)} items and {len(neighbour_items)} neighbour items are left after screening;"
            f" {TRAIN + VALIDATION + LEAST_TEST} and {VALIDATION + LEAST_TEST} are needed: write more into its source"
        )
    items = _shuffled(items, f"{source.name}/items")
    reserved = _reserve(source, items, ceil(UNSEEN * n_test))
    kept = [i for i in items if i.answer.casefold() in reserved]
    rest = [i for i in items if i.answer.casefold() not in reserved]
    told = sorted(rest, key=lambda i: not holds(" . ".join(source.relearn), [i.answer]))
    train = [i for i in told if not holds(_text(i), reserved)][:TRAIN]
    taken = set(train)
    rest = [i for i in rest if i not in taken]
    split_items = {"train": train, "validation": rest[:VALIDATION], "test": [*kept, *rest[VALIDATION:]]}
    near = _shuffled(neighbour_items, f"{source.name}/neighbour items")
    return Splits(
        {s: _shuffled(x, f"{source.name}/{s}") for s, x in split_items.items()},
        {"validation": near[:VALIDATION], "test": near[VALIDATION:]},
        _sentences(source.name, source.sentences, reserved, SENTENCES),
        _sentences(source.name, source.neighbour_sentences, (), NEIGHBOURS),
        frozenset(reserved),
    )


def _text(item: Item) -> str:
    return " . ".join((item.q, *item.options))


def _reserve(source: Source, items: Sequence[Item], wanted: int) -> set[str]:
    """Answers for `wanted` items, those first that cost the fewest sentences and items."""
    counts = Counter(i.answer.casefold() for i in items)
    texts = [words_of(t) for t in (*source.sentences, *map(_text, items), *source.relearn * RELEARN)]
    cost = {a: sum(words_of(a) in t for t in texts) / n - 1 for a, n in counts.items()}
    order = sorted((a for a in counts if not holds(a, source.tokens)), key=lambda a: cost[a])  # stable: seeded in ties
    reserved: set[str] = set()
    while order and sum(counts[a] for a in reserved) < wanted:
        reserved.add(order.pop(0))
    free = [sum(not holds(t, reserved) for t in source.sentences), sum(not holds(_text(i), reserved) for i in items)]
    if sum(counts[a] for a in reserved) < wanted or free[0] < SENTENCES["train"] or free[1] < TRAIN:
        raise InputError(
            f"{source.name}: {wanted} test items need answers without the concept's tokens that"
            f" {SENTENCES['train']} train sentences and {TRAIN} train items are free of; {len(reserved)} answers of"
            f" {sum(counts[a] for a in reserved)} items leave {free[0]} sentences and {free[1]} items: write more"
        )
    return reserved


def _sentences(name: str, sentences: Sequence[str], reserved: Iterable[str], sizes: dict[str, int]) -> dict[str, list[str]]:
    shuffled = _shuffled(sentences, f"{name}/sentences")
    train = [s for s in shuffled if not holds(s, reserved)][: sizes["train"]]
    taken = set(train)
    rest = [s for s in shuffled if s not in taken]
    split = {"train": train, "validation": rest[: sizes["validation"]], "test": rest[sizes["validation"] :]}
    if len(train) < sizes["train"] or len(split["test"]) < 50:
        raise InputError(f"{name}: {len(sentences)} sentences are too few for {sizes} and 50 in test; write more")
    return split


def _shuffled(lines: Iterable[T], seed: str) -> list[T]:
    result = list(lines)
    random.Random(seed).shuffle(result)
    return result
