"""Does a label say where its feature fires? Held-out detection and fuzzing scores, beside those of shuffled labels.

Detection asks whether the feature fires anywhere in a context, fuzzing whether it fires on the marked tokens. Both follow Automatically
interpreting millions of features in large language models (Paulo et al., 2024); what judges is the sum over a label's words, not a language
model, and the score is the AUROC, which needs no threshold, where theirs is the balanced accuracy.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...sae.labels.propose import Proposal
from ...sae.labels.words import EvidenceWords
from .auroc import auroc
from .value import Value

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Label:
    """A feature's label and what it is worth."""

    text: str
    """`unlabelled` where no proposal stands."""
    status: str
    """`labelled`; `at chance` (the interval on `validation` holds .5); `too few contexts` (to score one); `no word` (none
    tells its contexts from others); `silent` (never fired)."""
    proposal: Proposal | None = None
    """What was proposed, also where it did not stand."""
    validation: float | None = None
    """AUROC on `validation`, which decided."""
    test: Value | None = None
    """AUROC on `test`, which decided nothing."""
    fuzzing: Value | None = None
    """Fuzzing AUROC on `test`, which decided nothing either: a label of what stands around a feature's tokens may be at chance here."""

    def columns(self) -> dict[str, str | float | None]:
        """What a feature store keeps of it (`sae.evidence.schema.LABEL_COLUMNS`)."""
        p, t, z = self.proposal, self.test, self.fuzzing
        return {
            "label": self.text,
            "status": self.status,
            "proposal": p.text if p else None,
            "source": p.source if p else None,
            "validation": self.validation,
            "auroc": t.mean if t else None,
            "auroc_low": t.low if t else None,
            "auroc_high": t.high if t else None,
            "fuzzing": z.mean if z else None,
            "fuzzing_low": z.low if z else None,
            "fuzzing_high": z.high if z else None,
        }


def detection(words: EvidenceWords, part: str, feature: int, stems: Sequence[str], least: int) -> Value | None:
    """AUROC of a label's words as a detector of the feature on held-out contexts, with its 95 % interval.

    None where fewer than `least` contexts of either kind are there.
    """
    positive, negative = words.scores(part, feature, stems)
    return auroc(positive, negative) if min(len(positive), len(negative)) >= least else None


def fuzzing(words: EvidenceWords, part: str, feature: int, stems: Sequence[str], least: int) -> Value | None:
    """AUROC of a label's words as a detector of rightly marked tokens (`EvidenceWords.marked_scores`), with its 95 % interval.

    None where fewer than `least` contexts of either kind are there.
    """
    positive, negative = words.marked_scores(part, feature, stems)
    return auroc(positive, negative) if min(len(positive), len(negative)) >= least else None


def judged(words: EvidenceWords, feature: int, proposals: Sequence[Proposal], least: int) -> Label:
    """The proposal that detects best on `validation`, if it beats chance there; its scores on `test`.

    It beats chance where the lower end of its 95 % interval is above .5.
    """
    if not int(words.evidence.tallies.fired[feature]):
        return Label(UNLABELLED, "silent")
    if not proposals:
        enough = len(words.evidence.reservoir.contexts(feature)) >= least
        return Label(UNLABELLED, "no word" if enough else "too few contexts")
    scored = [(v, p) for p in proposals if (v := detection(words, "validation", feature, p.stems, least)) is not None]
    if not scored:
        return Label(UNLABELLED, "too few contexts", proposals[0])
    value, best = max(scored, key=lambda s: s[0].mean)
    test = detection(words, "test", feature, best.stems, least)
    if test is None:
        return Label(UNLABELLED, "too few contexts", best, value.mean)
    stands = value.low is not None and value.low > 0.5
    fuzzed = fuzzing(words, "test", feature, best.stems, least)
    return Label(best.text if stands else UNLABELLED, "labelled" if stands else "at chance", best, value.mean, test, fuzzed)


def label_report(words: EvidenceWords, labels: Sequence[Label], least: int, seed: int = 0) -> dict[str, Any]:
    """Median test AUROC of the labels that stand, and of all that were scored, each beside labels dealt to other features.

    The control scores every feature's own contexts with the label of another feature of the same group. Of the labels that stand the same is
    said of fuzzing.
    """
    groups = {
        "labelled": [i for i, label in enumerate(labels) if label.status == "labelled"],
        "all scored": [i for i, label in enumerate(labels) if label.test is not None],
    }
    report: dict[str, Any] = {"status": dict(Counter(label.status for label in labels))}
    for name, ids in groups.items():
        own = {i: v.mean for i in ids if (v := labels[i].test) is not None}
        report[name] = _summary(list(own.values()))
        report[f"{name}, shuffled"] = _summary(_shuffled(words, _proposals(labels, own), least, seed, detection))
    fuzzed = {i: v.mean for i in groups["labelled"] if (v := labels[i].fuzzing) is not None}
    report["fuzzing"] = _summary(list(fuzzed.values()))
    report["fuzzing, shuffled"] = _summary(_shuffled(words, _proposals(labels, fuzzed), least, seed, fuzzing))
    for source in sorted({p.source for i in groups["labelled"] if (p := labels[i].proposal)}):
        chosen = [v.mean for i in groups["labelled"] if (p := labels[i].proposal) and p.source == source and (v := labels[i].test)]
        report.setdefault("labelled by source", {})[source] = _summary(chosen)
    return report


def _proposals(labels: Sequence[Label], ids: Iterable[int]) -> dict[int, Proposal]:
    return {i: p for i in ids if (p := labels[i].proposal)}


def _shuffled(
    words: EvidenceWords, proposals: Mapping[int, Proposal], least: int, seed: int, score: Callable[..., Value | None]
) -> list[float]:
    order = list(proposals)
    random.Random(seed).shuffle(order)
    if len(order) < 2:
        return []
    pairs = zip(order, order[1:] + order[:1], strict=True)
    values = (score(words, "test", i, proposals[other].stems, least) for i, other in pairs)
    return [v.mean for v in values if v is not None]


def _summary(values: Sequence[float]) -> dict[str, float | int | None]:
    if not values:
        return {"n": 0, "median": None, "q25": None, "q75": None}
    q25, median, q75 = np.quantile(np.asarray(values), (0.25, 0.5, 0.75)).tolist()
    return {"n": len(values), "median": median, "q25": q25, "q75": q75}
