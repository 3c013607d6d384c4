"""Relearning (L6): fine-tuning on paragraphs about the concept without the answers, and asking for the answers.

Source: Precise In-Parameter Concept Erasure in Large Language Models (Gur-Arieh et al., arXiv:2505.22586), the robustness
experiment: full fine-tuning and LoRA. Deviations: rates for small models; learning rates are swept, and the attacker takes
the best, which he picks on the very items that are reported: an upper bound of what the attack achieves.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...base.errors import InputError
from ...deactivate.evaluation.statistics import wilson
from ...deactivate.evaluation.value import Value
from ..evaluation.relearn import Mode, RelearnConfig, RelearnCurve, relearn_on, split_answers
from ..evaluation.scoring import score_questions
from .curves import area, half_recovery
from .protocol import AttackResult, Cost, Level

if TYPE_CHECKING:
    from ...deactivate.concept import Concept, Question
    from ...deactivate.edit import Edit
    from ..host import Host


@dataclass(frozen=True)
class RelearningConfig:
    """Which fine-tunings are tried."""

    modes: tuple[Mode, ...] = ("full", "lora")
    """All weights, or LoRA adapters."""
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    """Learning rates, in multiples of those in `training`."""
    training: RelearnConfig = field(default_factory=RelearnConfig)
    """Steps, batch, rates of each mode, how often accuracy is measured."""

    def __post_init__(self) -> None:
        if not self.modes or any(m not in ("full", "lora") for m in self.modes):
            raise InputError(f"relearning: modes must be full, lora or both, {self.modes} found")
        if not self.rates or any(not r > 0 for r in self.rates):
            raise InputError(f"relearning: rates must be numbers above 0, {self.rates} found")

    def variants(self) -> list[tuple[Mode, float, RelearnConfig]]:
        """(mode, multiple, settings) of each fine-tuning."""
        c = self.training
        return [
            (m, r, dataclasses.replace(c, lr_full=c.lr_full * r, lr_lora=c.lr_lora * r)) for m in self.modes for r in self.rates
        ]  # fmt: skip


@dataclass(frozen=True)
class Relearning:
    """The attack. `success` is the accuracy at the end of the variant that ends highest; ties go to the larger area."""

    config: RelearningConfig = field(default_factory=RelearningConfig)

    @property
    def name(self) -> str:
        """`relearning`."""
        return "relearning"

    @property
    def level(self) -> Level:
        """L6: the attacker trains."""
        return "L6"

    def run(self, host: "Host", edits: "Sequence[Edit]", concept: "Concept", split: str = "test") -> AttackResult:
        """See `Attack.run`; `found` has every variant's curve, its area, and its steps to half recovery of the unedited host's accuracy.

        Raises:
            InputError: The concept has no `relearn` paragraphs, or no questions in the split; an edit behind a gate.
            MatchedNothing: Every paragraph or every question has a test answer in it.
        """
        if gated := [e.name for e in edits if e.gate is not None]:
            raise InputError(f"relearning: {', '.join(gated)} lies behind a gate: whoever may train takes it away and has the base")
        begun = time.perf_counter()
        every = concept.require("questions", split)
        texts, questions, _ = split_answers(concept.require("relearn"), every, self.config.training.drop)
        base = score_questions(host, questions, concept.form).accuracy
        curves = relearning_curves(host, edits, texts, questions, concept.form, self.config)
        seconds = time.perf_counter() - begun
        told = [described(mode, rate, curve, base) for mode, rate, curve in curves]
        best = max(range(len(told)), key=lambda i: (curves[i][2].accuracy[-1], told[i]["area"]))
        first, last = curves[best][2].accuracy[0], curves[best][2].accuracy[-1]
        n = len(questions)
        cost = Cost(0, sum(c.steps[-1] for *_, c in curves), sum(c.tokens[-1] for *_, c in curves), seconds)
        found = {"best": told[best], "variants": told, "base": base}
        credits = dict(zip(questions, zip(*curves[best][2].credits, strict=True), strict=True))
        recovered = tuple(None if q not in credits else credits[q][0] < 1.0 == credits[q][1] for q in every)
        return AttackResult(self.name, self.level, _rate(first, n), _rate(last, n), cost, found, recovered)


def relearning_curves(
    host: "Host", edits: "Sequence[Edit]", texts: Sequence[str], questions: "Sequence[Question]", form: str, config: RelearningConfig
) -> list[tuple[Mode, float, RelearnCurve]]:
    """(mode, multiple of the learning rate, curve) of each variant, each from the host with `edits` as it stands."""
    from ..evaluation.suite import applied

    out = []
    for mode, rate, training in config.variants():
        with applied(host, edits):
            out.append((mode, rate, relearn_on(host, texts, questions, form, mode, training)))
    return out


def described(mode: Mode, rate: float, curve: RelearnCurve, base: float) -> dict[str, Any]:
    """A curve in plain values, with what it says: area over steps, and steps to half recovery of `base`."""
    steps = curve.steps
    return {
        **curve.to_dict(),
        "mode": mode,
        "rate": rate,
        "area": area(steps, curve.accuracy),
        "half_recovery": half_recovery(steps, curve.accuracy, base),
    }


def _rate(accuracy: float, n: int) -> Value:
    """Wilson where the accuracy is a count of items; bare where ties were shared."""
    hits = round(accuracy * n)
    return wilson(hits, n) if abs(hits - accuracy * n) < 1e-9 else Value(accuracy, n=n, unit="items")
