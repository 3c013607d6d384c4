"""Relearning: how fast fine-tuning on paragraphs about the concept brings the answers back.

Rules: design.md §5, pisces.md §6.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ...base.errors import InputError, MatchedNothing
from ...deactivate.training import LoopConfig, fit_loop
from ..tuning.trained import matrices, training
from .scoring import contains, score_questions
from .texts import cut_text

if TYPE_CHECKING:
    from ...deactivate.concept import Concept, Question
    from ..host import Host

Mode = Literal["full", "lora"]
Credits = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class RelearnConfig:
    """How the attack fine-tunes. Shape after PISCES and EMBER; rates ours, for small models and few tokens."""

    epochs: int = 3
    """Passes over the paragraphs; accuracy is measured before the first and after each."""
    tokens: int = 6000
    """Tokens seen in the whole run, over all epochs."""
    length: int = 128
    """Tokens of a paragraph that are read."""
    batch: int = 4
    """Paragraphs a step."""
    lr_full: float = 5e-5
    """AdamW rate of full fine-tuning (the authors': 1e-5, over more tokens)."""
    lr_lora: float = 5e-4
    """AdamW rate of LoRA."""
    rank: int = 16
    """LoRA rank; its alpha is the same."""
    drop: Literal["texts", "items", "auto"] = "auto"
    """Where a test answer stands in a paragraph: leave out the paragraph, or the item. `auto`: paragraphs, unless
    that leaves fewer than half.
    """
    seed: int = 0
    """Order of paragraphs, initial LoRA factors."""
    every: int = 0
    """Steps between measurements; 0: one after each epoch."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("tokens", 1), ("length", 1), ("batch", 1), ("rank", 1), ("every", 0)):
            if getattr(self, name) < least:
                raise InputError(f"relearn: {name} must be at least {least}, {getattr(self, name)} found")


@dataclass(frozen=True)
class RelearnCurve:
    """Accuracy and margin on the concept's questions as fine-tuning goes on."""

    mode: Mode
    steps: tuple[int, ...]
    """Optimiser steps so far, from 0."""
    tokens: tuple[int, ...]
    """Tokens seen so far, from 0."""
    accuracy: tuple[float, ...]
    margin: tuple[float, ...]
    losses: tuple[float, float]
    """Training loss on all paragraphs before and after."""
    n_items: int
    dropped_items: int
    """Questions left out because their answer stands in a paragraph."""
    n_texts: int
    dropped_texts: int
    """Paragraphs left out because a test answer stands in them."""
    credits: Credits = ((), ())
    """Credit of each question before and after."""

    @property
    def area(self) -> float:
        """Mean accuracy over the tokens seen (trapezoids)."""
        if self.tokens[-1] == 0:
            return self.accuracy[-1]
        pairs = zip(self.tokens, self.tokens[1:], self.accuracy, self.accuracy[1:], strict=False)
        return sum((t1 - t0) * (a0 + a1) / 2 for t0, t1, a0, a1 in pairs) / self.tokens[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the area included."""
        return {**asdict(self), "area": self.area}


def relearn(host: "Host", concept: "Concept", mode: str, config: RelearnConfig | None = None, split: str = "test") -> RelearnCurve:
    """Fine-tunes the host as it stands (edits in force stay in force) on `concept.relearn`, and puts its weights back.

    Raises:
        InputError: The concept has no `relearn` paragraphs or no questions in the split, or the mode is unknown.
        MatchedNothing: Every paragraph, or every question, was left out.
    """
    config = config or RelearnConfig()
    texts, questions, counts = split_answers(concept.require("relearn"), concept.require("questions", split), config.drop)
    curve = relearn_on(host, texts, questions, concept.form, mode, config)
    return dataclasses.replace(curve, dropped_texts=counts[0], dropped_items=counts[1])


def relearn_on(
    host: "Host", texts: Sequence[str], questions: Sequence["Question"], form: str, mode: str, config: RelearnConfig | None = None
) -> RelearnCurve:
    """Fine-tunes the host as it stands on `texts`, measures `questions` on the way, and puts its weights back.

    Nothing is left out: that no answer stands in a text is the caller's business (`split_answers`).

    Raises:
        InputError: The mode is unknown.
        MatchedNothing: No text, or no question.
    """
    config = config or RelearnConfig()
    if mode != "full" and mode != "lora":
        raise InputError(f"relearn: mode must be full or lora, {mode!r} found")
    if not texts:
        raise MatchedNothing("relearn: no texts to train on")
    rows = _budget([cut_text(host, t, config.length) for t in texts], host, config)
    with trainable(host, mode, config) as params:
        curve = _fit(host, form, questions, rows, params, mode, config)
    return RelearnCurve(mode, *curve[:5], len(questions), 0, len(rows), 0, curve[5])


def split_answers(
    paragraphs: Sequence[str], questions: Sequence["Question"], drop: str
) -> tuple[list[str], list["Question"], tuple[int, int]]:
    """Paragraphs and questions such that no answer stands in a paragraph, and how many of each were left out.

    Raises:
        MatchedNothing: Nothing is left of one of them; the other way of dropping may leave something.
    """
    answers = {q.answer.casefold().strip() for q in questions}
    clean = [p for p in paragraphs if not any(contains(p.casefold(), a) for a in answers)]
    if drop == "auto":
        drop = "texts" if 2 * len(clean) >= len(paragraphs) else "items"
    if drop == "texts":
        if not clean:
            raise MatchedNothing("relearn: a test answer stands in every paragraph; write others, or set drop=items")
        return clean, list(questions), (len(paragraphs) - len(clean), 0)
    text = "\n".join(paragraphs).casefold()
    kept = [q for q in questions if not contains(text, q.answer.casefold().strip())]
    if not kept:
        raise MatchedNothing("relearn: every test answer stands in the paragraphs; write others, or set drop=texts")
    return list(paragraphs), kept, (0, len(questions) - len(kept))


def _budget(texts: Sequence[str], host: "Host", config: RelearnConfig) -> list[str]:
    """Paragraphs in seeded order until their tokens, times the epochs, reach the budget."""
    order = list(texts)
    random.Random(config.seed).shuffle(order)
    kept: list[str] = []
    left = config.tokens // config.epochs
    for text in order:
        left -= len(host.token_ids([text])[0])
        if left < 0 and kept:
            break
        kept.append(text)
    return kept


def _fit(
    host: "Host",
    form: str,
    questions: Sequence["Question"],
    rows: Sequence[str],
    params: Mapping[str, nn.Parameter],
    mode: Mode,
    config: RelearnConfig,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[float, float], Credits]:
    batches = [rows[i : i + config.batch] for i in range(0, len(rows), config.batch)]
    tokens = [sum(map(len, host.token_ids(b))) for b in batches]
    every = config.every or len(batches)
    at, seen, accuracy, margin, losses = [], [], [], [], []
    credits: list[tuple[float, ...]] = []

    def look(step: int) -> None:
        scores = score_questions(host, questions, form)
        passes, rest = divmod(step, len(batches))
        at.append(step)
        seen.append(sum(tokens) * passes + sum(tokens[:rest]))
        accuracy.append(scores.accuracy)
        margin.append(scores.margin)
        if step in (0, steps):
            credits.append(tuple(i.credit for i in scores.items))
            with torch.no_grad():
                losses.append(sum(float(host.loss(b)) for b in batches) / len(batches))

    def step_fn(step: int, micro: int) -> torch.Tensor:
        if step % every == 0:
            look(step)
        return host.loss(batches[step % len(batches)])

    lr = config.lr_full if mode == "full" else config.lr_lora
    steps = len(batches) * config.epochs
    fit_loop(step_fn, params, LoopConfig(steps, lr, weight_decay=0.01, seed=config.seed), desc=f"relearn {mode}")
    look(steps)
    return tuple(at), tuple(seen), tuple(accuracy), tuple(margin), (losses[0], losses[-1]), (credits[0], credits[-1])


@contextmanager
def trainable(host: "Host", mode: Mode, config: RelearnConfig) -> Iterator[dict[str, nn.Parameter]]:
    """What may be trained; on leaving, weights, `requires_grad` and modules are as they were, whatever happened."""
    flags = {p: p.requires_grad for p in host.model.parameters()}
    try:
        with _full(host) if mode == "full" else _lora(host, config) as params:
            yield params
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
            p.grad = None


@contextmanager
def _full(host: "Host") -> Iterator[dict[str, nn.Parameter]]:
    params = host.weights("all")
    before = {n: p.detach().clone() for n, p in params.items()}
    try:
        for p in params.values():
            p.requires_grad_(True)
        yield params
    finally:
        with torch.no_grad():
            for n, p in params.items():
                p.copy_(before[n])


@contextmanager
def _lora(host: "Host", config: RelearnConfig) -> Iterator[dict[str, nn.Parameter]]:
    names = matrices(host, ("attention", "mlp"), range(host.n_layers))
    with training(host, names, config.rank, config.rank, 0.0, config.seed) as trained:
        yield dict(trained.params)
