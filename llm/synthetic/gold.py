"""An erased model beside «gold»: models of the same recipe that never saw the domain.

What is compared: truth ratios (KS distance, against the distances among gold seeds), and relearning: all are fine-tuned on
the told half of the domain's facts and asked for the other half. What the erased model says sooner than gold it had kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from ...base.errors import InputError, MatchedNothing
from ...deactivate.concept import Question
from ..attacks.curves import leak
from ..attacks.relearning import RelearningConfig, described, relearning_curves
from ..evaluation.relearn import Mode, RelearnConfig, RelearnCurve
from ..evaluation.scoring import Scores, score_questions
from ..evaluation.truth_ratio import gold_distance, truth_ratios
from .concepts import paragraphs, questions
from .templates import Form
from .world import Fact, World, packaged_world

if TYPE_CHECKING:
    from ...deactivate.edit import Edit
    from ..host import Host

_TRAINING = RelearnConfig(epochs=10, tokens=60_000, batch=8, lr_full=1e-3, lr_lora=5e-3, rank=8, every=10)


@dataclass(frozen=True)
class GoldConfig:
    """How the two are compared."""

    forms: tuple[Form, ...] = ("question", "cloze")
    """Forms whose truth ratios are compared, each by itself, in held-out templates."""
    modes: tuple[Mode, ...] = ("full",)
    """Fine-tunings; none: no relearning."""
    training: RelearnConfig = _TRAINING
    """Of the relearning: rates for a model of a million parameters."""

    def __post_init__(self) -> None:
        if not self.forms or any(f not in ("question", "cloze") for f in self.forms):
            raise InputError(f"gold: forms must be question, cloze or both, {self.forms} found")


def items(facts: Sequence[Fact], form: Form, seed: int = 0) -> list[Question]:
    """The facts as choice questions in held-out templates of the `test` split."""
    return [Question(q["q"], tuple(q["options"]), q["answer"]) for q in questions(facts, "test", form, seed=seed)]


def compare_with_gold(
    host: "Host",
    edits: "Sequence[Edit]",
    golds: "Sequence[Host]",
    domain: str,
    config: GoldConfig | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """The host unedited (identity), with its edits, and the gold models, on the facts of a domain.

    Returns:
        `rows`: for each state and form accuracy over all facts, over told and untold ones, and the median truth ratio;
        `distance`: form -> state -> `GoldDistance` as plain values; `relearning`: mode -> state -> curve, with the area,
        the steps to half recovery of the unedited host's accuracy, and the leak against the mean of the gold curves.

    Raises:
        UnknownName: No such domain.
        MatchedNothing: No gold model.
    """
    from ..evaluation.suite import applied

    config, world = config or GoldConfig(), world or packaged_world()
    facts = world.of(domain)
    if not golds:
        raise MatchedNothing("gold: name at least one model that was trained without the domain")
    states: dict[str, tuple[Host, Sequence[Edit]]] = {"base": (host, ())}
    if edits:
        states["edited"] = host, edits
    states |= {f"gold {i}": (g, ()) for i, g in enumerate(golds)}
    scores: dict[str, dict[str, Scores]] = {}
    for name, (one, its) in states.items():
        with applied(one, its):
            scores[name] = {f: score_questions(one, items(facts, f, world.seed), f) for f in config.forms}
    found: dict[str, Any] = {
        "domain": domain,
        "n": len(facts),
        "rows": {name: {f: _row(s, facts) for f, s in by_form.items()} for name, by_form in scores.items()},
        "distance": {f: _distances(scores, f) for f in config.forms},
        "note": "A KS distance within the spread of gold seeds does not show that the two are equal: there are too few facts for that.",
    }
    if config.modes:
        found["relearning"] = _relearning(states, facts, config, world)
    return found


def _row(scores: Scores, facts: Sequence[Fact]) -> dict[str, float]:
    halves = {"told": True, "untold": False}
    parts = {n: Scores(tuple(i for i, f in zip(scores.items, facts, strict=True) if f.told == told)) for n, told in halves.items()}
    return {
        "accuracy": scores.accuracy,
        **{f"accuracy_{n}": p.accuracy for n, p in parts.items()},
        "chance": scores.chance,
        "margin": scores.margin,
        "truth_ratio": median(truth_ratios(scores)),
    }


def _distances(scores: Mapping[str, Mapping[str, Scores]], form: str) -> dict[str, Any]:
    ratios = {name: truth_ratios(by_form[form]) for name, by_form in scores.items()}
    gold = [r for name, r in ratios.items() if name.startswith("gold ")]
    return {name: gold_distance(r, gold).to_dict() for name, r in ratios.items() if not name.startswith("gold ")}


def _relearning(
    states: "Mapping[str, tuple[Host, Sequence[Edit]]]", facts: Sequence[Fact], config: GoldConfig, world: World
) -> dict[str, Any]:
    texts = paragraphs([f for f in facts if f.told], world.seed)
    asked = items([f for f in facts if not f.told], "question", world.seed)
    base_host = states["base"][0]
    base = score_questions(base_host, asked, "question").accuracy
    plan = RelearningConfig(config.modes, (1.0,), config.training)
    curves: dict[Mode, dict[str, RelearnCurve]] = {m: {} for m in config.modes}
    for name, (host, edits) in states.items():
        for mode, _, curve in relearning_curves(host, edits, texts, asked, "question", plan):
            curves[mode][name] = curve
    return {mode: _beside_gold(by_state, mode, base) for mode, by_state in curves.items()}


def _beside_gold(curves: Mapping[str, RelearnCurve], mode: Mode, base: float) -> dict[str, Any]:
    gold = mean_curve([c for name, c in curves.items() if name.startswith("gold ")])
    out = {}
    for name, curve in curves.items():
        out[name] = {**described(mode, 1.0, curve, base), "leak": leak(curve.steps, curve.accuracy, gold.steps, gold.accuracy)}
    return out


def mean_curve(curves: Sequence[RelearnCurve]) -> RelearnCurve:
    """Mean accuracy and margin of curves over the same steps.

    Raises:
        InputError: No curves, or curves over other steps.
    """
    if not curves or any(c.steps != curves[0].steps for c in curves):
        raise InputError("relearning: curves of gold must run over the same steps; use one tokenizer and one setting")
    n = len(curves)
    accuracy = tuple(sum(a) / n for a in zip(*(c.accuracy for c in curves), strict=True))
    margin = tuple(sum(m) / n for m in zip(*(c.margin for c in curves), strict=True))
    return replace(curves[0], accuracy=accuracy, margin=margin)
