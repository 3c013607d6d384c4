"""Which features are suppressed: those that fire on the concept, and not on what must stay."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ....base.errors import InputError, MatchedNothing
from ...evidence import FeatureConfig, FeatureEvidence
from ...features import Scans, contrast, describe, scan_pools
from ...scanning import Scan
from .config import CrispConfig

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import Host

TEXTS = 200
"""Texts of each pool that are read, where `texts` does not say so."""


def salient(
    host: "Host", concept: "Concept", places: "Mapping[str, SAE]", config: CrispConfig, preserve: Sequence[str] = ()
) -> list[FeatureEvidence]:
    """Features of every hook point, at most `n_features` each, the largest difference of firings first.

    Raises:
        InputError: `min_auroc` is asked for and there is no target text in `validation`.
        MatchedNothing: No hook point has any; says what was asked for.
    """
    if config.min_auroc:
        try:
            concept.require("target", "validation")
        except InputError as e:
            raise InputError(f"{e}; or ask for no AUROC (--set min_auroc=0)") from None
    read = FeatureConfig(texts=config.texts or TEXTS, seed=config.seed)
    splits = ("train", "validation") if config.min_auroc else ("train",)
    scans = scan_pools(host, concept, dict(places), read, splits, preserve)
    found: list[FeatureEvidence] = []
    for point, sae in places.items():
        chosen = chosen_features(scans, point, config)
        if chosen:
            rows = [(f, "suppress_positive", "contrast", []) for f in chosen]
            evidence = describe(host, point, sae, scans, rows, chosen)
            kept = [e for e in evidence if not config.min_auroc or (e.auroc.get("validation") or 0.0) >= config.min_auroc]
            found += kept[: config.n_features]
    if not found:
        raise MatchedNothing(
            f"no feature carries {concept.name!r}: none that fires more often on it than on what must stay fires min_rho={config.min_rho} "
            f"times as strongly{f' and has an AUROC of min_auroc={config.min_auroc}' if config.min_auroc else ''}; lower them, or use other SAEs"
        )
    return found


def chosen_features(scans: Scans, point: str, config: CrispConfig) -> dict[int, tuple[int, float, float]]:
    """Feature -> (firings on the concept, their difference, ratio of activations), best difference first.

    `compat=official`: a ratio of sums with 1 added below, at least 3, against the texts that must stay all together.
    """
    target = scans["target", "train"][point]
    others = [s[point] for (pool, split), s in scans.items() if pool != "target" and split == "train"]
    phi, delta, rho = contrast(target, others)
    least = config.min_rho
    if config.compat == "official":
        delta, rho, least = *_official(target, others), 3.0
    order = delta.topk(min(config.n_contrast, len(delta))).indices
    kept = [int(f) for f in order.tolist() if rho[f] >= least and delta[f] > 0 and phi[f] > 0]
    limit = len(kept) if config.min_auroc else config.n_features
    return {f: (int(phi[f]), float(delta[f]), float(rho[f])) for f in kept[:limit]}


def _official(target: Scan, others: Sequence[Scan]) -> tuple[torch.Tensor, torch.Tensor]:
    fired = torch.stack([s.fired for s in others]).sum(0) if others else torch.zeros_like(target.fired)
    total = torch.stack([s.total for s in others]).sum(0) if others else torch.zeros_like(target.total)
    return (target.fired - fired).double(), target.total / (total + 1)
