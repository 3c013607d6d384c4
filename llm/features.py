"""From a concept to the SAE features that carry it, each with its evidence."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import InputError, MatchedNothing
from .evidence import FeatureConfig, FeatureEvidence, FeatureReport
from .pools import general_texts, pool_texts
from .scanning import Scan, check_saes, scan
from .vocabulary import extreme_tokens, single_tokens, token_strings, tokens_among_extremes

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..sae import SAE
    from .host import Host

Scans = dict[tuple[str, str], dict[str, Scan]]
"""(pool, split) -> hook point -> scan."""
SPLITS = ("train", "validation", "test")
CHOOSING = SPLITS[:2]
"""Splits that may be read without counting a look."""
__all__ = ["FeatureConfig", "FeatureEvidence", "FeatureReport", "auroc", "features", "find_features"]


def auroc(positive: Float[Tensor, "p r"], negative: Float[Tensor, "q r"]) -> Float[Tensor, " r"]:
    """Area under the ROC curve, a column each; ties count one half (Mann-Whitney)."""
    from scipy.stats import rankdata

    p, q = len(positive), len(negative)
    ranks = torch.from_numpy(rankdata(torch.cat([positive, negative]).double().numpy(), axis=0))
    return ((ranks[:p].sum(0) - p * (p + 1) / 2) / (p * q)).to(positive.dtype)


def features(
    host: "Host",
    concept: "Concept",
    saes: Sequence["SAE"],
    config: FeatureConfig | None = None,
    *,
    splits: Sequence[str] = CHOOSING,
    n_set: int = 8,
    other_model: bool = False,
    general: Sequence[str] = (),
) -> FeatureReport:
    """Candidates by vocabulary projection and by activation contrast on `train`, ranked on `validation`.

    What is reported on `test` chose nothing.

    A concept with a name and a dozen target sentences is enough: its name's words stand in for tokens, the host's
    general pool for
    the controls. Features that never fire on the concept's texts are no candidates (pisces.md 3.3b), which is why the
    vocabulary
    is projected on those that do, only.

    Args:
        host: The model.
        concept: What to look for.
        saes: At least one, of different hook points.
        config: Settings.
        splits: Which splits are read. With `test` this is a look at it, which the caller counts (`evaluation.count_look`).
        n_set: How many of the first features are judged as a set.
        other_model: Accept SAEs trained on another model (a base model's on its chat version).
        general: Further texts that the concept must stay away from.

    Raises:
        MatchedNothing: No feature fires on the concept's texts and passes either search.
    """
    config = config or FeatureConfig()
    places = check_saes(host, saes, other_model=other_model)
    scans = scan_pools(host, concept, places, config, splits, general)
    tokens, split = concept_tokens(host, concept)
    found = [e for p, s in places.items() for e in _candidates(host, p, s, scans, tokens, config)]
    if not found:
        raise MatchedNothing(
            f"no feature carries {concept.name!r}: none that fires on its train texts promotes "
            f"one of {list(tokens)} or fires {config.min_rho} times as strongly as on other text; "
            "add tokens or texts, lower min_rho, raise topk, or use another SAE"
        )
    ranked = sorted(found, key=lambda e: (-e.score, -(e.delta_phi or 0), e.hook_point, e.id))
    return with_set(FeatureReport(concept.name, host.name, tuple(ranked), tuple(split)), scans, min(n_set, len(ranked)), config)


find_features = features
"""Candidates by vocabulary projection and by activation contrast on `train`, ranked on `validation` (`features`, as the package exports it)."""


def concept_tokens(host: "Host", concept: "Concept") -> tuple[dict[str, int], list[str]]:
    """The concept's single tokens with their ids, and those that the tokenizer splits.

    Where the file lists none, the words of its name stand in.
    """
    listed = list(concept.tokens)
    if listed:
        return single_tokens(host.tokenizer, listed)
    return single_tokens(host.tokenizer, [f" {w}" for w in concept.name.split() if len(w) > 2])[0], []


def scan_pools(
    host: "Host",
    concept: "Concept",
    places: dict[str, "SAE"],
    config: FeatureConfig,
    splits: Sequence[str] = SPLITS,
    general: Sequence[str] = (),
) -> Scans:
    """Scans of target, neighbours and general texts of each split that has any.

    Raises:
        InputError: The concept has no target text in `train`.
    """
    scans: Scans = {}
    for split in splits:
        pools = {
            "target": pool_texts(concept, "target", split, config.texts, config.seed),
            "neighbours": pool_texts(concept, "neighbours", split, config.texts, config.seed),
            "general": [
                *general_texts(concept, split, config.texts, config.seed),
                *(general if split == "train" else ()),
            ],
        }
        if split == "train" and not pools["target"]:
            raise InputError(f"concept {concept.name!r} has no target texts in train: write at least a dozen sentences there")
        if pools["target"]:
            scans.update({(pool, split): scan(host, texts, places) for pool, texts in pools.items() if texts})
    return scans


def lens_directions(host: "Host", hook_point: str, directions: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """Decoder rows as they reach the residual stream: those at a raw `mlp_out` still pass the post-norm's gain."""
    layer, place = int(hook_point.split(".")[1]), hook_point.rsplit(".", 1)[1]
    gain = host.post_norm_gain(layer) if place == "mlp_out" else None
    return directions if gain is None else directions * gain.to(directions)


@torch.no_grad()
def _candidates(host: "Host", point: str, sae: "SAE", scans: Scans, tokens: dict[str, int], config: FeatureConfig) -> list[FeatureEvidence]:
    target = scans["target", "train"][point]
    alive = target.fired.nonzero()[:, 0]
    if not len(alive):
        return []
    phi, delta, rho = contrast(target, [s[point] for (pool, t), s in scans.items() if pool != "target" and t == "train"])
    strong = (rho >= config.min_rho) & (delta > 0)
    order = torch.where(strong, delta, -torch.inf).topk(min(config.n_contrast, len(delta)))
    nominated = set(order.indices[order.values > 0].tolist())
    U = host.unembedding()
    directions = lens_directions(host, point, sae.W_dec[alive.to(sae.W_dec.device)].to(U))
    ids = torch.tensor(list(tokens.values()), dtype=torch.int64, device=U.device)
    top, bottom = (t.cpu() for t in tokens_among_extremes(directions, U, ids, config.topk))
    chosen: list[tuple[int, str, str, list[str]]] = []
    names = list(tokens)
    for row, f in enumerate(alive.tolist()):
        up, down = ([n for n, hit in zip(names, t[row].tolist(), strict=True) if hit] for t in (top, bottom))
        if len(up) >= config.minmatch:
            chosen.append((f, "suppress_positive", "both" if f in nominated else "vocabulary", up))
        elif f in nominated:
            chosen.append((f, "suppress_positive", "contrast", []))
        elif len(down) >= config.minmatch:
            chosen.append((f, "suppress_negative", "vocabulary", down))
    stats = {f: (int(phi[f]), float(delta[f]), float(rho[f])) for f, *_ in chosen}
    return describe(host, point, sae, scans, chosen, stats)


def contrast(target: Scan, controls: list[Scan]) -> tuple[Tensor, Tensor, Tensor]:
    """Firings on the concept, Delta phi and rho against the stronger control, per token (CRISP, arXiv:2508.13650).

    See also pisces.md 3.4.
    """
    phi = target.fired.double()
    mean = target.total / target.n_tokens
    other_phi, other_mean = torch.zeros_like(phi), torch.zeros_like(mean)
    for c in controls:
        other_phi = torch.maximum(other_phi, c.fired.double() * target.n_tokens / c.n_tokens)
        other_mean = torch.maximum(other_mean, c.total / c.n_tokens)
    eps = 1e-3 * float(mean[mean > 0].mean()) if (mean > 0).any() else 1.0
    return phi, phi - other_phi, mean / (other_mean + eps)


def describe(
    host: "Host",
    point: str,
    sae: "SAE",
    scans: Scans,
    chosen: list[tuple[int, str, str, list[str]]],
    stats: dict[int, tuple[int, float, float]],
    n_tokens: int = 10,
) -> list[FeatureEvidence]:
    """Evidence of features (id, direction, source, matched tokens): what they promote and how they detect, by split."""
    ids = torch.tensor([c[0] for c in chosen], dtype=torch.int64)
    U = host.unembedding()
    directions = lens_directions(host, point, sae.W_dec[ids.to(sae.W_dec.device)].to(U))
    up, down = extreme_tokens(directions, U, n_tokens)
    areas = detection(scans, point, ids)
    return [
        FeatureEvidence(
            point, f, direction, source, tuple(matched),  # pyright: ignore[reportArgumentType]  (literals, typed as str)
            tuple(token_strings(host.tokenizer, up[i])), tuple(token_strings(host.tokenizer, down[i])),
            *stats.get(f, (None, None, None)),
            {split: None if a is None else float(a[i]) for split, a in areas.items()},
        )
        for i, (f, direction, source, matched) in enumerate(chosen)
    ]  # fmt: skip


def detection(scans: Scans, point: str, ids: Tensor) -> dict[str, Tensor | None]:
    """Split -> AUROC of each feature's maximum in a text, target against all else; None where a pool is missing."""
    areas: dict[str, Tensor | None] = {}
    for split in SPLITS:
        pools = {pool: s[point].maxima(ids) for (pool, t), s in scans.items() if t == split}
        others = [v for pool, v in pools.items() if pool != "target"]
        areas[split] = auroc(pools["target"], torch.cat(others)) if others and "target" in pools and len(ids) else None
    return areas


def set_scores(scans: dict[str, Scan], features: Sequence[FeatureEvidence], scale: Float[Tensor, " r"]) -> Float[Tensor, " n"]:
    """A text's score: the sum over features of its maximum.

    Each in units of its mean maximum on the concept's train texts.
    """
    n = next(iter(scans.values())).n_texts
    columns = [scans[e.hook_point].maxima(torch.tensor([e.id]))[:, 0] for e in features]
    return (torch.stack(columns, 1) / scale).sum(1) if columns else torch.zeros(n)


def with_set(report: FeatureReport, scans: Scans, n_set: int, config: FeatureConfig) -> FeatureReport:
    """The report with what its first features detect together, their threshold, and what passes it on `test`."""
    chosen = [e for e in report.features if e.direction == "suppress_positive"][:n_set]
    chosen = chosen[:1] + [e for e in chosen[1:] if e.score >= config.min_auroc]
    if not chosen:
        return report
    train = scans["target", "train"]
    scale = torch.stack([train[e.hook_point].maxima(torch.tensor([e.id])).mean() for e in chosen]).clamp_min(1e-12)
    scores = {key: set_scores(s, chosen, scale) for key, s in scans.items()}
    areas: dict[str, dict[str, float | None]] = {}
    for split in SPLITS:
        if ("target", split) not in scores:
            continue
        pools = {pool: scores[pool, split] for pool in ("neighbours", "general") if (pool, split) in scores}
        pools = {"all": torch.cat(list(pools.values())), **pools} if pools else {}
        areas[split] = {k: float(auroc(scores["target", split][:, None], v[:, None])[0]) for k, v in pools.items()}
    held = [scores[pool, "validation"] for pool in ("neighbours", "general") if (pool, "validation") in scores]
    threshold = float(torch.quantile(torch.cat(held).double(), 1 - config.fpr)) if held else None
    triggers = (
        {p: float((s > threshold).double().mean()) for (p, split), s in scores.items() if split == "test"} if threshold is not None else {}
    )
    return dataclasses.replace(report, n_set=len(chosen), set_auroc=areas, threshold=threshold, triggers=triggers)
