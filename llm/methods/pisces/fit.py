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
from .effect import by_effect
from .filters import Judges, filtered
from .math import LayerProblem
from .search import Found, Objective, search
from .surgery import Factors, activation_signs, layer_problem, saes_by_layer, value_vectors

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
    deltas = dict(weight_delta(host, layer, parts) for layer, parts in sorted(totals.items()))
    return Edit(
        parts=[WeightsPart(deltas)],
        eraser="pisces",
        config=dataclasses.asdict(config),
        concepts=list(concepts),
        evidence={"concepts": [p.to_dict() for p in plans], "host": host.name, "host_digest": host.digest},
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
        mu, scale = (self.config.mu_effect, mu / self.config.mu_effect) if self.has_strengths else (mu, 1.0)
        for layer, (problem, ranks) in self.problems.items():
            columns = [c for c, rank in enumerate(ranks) if rank < n]
            if columns:
                part = problem if len(columns) == len(ranks) else problem.subset(torch.tensor(columns))
                Q = part.Q(tau, self.config.mu_at(layer, mu, self.host.post_norm))
                out[layer] = scale * Q, part.D
        return out

    @property
    def has_strengths(self) -> bool:
        """Whether features were chosen with strengths, which mu then scales."""
        return any(e.source == "effect" for e in self.chosen)

    def folded(self) -> "Plan":
        """The same edit with the scale of mu in the strengths, and mu at which those were chosen."""
        if not self.has_strengths:
            return self
        scale = self.mu / self.config.mu_effect
        return dataclasses.replace(
            self, chosen=[dataclasses.replace(e, strength=e.strength * scale) for e in self.chosen], mu=self.config.mu_effect
        )

    def to_dict(self) -> dict[str, Any]:
        """Evidence as plain values: features, what was dropped, settings, rows rewritten, the search."""
        rows = {
            str(layer): {str(self.chosen[r].id): int(p.rows(self.tau)[:, c].sum()) for c, r in enumerate(ranks)}
            for layer, (p, ranks) in self.problems.items()
        }
        return {
            "concept": self.concept.name,
            "digest": self.concept.digest,
            "tau": self.tau,
            "mu": self.mu,
            "features": [dataclasses.asdict(e) for e in self.chosen],
            "dropped": [dataclasses.asdict(e) for e in self.dropped],
            "rows": rows,
            "search": self.found.to_dict() if self.found else None,
        }


def reference(e: FeatureEvidence) -> FeatureRef:
    """What the config would call this feature."""
    return FeatureRef(e.layer, e.id, e.direction, e.strength)


def plan(host: "Host", concept: "Concept", by_layer: Mapping[int, "SAE"], config: PiscesConfig, preserve: Sequence[str] = ()) -> Plan:
    """Features of one concept that pass the filters, signs of the neurons, and, with `search`, settings.

    Settings are those that do best on `validation`.
    """
    most = max([config.n_features, *config.grid_n]) if config.search and config.grid_n else config.n_features
    wanted = len(config.refs) or most
    if config.selection_or_default == "effect" and not config.refs:
        return _plan_by_effect(host, concept, by_layer, config, preserve, wanted)
    ranked = candidates(host, concept, by_layer, config, preserve)
    layers = sorted({e.layer for e in ranked})
    signs = neuron_signs(host, concept, layers, config)
    out = Plan(host, concept, config, by_layer, ranked[:wanted], [], signs, config.tau, config.mu)
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
    signs = neuron_signs(host, concept, sorted(by_layer), config)
    chosen = by_effect(host, concept, by_layer, signs, scans, config, wanted)
    out = Plan(host, concept, config, by_layer, chosen, [], signs, config.tau, config.mu)
    return (searched(out) if config.search else out).folded()


def searched(open_plan: Plan) -> Plan:
    """The plan with tau, mu and the number of features that do best on `validation`."""
    p, config = open_plan, open_plan.config
    counts = sorted({min(n, len(p.chosen)) for n in config.grid_n}) or [len(p.chosen)]
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
    if ref.layer not in by_layer:
        have = sorted(by_layer)
        raise InputError(f"features: {ref} is of layer {ref.layer}, but the SAEs given are of layers {have}")
    sae = by_layer[ref.layer]
    if ref.id >= sae.cfg.d_sae:
        raise InputError(f"features: {ref} is beyond the SAE's {sae.cfg.d_sae} features")
    with torch.no_grad():
        found = describe(host, hook_point_of(sae), sae, {}, [(ref.id, ref.direction, "given", [])], {})[0]
    return dataclasses.replace(found, strength=ref.strength)


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
