"""A concept's gate: features and weights from `train`, calibrated on `validation`, judged on `test`."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from ..base.errors import InputError, MatchedNothing, UnknownName
from ..deactivate.concept import Record
from ..deactivate.evaluation.auroc import auroc
from ..deactivate.gate import Gate, GateSource
from .evidence import FeatureReport
from .features import FeatureConfig, Scans, features, scan_pools
from .pools import Pool, general_texts, pool_texts
from .scanning import check_saes, hook_point_of

if TYPE_CHECKING:
    from ..deactivate.concept import Concept, Question
    from ..sae import SAE
    from .host import Host

Weights = Literal["fitted", "equal"]
N_FEATURES = 8
"""Features of a gate of equal weights, at most."""
FEWEST = 30
"""Target texts in `train` below which `fitted` falls back to equal weights."""
LEAST_TEXTS = 4
"""Target texts that a feature must fire on to get a weight."""
TEXTS = 400
"""General texts of a split that weights are fitted with, at most. Of target and neighbours all are read."""
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Inverse strengths of the L1 penalty that are tried."""
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
    weights: str = "fitted",
    n_features: int = N_FEATURES,
    per: str = "prompt",
    seed: int = 0,
    other_model: bool = False,
    pool: int = POOL,
    find: Callable[..., FeatureReport] = features,
) -> Gate:
    """The gate of one concept, its threshold from `validation` and the general pool.

    Weights `fitted`: an L1 logistic regression of target against neighbours and general texts of `train` (questions with their
    answers are texts too) on the largest activation of every feature in each text; its penalty is the one whose AUROC on `validation`, against the harder of the
    two pools, is best. With fewer than 30 target texts, and with `equal`: the `n_features` that detect best on
    `validation`, 1 each, standardised there. `other_model` accepts SAEs that were trained on another model; `find` ranks features, as
    `llm.features.features` does. The threshold is taken from at most `pool` general texts. Of a host of several readers the one is read that the SAEs were trained on.

    Raises:
        InputError: More than one concept (gate one edit a concept), no SAE, or `fpr` outside [0, 1).
        UnknownName: Other weights, or another `per` than prompt and token (`Gate.per`).
        MatchedNothing: No feature carries the concept.
    """
    if weights not in get_args(Weights):
        raise UnknownName("weights of a gate", weights, get_args(Weights))
    if per not in ("prompt", "token"):
        raise UnknownName("per of a gate", per, ("prompt", "token"))
    listed = list(concepts) if isinstance(concepts, Sequence) else [concepts]
    if len(listed) != 1:
        raise InputError(f"a gate stands for one concept, {len(listed)} given; fit and gate one edit each")
    concept = listed[0]
    config = FeatureConfig(seed=seed, fpr=fpr)
    fitted = weights == "fitted" and len(pool_texts(concept, "target", "train")) >= FEWEST
    if fitted:
        gate = _fitted(reader_of(host, saes), concept, saes, seed, other_model)
    else:
        report = find(host, concept, saes, config, splits=("train", "validation"), other_model=other_model)
        gate = _best(report, saes, n_features)
    return replace(gate, per=per).calibrated(
        host,
        pool_texts(concept, "target", "validation"),
        general_texts(concept, "validation", pool, seed),
        pool_texts(concept, "neighbours", "validation"),
        fpr=fpr,
        standardise=not fitted,
    )


def reader_of(host: Any, saes: "Sequence[SAE]") -> Any:
    """What reads texts at the SAEs' hook points: a part of a host of several, or the host itself."""
    reader = getattr(host, "reader", None)
    return host if reader is None or not saes else reader([hook_point_of(s) for s in saes])


def _best(report: FeatureReport, saes: "Sequence[SAE]", n: int) -> Gate:
    chosen: dict[str, list[int]] = defaultdict(list)
    carrying = [f for f in report.features if f.score >= LEAST_SCORE]
    if not carrying:
        raise MatchedNothing(
            f"gate: no feature detects {report.concept!r} with AUROC >= {LEAST_SCORE} on validation; train wider or more SAEs"
        )
    for f in carrying[:n]:
        chosen[f.hook_point].append(f.id)
    by_point = {str(s.card["hook_point"]): s for s in saes}
    return Gate([GateSource(by_point[p], tuple(ids)) for p, ids in chosen.items()])


def _fitted(host: "Host", concept: "Concept", saes: "Sequence[SAE]", seed: int, other_model: bool) -> Gate:
    places = check_saes(host, saes, other_model=other_model)
    read = _with_questions(concept, seed)
    scans = scan_pools(host, read, places, FeatureConfig(texts=None, seed=seed), ("train", "validation"))
    ids = {p: _often(scans, p, s.cfg.d_sae) for p, s in places.items()}
    at = [(p, int(f)) for p, found in ids.items() for f in found]
    if not at:
        raise MatchedNothing(f"gate: no feature fires on {LEAST_TEXTS} texts of {concept.name!r}; train wider or more SAEs")
    train, validation = (_maxima(scans, ids, split) for split in ("train", "validation"))
    weights, scale = fitted_weights(train, validation)
    if not weights.any():
        raise MatchedNothing(f"gate: no weight of any feature tells {concept.name!r} from other texts; train wider or more SAEs")
    used = [i for i in range(len(at)) if weights[i]]
    sources = [
        GateSource(places[p], tuple(at[i][1] for i in mine), tuple(float(weights[i]) for i in mine))
        for p in places
        if (mine := [i for i in used if at[i][0] == p])
    ]
    return Gate(sources, scale=tuple(float(scale[i]) for i in used))


def _with_questions(concept: "Concept", seed: int) -> "Concept":
    """The concept with its `train` questions, answered, among the `train` texts, and a choice of general texts."""

    def texts(pool: Pool, questions: "Mapping[str, Sequence[Question]]") -> dict[str, tuple[str, ...]]:
        told = (f"{q.q.strip()} {q.answer.strip()}" for q in questions.get("train", ()))
        return {"train": (*pool_texts(concept, pool, "train"), *told), "validation": (*pool_texts(concept, pool, "validation"),)}

    target = texts("target", concept.questions)
    return replace(
        concept,
        records={split: tuple(map(Record, lines)) for split, lines in target.items()},
        neighbours=texts("neighbours", concept.neighbour_questions),
        general={split: tuple(general_texts(concept, split, TEXTS, seed)) for split in ("train", "validation")},
    )


def _often(scans: Scans, point: str, d_sae: int) -> torch.Tensor:
    """Features that fire on enough target texts of `train`."""
    fires = scans["target", "train"][point].maxima(torch.arange(d_sae)) > 0
    return (fires.sum(0) >= LEAST_TEXTS).nonzero()[:, 0]


def _maxima(scans: Scans, ids: dict[str, torch.Tensor], split: str) -> dict[str, np.ndarray]:
    """Pool -> largest activation of every feature in each of its texts; pools without texts are left out."""
    return {
        pool: np.concatenate([scans[pool, split][p].maxima(found).numpy() for p, found in ids.items()], 1)
        for pool in ("target", "neighbours", "general")
        if (pool, split) in scans
    }


def fitted_weights(
    train: Mapping[str, Float[np.ndarray, "_ f"]], validation: Mapping[str, Float[np.ndarray, "_ f"]]
) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """(weights, scale) of features from the peaks in each pool's texts; weights are of activations over their scale.

    L1 logistic regression of `target` against the other pools of `train`, each counted alike; the penalty is the one with the best
    AUROC on `validation` (on `train` where it is empty) against the harder pool.
    """
    scale = np.sqrt(np.concatenate(list(train.values())).std(0) + 1e-6)
    return max((_logistic(train, scale, c) for c in PENALTIES), key=lambda w: _detects(w, scale, validation or train)), scale


def _logistic(pools: Mapping[str, np.ndarray], scale: np.ndarray, c: float) -> np.ndarray:
    """Weights of target against the other pools, each pool counted as much as every other one that is not target, target as all."""
    from sklearn.linear_model import LogisticRegression

    others = [x for name, x in pools.items() if name != "target"]
    rows = np.concatenate([pools["target"], *others])
    labels = np.r_[np.ones(len(pools["target"])), np.zeros(sum(map(len, others)))]
    shares = np.concatenate([np.full(len(x), 1 / len(x) / n) for x, n in [(pools["target"], 1), *((x, len(others)) for x in others)]])
    model = LogisticRegression(solver="liblinear", l1_ratio=1, C=c, max_iter=300, random_state=0)
    return model.fit(rows / scale, labels, sample_weight=shares * len(labels) / shares.sum()).coef_[0]


def _detects(weights: np.ndarray, scale: np.ndarray, pools: Mapping[str, np.ndarray]) -> float:
    """AUROC of target against the harder of the other pools."""
    scores = {name: (x / scale) @ weights for name, x in pools.items()}
    return min(auroc(scores["target"].tolist(), s.tolist()).mean for name, s in scores.items() if name != "target")


def judge_gate(host: "Host", gate: Gate, concept: "Concept", split: str = "test", seed: int = 0) -> dict[str, Any]:
    """What the gate does on a split it was not made with: AUROCs with intervals, recall, false triggers with Wilson intervals."""
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
