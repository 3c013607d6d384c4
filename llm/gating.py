"""A concept's gate: its best features, found on `train`, calibrated on `validation`, judged on `test`."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..base.errors import InputError, MatchedNothing
from ..deactivate.gate import Gate, GateSource
from .features import FeatureConfig, features
from .pools import general_texts, pool_texts

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..sae import SAE
    from .host import Host

N_FEATURES = 8
LEAST_SCORE = 0.6
"""Least AUROC on `validation` of a feature that the gate listens to."""
POOL = 3000
"""General texts read for the threshold and for the judgement, at most."""


def concept_gate(
    host: "Host",
    concepts: "Concept | Sequence[Concept]",
    saes: "Sequence[SAE]",
    *,
    fpr: float = 0.01,
    n_features: int = N_FEATURES,
    seed: int = 0,
) -> Gate:
    """Features found on `train`, ranked on `validation`; standardisation and threshold from `validation` and the general pool.

    Raises:
        InputError: More than one concept (gate one edit a concept), or no SAE.
        MatchedNothing: No feature carries the concept.
    """
    listed = list(concepts) if isinstance(concepts, Sequence) else [concepts]
    if len(listed) != 1:
        raise InputError(f"a gate stands for one concept, {len(listed)} given; fit and gate one edit each")
    concept = listed[0]
    report = features(host, concept, saes, FeatureConfig(seed=seed, fpr=fpr), splits=("train", "validation"))
    chosen: dict[str, list[int]] = defaultdict(list)
    carrying = [f for f in report.features if f.score >= LEAST_SCORE]
    if not carrying:
        raise MatchedNothing(
            f"gate: no feature detects {concept.name!r} with AUROC >= {LEAST_SCORE} on validation; train wider or more SAEs"
        )
    for f in carrying[:n_features]:
        chosen[f.hook_point].append(f.id)
    by_point = {str(s.card["hook_point"]): s for s in saes}
    gate = Gate([GateSource(by_point[p], tuple(ids)) for p, ids in chosen.items()])
    return gate.calibrated(
        host,
        pool_texts(concept, "target", "validation"),
        general_texts(concept, "validation", POOL, seed),
        pool_texts(concept, "neighbours", "validation"),
        fpr=fpr,
    )


def judge_gate(host: "Host", gate: Gate, concept: "Concept", split: str = "test", seed: int = 0) -> dict[str, Any]:
    """What the gate does on a split it was not made with: AUROCs with intervals, recall, false triggers with Wilson intervals."""
    from ..deactivate.evaluation.auroc import auroc
    from ..deactivate.evaluation.statistics import wilson

    pools = {
        "target": pool_texts(concept, "target", split),
        "neighbours": pool_texts(concept, "neighbours", split),
        "general": general_texts(concept, split, POOL, seed),
    }
    scores = {n: gate.score(host, t, batch=32) for n, t in pools.items() if t}
    report: dict[str, Any] = {"split": split, "threshold": gate.require_threshold().threshold}
    for name, s in scores.items():
        rate = wilson(int(gate.fires(s).sum()), len(s))
        report[f"fires on {name}"] = {"rate": rate.mean, "low": rate.low, "high": rate.high, "n": len(s)}
    for name in ("neighbours", "general"):
        if name in scores and "target" in scores:
            value = auroc(scores["target"].tolist(), scores[name].tolist())
            report[f"AUROC target against {name}"] = {"auroc": value.mean, "low": value.low, "high": value.high}
    return report
