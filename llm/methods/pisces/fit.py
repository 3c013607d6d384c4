"""Fitting PISCES: concept -> features -> (search) -> one low-rank change of the down-projections."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....base.errors import InputError, MatchedNothing
from ....deactivate.edit import Edit
from ....deactivate.parts import LowRank, WeightsPart
from ...features import FeatureConfig, FeatureEvidence, concept_tokens, describe, features, scan_pools
from ...pools import pool_texts
from ...scanning import check_saes, hook_point_of
from .config import FeatureRef, PiscesConfig
from .effect import by_effect, splits_read
from .filters import Judges, filtered
from .math import LayerProblem
from .search import Found, Objective, search
from .surgery import Factors, activation_signs, check_refs, layer_problem, saes_by_layer, value_vectors

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import Host


def fit(
    host: "Host",
    concepts: Sequence["Concept"],
    preserve: Sequence[str] | None = None,
    config: PiscesConfig | None = None,
    saes: Sequence["SAE"] = (),
) -> Edit:
    """Takes concepts out of a language model by rewriting MLP value vectors (Gur-Arieh et al., arXiv:2505.22586).

    Each concept is fitted alone, on the host as it is; the changes of one layer add, since all are computed from the
    original weights.
    The host is left as it was. The edit has one `weights` part, of rank at most the number of features, a layer.

    Args:
        host: The model.
        concepts: At least one; each needs target texts in `train`, and questions in `validation` for `search`.
        preserve: Further texts that the features must stay away from, besides the concepts' neighbours and general
            pools.
        config: Settings.
        saes: One SAE over the MLP output (`layers.N.mlp_out` or `.mlp_post`) for each layer that may be edited.

    Raises:
        InputError: SAEs or concepts are unfit; names the field.
        MatchedNothing: No feature carries a concept, or no row is rewritten.
    """
    config = config or PiscesConfig()
    if not concepts:
        raise MatchedNothing("no concept given: name at least one with --concept (concepts=[…])")
    check_saes(host, saes, other_model=config.other_model)
    by_layer = saes_by_layer(saes)
    plans = [plan(host, c, by_layer, config, preserve or ()) for c in concepts]
    totals: dict[int, list[Factors]] = {}
    for p in plans:
        for layer, factors in p.factors(p.tau, p.mu, len(p.chosen)).items():
            totals.setdefault(layer, []).append(factors)
    if not any(Q.any() for parts in totals.values() for Q, _ in parts):
        raise MatchedNothing(f"tau={config.tau} selects no row of any feature (every share is below it): lower tau")
    read = {s for c in concepts for s in splits_read(c)} if config.selection_or_default == "effect" else {"train"}
    deltas = dict(weight_delta(host, layer, parts) for layer, parts in sorted(totals.items()))
    return Edit(
        parts=[WeightsPart(deltas)],
        eraser="pisces",
        config=dataclasses.asdict(config),
        concepts=list(concepts),
        evidence={"concepts": [p.to_dict() for p in plans], "host": host.name, "host_digest": host.digest, "read": sorted(read)},
        seeds={"pisces": config.seed},
    )


def weight_delta(host: "Host", layer: int, parts: Sequence[Factors]) -> tuple[str, LowRank]:
    """Name and low-rank change of a layer's down-projection in the host's own layout (pisces.md 4.4).

    [d m] gets D^T Q^T, Conv1D's [m d] Q D.
    """
    Q, D = torch.cat([q for q, _ in parts], 1).float().cpu(), torch.cat([d for _, d in parts]).float().cpu()
    name, _, transposed = host.down_proj(layer)
    return name, LowRank(B=Q, A=D) if transposed else LowRank(B=D.T.contiguous(), A=Q.T.contiguous())


@dataclass
class Plan:
    """The edit of one concept, settings still open."""

    host: "Host"
    concept: "Concept"
    config: PiscesConfig
    by_layer: Mapping[int, "SAE"]
    chosen: list[FeatureEvidence]
    """Features to edit, best first."""
    dropped: list[FeatureEvidence]
    signs: Mapping[int, Tensor]
    """Layer -> g."""
    tau: float
    mu: float
    solved: list[Factors] | None = None
    """The change of each feature, (Q [m 1], D [1 d]), where it was solved for; None: `problems` give it at tau and mu."""
    found: Found | None = None

    @cached_property
    def problems(self) -> dict[int, tuple[LayerProblem, list[int]]]:
        """Layer -> its problem and the ranks of its features; built once, for any tau and mu."""
        out: dict[int, tuple[LayerProblem, list[int]]] = {}
        for layer in sorted({e.layer for e in self.chosen}):
            ranks = [i for i, e in enumerate(self.chosen) if e.layer == layer]
            refs = [reference(self.chosen[i]) for i in ranks]
            out[layer] = layer_problem(self.host, self.by_layer[layer], refs, self.signs[layer], self.config), ranks
        return out

    def factors(self, tau: float, mu: float, n: int) -> dict[int, Factors]:
        """Layer -> (Q, D) of the edit of the first `n` features."""
        out: dict[int, Factors] = {}
        if self.solved is not None:
            for layer in sorted({e.layer for e in self.chosen[:n]}):
                parts = [part for e, part in zip(self.chosen[:n], self.solved, strict=False) if e.layer == layer]
                out[layer] = mu * torch.cat([Q for Q, _ in parts], 1), torch.cat([D for _, D in parts])
            return out
        for layer, (problem, ranks) in self.problems.items():
            columns = [c for c, rank in enumerate(ranks) if rank < n]
            if columns:
                part = problem if len(columns) == len(ranks) else problem.subset(torch.tensor(columns))
                out[layer] = part.Q(tau, self.config.mu_at(layer, mu, self.host.post_norm)), part.D
        return out

    def to_dict(self) -> dict[str, Any]:
        """Evidence as plain values: features, what was dropped, settings, rows rewritten, the search.

        Where coefficients were solved for, `tau` and `rows` are None: every row of a layer is changed.
        """
        rows: dict[str, dict[str, int]] | None = None
        if self.solved is None:
            rows = {}
            for layer, (Q, _) in self.factors(self.tau, self.mu, len(self.chosen)).items():
                ids = [e.id for e in self.chosen if e.layer == layer]
                rows[str(layer)] = {str(f): int(n) for f, n in zip(ids, (Q != 0).sum(0), strict=True)}
        return {
            "concept": self.concept.name,
            "digest": self.concept.digest,
            "tau": self.tau if self.solved is None else None,
            "mu": self.mu,
            "features": [dataclasses.asdict(e) for e in self.chosen],
            "dropped": [dataclasses.asdict(e) for e in self.dropped],
            "rows": rows,
            "search": self.found.to_dict() if self.found else None,
        }


def reference(e: FeatureEvidence) -> FeatureRef:
    """What the config would call this feature."""
    return FeatureRef(e.layer, e.id, e.direction)


def plan(host: "Host", concept: "Concept", by_layer: Mapping[int, "SAE"], config: PiscesConfig, preserve: Sequence[str] = ()) -> Plan:
    """Features of one concept that pass the filters, signs of the neurons, and, with `search`, settings.

    Settings are those that do best on `validation`.
    """
    most = max([config.n_features, *config.grid_n]) if config.search and config.grid_n else config.n_features
    wanted = len(config.refs) or most
    if config.selection_or_default == "effect":
        return _plan_by_effect(host, concept, by_layer, config, preserve, wanted)
    ranked = candidates(host, concept, by_layer, config, preserve)
    layers = sorted({e.layer for e in ranked})
    signs = neuron_signs(host, concept, layers, config)
    out = Plan(host, concept, config, by_layer, ranked[:wanted], [], signs, config.tau, config.mu_or_default)
    if config.filters and not config.refs:

        def alone(e: FeatureEvidence) -> LayerProblem:
            return layer_problem(host, by_layer[e.layer], [reference(e)], signs[e.layer], config)

        kept, dropped = filtered(Judges(host, concept, config), ranked, alone, config, wanted)
        out = dataclasses.replace(out, chosen=kept, dropped=dropped)
    return searched(out) if config.search else out


def _plan_by_effect(
    host: "Host", concept: "Concept", by_layer: Mapping[int, "SAE"], config: PiscesConfig, preserve: Sequence[str], wanted: int
) -> Plan:
    places = {hook_point_of(s): s for s in by_layer.values()}
    scans = scan_pools(host, concept, places, FeatureConfig(texts=config.texts, seed=config.seed), ("train", "validation"), preserve)
    chosen, changes = by_effect(host, concept, by_layer, scans, config, wanted)
    out = Plan(host, concept, config, by_layer, chosen, [], {}, config.tau, config.mu_or_default, changes)
    return searched(out) if config.search else out


def searched(open_plan: Plan) -> Plan:
    """The plan with tau, mu and the number of features that do best on `validation`."""
    p, config = open_plan, open_plan.config
    counts = sorted({min(n, len(p.chosen)) for n in config.grid_n}) or [len(p.chosen)]
    if p.solved is not None:  # tau has no say in it
        config = dataclasses.replace(config, grid_tau=(config.tau,))
    found = search(Objective(p.host, p.concept, config), p.factors, config, min(e.layer for e in p.chosen), counts)
    return dataclasses.replace(p, chosen=p.chosen[: found.best.n], tau=found.best.tau, mu=found.best.mu, found=found)


def candidates(
    host: "Host", concept: "Concept", by_layer: Mapping[int, "SAE"], config: PiscesConfig, preserve: Sequence[str] = ()
) -> list[FeatureEvidence]:
    """Ranked features that detect the concept well enough, then those at whose negative end its tokens lie.

    Where the config names features, those and no others.

    Raises:
        InputError: A named feature's layer has no SAE.
        MatchedNothing: No feature detects the concept well enough.
    """
    if config.refs:
        return [_given(host, by_layer, ref) for ref in config.refs]
    search_for = FeatureConfig(config.topk, config.minmatch, config.min_rho, config.n_contrast, config.texts, seed=config.seed)
    report = features(
        host, concept, list(by_layer.values()), search_for,
        splits=("train", "validation"), other_model=config.other_model, general=preserve,
    )  # fmt: skip
    detecting = [e for e in report.features if e.direction == "suppress_positive" and e.score >= config.min_auroc]
    if not detecting:
        best = report.features[0]
        raise MatchedNothing(
            f"no feature detects {concept.name!r} with an AUROC of {config.min_auroc} "
            f"(the best, {best.hook_point} {best.id}, has {max(best.score, 0):.2f}); "
            "lower min_auroc, or use a larger or better trained SAE"
        )
    return detecting + [e for e in report.features if e.direction == "suppress_negative"]


def _given(host: "Host", by_layer: Mapping[int, "SAE"], ref: FeatureRef) -> FeatureEvidence:
    check_refs([ref], by_layer)
    sae = by_layer[ref.layer]
    with torch.no_grad():
        return describe(host, hook_point_of(sae), sae, {}, [(ref.id, ref.direction, "given", [])], {})[0]


def neuron_signs(host: "Host", concept: "Concept", layers: Sequence[int], config: PiscesConfig) -> dict[int, Tensor]:
    """The majority sign g of each neuron's activation at the concept's tokens in its train texts.

    Ones where `signed` is off.
    """
    if not config.signed:
        return {layer: torch.ones(len(value_vectors(host, layer)), dtype=torch.float64) for layer in layers}
    texts = pool_texts(concept, "target", "train", config.texts, config.seed)
    if not texts:
        raise InputError(f"concept {concept.name!r} has no target texts in train, which signed=true reads; add some or set signed=false")
    counts = activation_signs(host, texts, layers, list(concept_tokens(host, concept)[0].values()))
    return {layer: c.majority() for layer, c in counts.items()}
