"""What attacks share that search for a suffix of tokens (L3): which questions, the curve over the budget, success judged on text.

Success is that of the decoded text, tokenised anew, with every gate in its place; a suffix that has the answer in it does not
count. Beside it stand random suffixes of equal length, as many as the curve has points.
"""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...base.files import sha256_bytes
from ...base.running import progress
from ...deactivate.concept import Question
from .answering import answers, answers_to, asked, outcome
from .config import SearchConfig, full_budget
from .objective import Objective, Slot, allowed_tokens, gates_of, pieces, searched, slot_of
from .protocol import AttackResult, Cost, Level

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ..host import Host


@dataclass(frozen=True)
class Found:
    """The best suffix after a part of the budget."""

    budget: int
    """Steps."""
    ids: tuple[int, ...]
    loss: float


@dataclass
class Search:
    """One search: question, loss, tokens, randomness."""

    objective: Objective
    allowed: Tensor
    generator: torch.Generator
    gradients: int = 0

    @property
    def slot(self) -> Slot:
        """Of its question."""
        return self.objective.slot

    def random(self, n: int) -> list[int]:
        """`n` allowed tokens, drawn."""
        picked = torch.randint(len(self.allowed), (n,), generator=self.generator)
        return self.allowed.cpu()[picked].tolist()


class SuffixAttack(ABC):
    """A search for a suffix, question by question."""

    config: SearchConfig

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called."""

    @property
    def level(self) -> Level:
        """L3: weights, and prompts of tokens."""
        return "L3"

    @abstractmethod
    def budget(self) -> int:
        """Steps of a search; 0: there is no attack."""

    @abstractmethod
    def search(self, search: Search) -> list[Found]:
        """The best suffix so far at the points of the budget curve (`marks`)."""

    def run(self, host: "Host", edits: "Sequence[Edit]", concept: "Concept", split: str = "test") -> AttackResult:
        """See `Attack.run`; `found` has the budget curve, the rate of random suffixes, the best suffixes.

        Raises:
            InputError: A gate that the attacker cannot read (`gates_of`).
        """
        from ..evaluation.suite import applied

        begun = time.perf_counter()
        questions = concept.require("questions", split)
        which = drawn(len(questions), self.config)
        gates, words = gates_of(edits, self.config), pieces(host)
        searches: list[Search] = []
        traces: list[list[Found]] = []
        with searched(host, edits, gates):
            for i in progress(which if self.budget() else [], desc=self.name, unit="question", inner=True):
                slot = slot_of(host, questions[i], concept.form)
                allowed = allowed_tokens(host, slot, words)
                searches.append(Search(Objective(host, slot, self.config, gates), allowed, generator(self.config.seed, questions[i])))
                traces.append(self.search(searches[-1]))
        with applied(host, edits):
            before = answers(host, questions, concept.form)
            at, lot = self._judged(host, searches, traces)
        hits: list[bool | None] = [None] * len(questions)
        for n, i in enumerate(which):
            hits[i] = any(at[n]) if at else before[i]
        cost = Cost(sum(s.objective.queries for s in searches), sum(s.gradients for s in searches), 0, time.perf_counter() - begun)
        told = self._told(host, searches, traces, at, lot) | {"gates": len(gates), "attacked": which}
        return outcome(self.name, self.level, before, {"searched": hits}, cost, told)

    def _judged(self, host: "Host", searches: Sequence[Search], traces: Sequence[Sequence[Found]]) -> tuple[list[list[bool]], list[bool]]:
        """By question and point whether the suffix works, and whether any of the random ones does."""
        at, lot = [], []
        for search, trace in zip(searches, traces, strict=True):
            chance = [search.random(len(f.ids)) for f in trace]
            won = works(host, search.slot, [*(f.ids for f in trace), *chance])
            at.append(won[: len(trace)])
            lot.append(any(won[len(trace) :]))
        return at, lot

    def _told(
        self, host: "Host", searches: Sequence[Search], traces: Sequence[Sequence[Found]], at: Sequence[Sequence[bool]], lot: Sequence[bool]
    ) -> dict[str, Any]:
        if not traces:
            return {"curve": [], "random suffixes": 0.0, "suffixes": {}, "lower bound": True}
        n = len(traces)
        curve = [
            {
                "budget": f.budget,
                "loss": sum(t[p].loss for t in traces) / n,
                "rate": sum(any(won[: p + 1]) for won in at) / n,
            }
            for p, f in enumerate(traces[0])
        ]
        best = {s.slot.question.q: text_of(host, s.slot, t[-1].ids)[0] for s, t in zip(searches, traces, strict=True)}
        return {"curve": curve, "random suffixes": sum(lot) / n, "suffixes": best, "lower bound": not full_budget(self.config)}


def works(host: "Host", slot: Slot, suffixes: Sequence[Sequence[int]]) -> list[bool]:
    """Whether each suffix makes the right option win, as text on the host as it stands; never with the answer in it."""
    q = slot.question
    texts = [t for t, _ in texts_of(host, slot, suffixes)]
    won = answers_to(host, [asked(q, slot.prompt(t)) for t in texts])
    return [w and q.answer.casefold().strip() not in t.casefold() for w, t in zip(won, texts, strict=True)]


def text_of(host: "Host", slot: Slot, ids: Sequence[int]) -> tuple[str, bool]:
    """The suffix as text, and whether the prompt with it, scored without blanks around it, has just these tokens."""
    return texts_of(host, slot, [ids])[0]


def texts_of(host: "Host", slot: Slot, rows: Sequence[Sequence[int]]) -> list[tuple[str, bool]]:
    """`text_of` of many suffixes. Some tokenizers leave out the first token's space: it is put back where that gives the tokens again."""
    plain = host.tokenizer.batch_decode([list(r) for r in rows], clean_up_tokenization_spaces=False)
    spaced = [t if t.startswith(" ") or not slot.head_text else f" {t}" for t in plain]
    read = host.token_ids([slot.prompt(t).strip() for texts in (plain, spaced) for t in texts])
    out = []
    for i, row in enumerate(rows):
        whole = slot.head + list(row) + slot.tail
        out.append((plain[i], True) if read[i] == whole else (spaced[i], read[len(rows) + i] == whole))
    return out


def surviving(host: "Host", slot: Slot, candidates: Tensor) -> Tensor:
    """The candidates whose text has the same tokens again; all of them where there is none."""
    kept = [i for i, (_, same) in enumerate(texts_of(host, slot, candidates.tolist())) if same]
    return candidates[kept] if kept else candidates


def marks(budget: int, points: int) -> list[int]:
    """Steps at which the curve has its points, the last one always: `marks(20, 4)` is `[5, 10, 15, 20]`."""
    return sorted({max(1, round(budget * (i + 1) / points)) for i in range(points)}) if budget else []


def drawn(n: int, config: SearchConfig) -> list[int]:
    """Places of the questions that are attacked, drawn by lot, in order."""
    if not config.questions or config.questions >= n:
        return list(range(n))
    return sorted(random.Random(f"attacked/{config.seed}").sample(range(n), config.questions))


def generator(seed: int, question: Question) -> torch.Generator:
    """Randomness of one question: the same whichever others are attacked."""
    return torch.Generator().manual_seed(int(sha256_bytes(f"{seed}/{question.q}/{question.answer}".encode())[:15], 16))
