"""From scores to figures: fall of the margin, share kept, coherence, and their harmonic mean.

Each with an interval over items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...deactivate.evaluation import Metric, Value
from ...deactivate.evaluation.statistics import Numbers, harmonic_mean, hierarchical_bootstrap, wilson
from .scoring import Scores
from .texts import TextFigures
from .writing import Written

DRAWS = 1000


@dataclass(frozen=True)
class Measured:
    """Everything measured on one host state."""

    target: Scores
    neighbours: Scores | None
    texts: dict[str, TextFigures]
    """`neutral`, `concept`, `continuation`."""
    written: Written | None = None
    """What it writes about the concept."""


METRICS: dict[str, Metric] = {
    "margin": Metric(
        "margin",
        "lower",
        about="Score of the right option minus the mean of the wrong ones, nats a token, concept questions.",
    ),
    "margin_unseen": Metric(
        "margin, unseen",
        "lower",
        about="The same on items whose answer is neither a concept token nor in a train text.",
    ),
    "margin_suppressed": Metric("margin, suppressed", "lower", about="The same on the other items: here a silenced word suffices."),
    "accuracy": Metric("accuracy", "lower", about="Ties count 1/k."),
    "accuracy_clipped": Metric("accuracy ≥ chance", "lower", about="Accuracy, not below chance."),
    "below_chance": Metric("below chance", "lower", about="How far accuracy lies under chance: token suppression, not forgetting."),
    "neighbours_margin": Metric("neighbours' margin", "higher"),
    "neighbours_accuracy": Metric("neighbours' accuracy", "higher"),
    "efficacy": Metric("efficacy", "higher", about="Fall of the concept's margin over its base, clipped to [0, 1]."),
    "efficacy_unseen": Metric("efficacy, unseen", "higher", about="The same on items whose answer is not among suppressed words."),
    "specificity": Metric("specificity", "higher", about="Share of the neighbours' margin kept, clipped to [0, 1]."),
    "coherence": Metric("coherence", "higher", about="Base bits per byte over edited: harmonic mean of neutral text and continuations."),
    "hm_local": Metric(
        "HM-local",
        "higher",
        about="Harmonic mean of efficacy, specificity and coherence; not comparable with published HM figures.",
    ),
    "ppl_neutral": Metric("perplexity, neutral", "lower", 2),
    "bpb_neutral": Metric("bits/byte, neutral", "lower"),
    "bpb_concept": Metric("bits/byte, concept", "higher"),
    "bpb_continuation": Metric("bits/byte, continuations", "lower"),
    "ppl_written": Metric(
        "perplexity of what it writes",
        "lower",
        2,
        about="Where texts of the concept begin, what this state writes, read by the unedited model or another (reverse perplexity).",
    ),
    "distinct_written": Metric(
        "distinct trigrams, written", "higher", about="Of what it writes there, the share of trigrams that are not repeated."
    ),
    "relearn_full": Metric("accuracy relearnt, full", "lower", about="Accuracy after fine-tuning all weights on concept paragraphs."),
    "relearn_lora": Metric("accuracy relearnt, LoRA", "lower", about="The same with LoRA."),
}
"""How the columns read."""


def margin_value(scores: Scores) -> Value:
    """Mean margin with a bootstrap interval over items."""
    return hierarchical_bootstrap([scores.margins], DRAWS)


def accuracy_value(scores: Scores) -> Value:
    """Accuracy; Wilson where every credit is 0 or 1, else bootstrap over items."""
    credits = [i.credit for i in scores.items]
    if all(c in (0.0, 1.0) for c in credits):
        return wilson(int(sum(credits)), scores.n)
    return hierarchical_bootstrap([credits], DRAWS)


def share(edited: Numbers, base: Numbers) -> float | None:
    """Mean edited margin over mean base margin.

    None where the base margin is not above 0, so that nothing can be lost.
    """
    b = float(np.mean(base))
    return float(np.mean(edited)) / b if b > 0 else None


def fall(edited: Numbers, base: Numbers) -> float | None:
    """1 - share, clipped to [0, 1]."""
    s = share(edited, base)
    return None if s is None else float(np.clip(1 - s, 0, 1))


def kept(edited: Numbers, base: Numbers) -> float | None:
    """share, clipped to [0, 1]."""
    s = share(edited, base)
    return None if s is None else float(np.clip(s, 0, 1))


def coherence(edited: dict[str, TextFigures], base: dict[str, TextFigures]) -> float | None:
    """Harmonic mean, over neutral text and continuations, of base bits per byte over edited, each at most 1."""
    names = [n for n in ("neutral", "continuation") if n in base]
    ratios = [min(1.0, base[n].bits_per_byte / edited[n].bits_per_byte) for n in names]
    return harmonic_mean(ratios) if ratios else None


def resampled(
    statistic: Callable[[list[np.ndarray]], float | None], sizes: Sequence[int], draws: int = DRAWS, seed: int = 0
) -> Value | None:
    """A statistic of items with a percentile interval.

    Each pool's items (their indices) are drawn with replacement, pairs stay together.

    None where the statistic has no value on the whole; draws without a value are left out.
    """
    mean = statistic([np.arange(n) for n in sizes])
    if mean is None:
        return None
    rng = np.random.default_rng(seed)
    drawn = [statistic([rng.integers(n, size=n) for n in sizes]) for _ in range(draws)]
    values = [d for d in drawn if d is not None]
    low, high = np.quantile(values, [0.025, 0.975])
    return Value(mean, min(float(low), mean), max(float(high), mean), int(sum(sizes)), "items", "bootstrap over items")


def figures(edited: Measured, base: Measured) -> dict[str, Value]:
    """All figures of one host state against the base; what does not apply is left out."""
    t, n = edited.target, edited.neighbours
    out: dict[str, Value | None] = {
        "margin": margin_value(t),
        "accuracy": accuracy_value(t),
        "accuracy_clipped": Value(t.clipped, n=t.n, unit="items"),
        "below_chance": Value(t.below_chance, n=t.n, unit="items"),
        **{f"margin_{name}": margin_value(part) for name, part in _parts(t).items()},
        **({"neighbours_margin": margin_value(n), "neighbours_accuracy": accuracy_value(n)} if n else {}),
        **{f"bpb_{name}": Value(f.bits_per_byte, n=len(f.nll), unit="texts") for name, f in edited.texts.items()},
        **({"ppl_neutral": Value(edited.texts["neutral"].perplexity)} if "neutral" in edited.texts else {}),
        **(_of_written(edited.written) if edited.written and edited.written.nll else {}),
        **_relative(edited, base),
    }
    return {k: v for k, v in out.items() if v is not None}


def _of_written(written: Written) -> dict[str, Value | None]:
    nll, tokens = np.array(written.nll), np.array(written.tokens)
    return {
        "ppl_written": resampled(lambda i: float(np.exp(nll[i[0]].sum() / tokens[i[0]].sum())), [len(nll)]),
        "distinct_written": hierarchical_bootstrap([written.distinct], DRAWS),
    }


def _parts(scores: Scores) -> dict[str, Scores]:
    named = {"suppressed": scores.where(True), "unseen": scores.where(False)}
    return {k: v for k, v in named.items() if v is not None}


def _relative(edited: Measured, base: Measured) -> dict[str, Value | None]:
    t, t0 = np.array(edited.target.margins), np.array(base.target.margins)
    unseen = np.array([not i.suppressed for i in base.target.items])
    clear = coherence(edited.texts, base.texts)
    out: dict[str, Value | None] = {
        "efficacy": resampled(lambda i: fall(t[i[0]], t0[i[0]]), [len(t)]),
        "coherence": None if clear is None else Value(clear, n=sum(len(f.nll) for f in base.texts.values()), unit="texts"),
    }
    if unseen.any():
        u, u0 = t[unseen], t0[unseen]
        out["efficacy_unseen"] = resampled(lambda i: fall(u[i[0]], u0[i[0]]), [len(u)])
    if edited.neighbours is None or base.neighbours is None:
        return out
    n, n0 = np.array(edited.neighbours.margins), np.array(base.neighbours.margins)
    out["specificity"] = resampled(lambda i: kept(n[i[0]], n0[i[0]]), [len(n)])
    if clear is not None:

        def hm(i: list[np.ndarray]) -> float | None:
            parts = [fall(t[i[0]], t0[i[0]]), kept(n[i[1]], n0[i[1]]), clear]
            return None if None in parts else harmonic_mean([p for p in parts if p is not None])

        out["hm_local"] = resampled(hm, [len(t), len(n)])
    return out
