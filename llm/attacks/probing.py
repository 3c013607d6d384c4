"""Probes (L5): is the answer in the hidden states, layer by layer, though the model does not say it?

A probe sees the state at the end of a prompt with one of its options, less the mean over the question's options, and tells
right options from wrong ones; it learns that from train questions. A question whose options stand together in one of these is
not tried: there the probe was told the answer. Control after Designing and Interpreting Probes with
Control Tasks (Hewitt & Liang, 2019): the same probe taught that an option drawn by lot is the right one.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...base.errors import InputError, MatchedNothing
from ...deactivate.concept import Question
from .answering import answers, outcome, prompt_of
from .config import ProbesConfig
from .protocol import AttackResult, Cost, Level
from .readout import chosen_layers, last_states

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ..host import Host

LEAST = 2
"""Train questions without which there is nothing to learn."""


def fit_probe(x: Float[Tensor, "n d"], y: Float[Tensor, " n"], kind: str, config: ProbesConfig) -> Callable[[Tensor], Tensor]:
    """A scorer of rows `[m d] -> [m]` that is high where y is 1: logistic, classes balanced, on standardised columns."""
    mean, scale = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(config.seed)
        wide = nn.Sequential(nn.Linear(x.shape[1], config.hidden), nn.GELU(), nn.Linear(config.hidden, 1))
        net: nn.Module = nn.Linear(x.shape[1], 1) if kind == "linear" else wide
        optimizer = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
        weight = (len(y) - y.sum()) / y.sum().clamp_min(1)
        for _ in range(config.steps):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net((x - mean) / scale)[:, 0], y, pos_weight=weight).backward()
            optimizer.step()

    @torch.no_grad()
    def score(rows: Tensor) -> Tensor:
        return net((rows - mean) / scale)[:, 0]

    return score


@dataclass(frozen=True)
class _Read:
    """States of questions with each of their options."""

    states: list[Tensor]
    """[options layers d] a question, less their mean over its options."""
    right: list[int]

    def some(self, which: Sequence[int]) -> "_Read":
        """Of these questions."""
        return _Read([self.states[i] for i in which], [self.right[i] for i in which])


@dataclass(frozen=True)
class Probes:
    """The attack: for each kind of probe, the layer that reads held-out train questions best, taught on all of them."""

    config: ProbesConfig = field(default_factory=ProbesConfig)

    @property
    def name(self) -> str:
        """`probes`."""
        return "probes"

    @property
    def level(self) -> Level:
        """L5: the attacker reads hidden states."""
        return "L5"

    def run(self, host: "Host", edits: "Sequence[Edit]", concept: "Concept", split: str = "test") -> AttackResult:
        """See `Attack.run`; `found` has each kind's accuracy by layer on the questions attacked, and that of the control.

        Raises:
            InputError: Fewer than two train questions.
            MatchedNothing: All questions have the options of a train question.
        """
        from ..evaluation.suite import applied

        begun = time.perf_counter()
        questions, known = concept.require("questions", split), concept.require("questions", "train")
        if len(known) < LEAST:
            raise InputError(f"probes: {concept.name!r} has {len(known)} train question; a probe learns from at least {LEAST}")
        layers = chosen_layers(host, self.config.layers)
        told = {frozenset(q.options) for q in known}
        tried = [frozenset(q.options) not in told for q in questions]
        if not any(tried):
            raise MatchedNothing(
                f"probes: every question has the options of a train question, which tells a probe its answer: {questions[0].q!r}"
            )
        with applied(host, edits):
            before = answers(host, questions, concept.form)
            read, taught = (_states(host, pool, concept.form, layers) for pool in (questions, known))
        hits, found = {}, {}
        for kind in self.config.kinds:
            best = self._layer(taught, len(layers), kind)
            by_layer = [_mean(list(compress(self._hits(taught, read, i, kind), tried))) for i in range(len(layers))]
            hits[kind] = [h if t else None for h, t in zip(self._hits(taught, read, best, kind), tried, strict=True)]
            lot = _Read(taught.states, [_lot(i, len(s), self.config.seed) for i, s in enumerate(taught.states)])
            found[kind] = {
                "layer": layers[best], "layers": layers, "by layer": by_layer,
                "control": _mean(list(compress(self._hits(lot, read, best, kind), tried))),
            }  # fmt: skip
        return outcome(self.name, self.level, before, hits, Cost(seconds=time.perf_counter() - begun), {"probes": found})

    def _layer(self, taught: _Read, n_layers: int, kind: str) -> int:
        """The place of the layer that reads a held-out quarter best (all of them where that leaves too few); the first of equals."""
        order = list(range(len(taught.right)))
        random.Random(f"probes/{self.config.seed}").shuffle(order)
        held = order[: len(order) // 4]
        fit, judged = (taught.some(order[len(held) :]), taught.some(held)) if held else (taught, taught)
        return max(range(n_layers), key=lambda i: _mean(self._hits(fit, judged, i, kind)))

    def _hits(self, taught: _Read, read: _Read, layer: int, kind: str) -> list[bool]:
        """By question of `read`, whether a probe taught on `taught` finds the right option best alone."""
        x = torch.cat([s[:, layer] for s in taught.states])
        y = torch.cat([torch.arange(len(s)) == r for s, r in zip(taught.states, taught.right, strict=True)]).float()
        score = fit_probe(x, y, kind, self.config)
        scores = [score(s[:, layer]) for s in read.states]
        return [int((s >= s[r]).sum()) == 1 for s, r in zip(scores, read.right, strict=True)]


def _states(host: "Host", questions: Sequence[Question], form: str, layers: Sequence[int]) -> _Read:
    texts = [f"{prompt_of(q, form)} {o.strip()}" for q in questions for o in q.options]
    each = last_states(host, texts, layers).split([len(q.options) for q in questions])
    return _Read([s - s.mean(0, keepdim=True) for s in each], [q.options.index(q.answer) for q in questions])


def _lot(i: int, n: int, seed: int) -> int:
    return random.Random(f"lot/{seed}/{i}").randrange(n)


def _mean(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
