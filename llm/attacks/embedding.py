"""Embedding-space attack (L4): a suffix of free vectors, found by gradient.

Source: Soft Prompt Threats: Attacking Safety Alignment and Unlearning in Open-Source LLMs (Schwinn et al., arXiv:2402.09063). Deviations: Adam in
the place of signed gradient steps; the target is the right option. Free vectors can spell the answer itself, so what counts is the
difference to the same attack aimed at a wrong option.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.errors import InputError
from ...base.running import progress
from ...deactivate.gate import Gate
from .answering import answers, outcome
from .config import EmbeddingConfig, full_budget
from .objective import Objective, gates_of, searched, slot_of
from .protocol import AttackResult, Cost, Level
from .suffixes import drawn, generator, marks

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ..host import Host


@dataclass(frozen=True)
class Embedding:
    """The attack. Success: the right option has the highest mean log-probability behind the vectors, gates in their place."""

    config: EmbeddingConfig = field(default_factory=EmbeddingConfig)

    @property
    def name(self) -> str:
        """`embedding`."""
        return "embedding"

    @property
    def level(self) -> Level:
        """L4: prompts of embeddings."""
        return "L4"

    def run(self, host: "Host", edits: "Sequence[Edit]", concept: "Concept", split: str = "test") -> AttackResult:
        """See `Attack.run`; `found` has the budget curve.

        Raises:
            InputError: A gate that has no score of embeddings.
        """
        from ..evaluation.suite import applied

        begun = time.perf_counter()
        questions = concept.require("questions", split)
        which = drawn(len(questions), self.config)
        gates = gates_of(edits, self.config)
        if other := [e.name for e in edits if e.gate is not None and not isinstance(e.gate, Gate)]:
            raise InputError(f"embedding: the gate of {', '.join(other)} reads tokens, not vectors")
        traces: list[tuple[Objective, list[tuple[int, Tensor, float]]]] = []
        with searched(host, edits, gates):
            for i in progress(which if self.config.steps else [], desc=self.name, unit="question", inner=True):
                objective = Objective(host, slot_of(host, questions[i], concept.form), self.config, gates)
                traces.append((objective, self.search(objective, generator(self.config.seed, questions[i]))))
        with applied(host, edits):
            before = answers(host, questions, concept.form)
        at = [[_won(host, edits, objective, s) for _, s, _ in trace] for objective, trace in traces]
        hits: list[bool | None] = [None] * len(questions)
        for n, i in enumerate(which):
            hits[i] = any(at[n]) if at else before[i]
        cost = Cost(sum(o.queries for o, _ in traces), self.config.steps * len(traces), 0, time.perf_counter() - begun)
        told = {"curve": _curve(traces, at), "gates": len(gates), "attacked": which, "lower bound": not full_budget(self.config)}
        return outcome(self.name, self.level, before, {"searched": hits}, cost, told)

    def search(self, objective: Objective, gen: torch.Generator) -> list[tuple[int, Tensor, float]]:
        """(steps, the vectors `[k d]`, their loss) at the points of the budget curve."""
        c, matrix = self.config, objective.matrix
        first = torch.randint(len(matrix), (c.length,), generator=gen)
        rms = float(objective.embed(first).float().pow(2).mean().sqrt())
        e = objective.embed(first).detach().float().clone().requires_grad_()
        optimizer = torch.optim.Adam([e], c.lr * rms)
        out: list[tuple[int, Tensor, float]] = []
        best: tuple[float, Tensor] | None = None
        at = marks(c.steps, c.points)
        for step in range(c.steps + 1):
            with torch.enable_grad():
                loss = objective.loss(e.to(objective.host.dtype)[None])[0]
                if step < c.steps:
                    (e.grad,) = torch.autograd.grad(loss, [e])
            if best is None or float(loss.detach()) < best[0]:
                best = float(loss.detach()), e.detach().clone()
            if step in at:
                out.append((step, best[1], best[0]))
            if step < c.steps:
                optimizer.step()
        return out


@torch.no_grad()
def _won(host: "Host", edits: "Sequence[Edit]", objective: Objective, suffix: Float[Tensor, "k d"]) -> bool:
    """Whether the right option wins behind the vectors, under the edits that fire for them."""
    from ..evaluation.suite import applied

    vectors = suffix.to(host.dtype)[None]
    fired = []
    for edit in edits:
        if edit.gate is None:
            fired.append(edit)
        elif isinstance(edit.gate, Gate) and bool(edit.gate.fires(objective.gate_score(edit.gate, vectors).cpu())[0]):
            fired.append(replace(edit, gate=None))
    with applied(host, fired):
        means = objective.means(vectors)[0]
    return int((means >= means[objective.slot.right]).sum()) == 1


def _curve(traces: Sequence[tuple[Objective, Sequence[tuple[int, Tensor, float]]]], at: Sequence[Sequence[bool]]) -> list[dict[str, Any]]:
    if not traces:
        return []
    n = len(traces)
    return [
        {"budget": steps, "loss": sum(t[p][2] for _, t in traces) / n, "rate": sum(any(won[: p + 1]) for won in at) / n}
        for p, (steps, _, _) in enumerate(traces[0][1])
    ]
