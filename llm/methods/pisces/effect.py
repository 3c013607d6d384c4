"""Choosing features by what their edit does, to first order, instead of by what they detect.

One forward and backward pass over the concept's and its neighbours' questions (`train` and `validation`) and over neutral
text says how every candidate's edit would move every item. Features are then taken one after another, each the one that
most raises (fall of the margin) / sqrt(damage) of the set: the fall adds up, and so does damage where two edits push alike.
Not in the paper; it stands in for filters 3.3a and 3.3c, which try each feature alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ....base.errors import InputError, MatchedNothing
from ...attribution import Taps, question_taps, text_taps
from ...evaluation.texts import cut_text
from ...features import FeatureEvidence, Scans, contrast, describe, detection
from ...pools import general_texts
from ...scanning import hook_point_of
from .config import Direction, FeatureRef, PiscesConfig
from .math import LayerProblem
from .surgery import Factors, layer_problem, trial

if TYPE_CHECKING:
    from ....deactivate.concept import Concept, Question
    from ....sae import SAE
    from ...host import Host

KL = 0.03
"""Neutral divergence, nats a token, that counts as one unit of damage."""
NEIGHBOURS = 0.1
"""Share of the neighbours' margin that counts as one unit."""
ITEM = 0.3
"""Root mean square, over neighbours' questions, of an item's change (share of the mean margin) that counts as one unit."""
SPREAD = 0.5
"""Weight of damage that few items cannot show: mean squared change of the layer's output on neutral and neighbour tokens, times
the mean curvature of the layer."""
MAX_TOKENS = 48


@dataclass(frozen=True, eq=False)
class Layer:
    """Candidates of one layer, each with its rewrite `Delta W_out = Q[:, f] D[f]` in the direction that lowers the margin."""

    ids: Int[Tensor, " p"]
    sigma: Float[Tensor, " p"]
    Q: Float[Tensor, "m p"]
    D: Float[Tensor, "p d"]
    fall: Float[Tensor, " p"]
    """Share of the concept's mean margin that is lost."""
    near: Float[Tensor, " p"]
    """Share of the neighbours' mean margin that is lost."""
    damage: Float[Tensor, "s p"]
    """Square root form: the damage of a set is the squared norm of its summed columns, plus `spread`."""
    metric: Float[Tensor, "m m"]
    """`spread` of a change Delta W_out = A: the trace of A^T metric A."""

    def spread(self, change: Float[Tensor, "m d"]) -> Float[Tensor, " p"]:
        """Inner product, in `metric`, of each candidate's change with `change`."""
        return (self.Q * (self.metric @ (change @ self.D.T))).sum(0)

    def own(self) -> Float[Tensor, " p"]:
        """Damage of each candidate alone."""
        return (self.damage**2).sum(0) + (self.Q * (self.metric @ self.Q)).sum(0) * (self.D**2).sum(1)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Taps of the three pools, and the base margins they are shares of."""

    own: Taps
    near: Taps
    text: Taps
    own_margin: float
    near_margin: float


def by_effect(
    host: "Host",
    concept: "Concept",
    by_layer: Mapping[int, "SAE"],
    signs: Mapping[int, Tensor],
    scans: Scans,
    config: PiscesConfig,
    n: int,
) -> list[FeatureEvidence]:
    """The first `n` features of the greedy choice, in its order. Candidates fire on the concept's `train` texts.

    In each of `effect_rounds` rounds a share of them is taken, and effects are read anew on the host with those edited
    that were taken before: what the first ones did is not linear.

    Raises:
        InputError: `validation` lacks questions of the concept or of its neighbours, or a base margin is not above 0.
        MatchedNothing: No candidate lowers the margin.
    """
    ids = {number: _eligible(hook_point_of(sae), scans, config) for number, sae in sorted(by_layer.items())}
    ids = {number: found for number, found in ids.items() if len(found)}
    problems = {
        number: layer_problem(host, by_layer[number], [FeatureRef(number, f) for f in found.tolist()], signs[number], config)
        for number, found in ids.items()
    }
    chosen: list[tuple[int, int]] = []
    described: list[FeatureEvidence] = []
    factors: dict[int, Factors] = {}
    base: tuple[float, float] | None = None
    for part in range(config.effect_rounds if ids else 0):
        with trial(host, factors):
            evidence = gather(host, concept, sorted(ids), config, base)
            base = evidence.own_margin, evidence.near_margin
        layers = {x: candidates(problems[x], ids[x], evidence, x, config.tau, config.mu_effect) for x in ids}
        taken = greedy(layers, round(n * (part + 1) / config.effect_rounds), chosen, {x: q @ d for x, (q, d) in factors.items()})
        described += [_described(host, by_layer[x], layers[x], column, scans) for x, column in taken]
        chosen += taken
        for x in {x for x, _ in taken}:
            columns = [c for y, c in taken if y == x]
            parts = [*([factors[x]] if x in factors else []), (layers[x].Q[:, columns], layers[x].D[columns])]
            factors[x] = torch.cat([q for q, _ in parts], 1), torch.cat([d for _, d in parts])
    if not described:
        raise MatchedNothing(
            f"no feature that fires on {concept.name!r} lowers its margin at tau={config.tau}; lower tau or use another SAE"
        )
    return described


def _eligible(point: str, scans: Scans, config: PiscesConfig) -> Int[Tensor, " p"]:
    """Features that fire on the concept's `train` texts and detect it well enough on `validation`."""
    alive = scans["target", "train"][point].fired.nonzero()[:, 0]
    if config.effect_auroc <= 0 or not len(alive):
        return alive
    areas = detection(scans, point, alive)["validation"]
    return alive if areas is None else alive[areas >= config.effect_auroc]


def gather(
    host: "Host", concept: "Concept", layers: Sequence[int], config: PiscesConfig, base: tuple[float, float] | None = None
) -> Evidence:
    """Reads the pools; `n_effect` questions a pool at most. Shares are of the `base` margins; None: of the host's as it stands."""
    own, near = (_questions(concept, name, config.n_effect) for name in ("questions", "neighbour_questions"))
    texts = [cut_text(host, t, MAX_TOKENS) for t in general_texts(concept, "train", config.n_effect_texts, config.seed)]
    if not texts:
        raise InputError(f"concept {concept.name!r} has no general texts in train, which selection=effect reads; add some")
    margins = base or _margins(host, concept, own, near)
    return Evidence(
        question_taps(host, layers, own, concept.form), question_taps(host, layers, near, concept.form),
        text_taps(host, layers, texts, config.seed), *margins,
    )  # fmt: skip


def _questions(concept: "Concept", name: str, most: int) -> "list[Question]":
    """At most `most`: those of `validation` (there must be some), filled up from `train`."""
    if not getattr(concept, name).get("validation"):
        raise InputError(
            f"concept {concept.name!r} has no {name}.validation, which selection=effect reads: add some, or set selection=detect"
        )
    validation = getattr(concept, name)["validation"][:most]
    return [*validation, *getattr(concept, name).get("train", ())[: most - len(validation)]]


def _margins(host: "Host", concept: "Concept", own: "Sequence[Question]", near: "Sequence[Question]") -> tuple[float, float]:
    from ...evaluation.scoring import score_questions

    found = []
    for name, questions in (("questions", own), ("neighbour_questions", near)):
        margin = score_questions(host, questions, concept.form).margin
        if margin <= 0:
            raise InputError(f"selection=effect: {host.name} has no positive margin on the {name} of {concept.name!r}; nothing can fall")
        found.append(margin)
    return found[0], found[1]


@torch.no_grad()
def candidates(problem: LayerProblem, ids: Tensor, evidence: Evidence, layer: int, tau: float, mu: float) -> Layer:
    """Effects of every feature's rewrite at `tau` and `mu`, with the sign that lowers the margin more."""
    zero = problem.a.new_zeros(())
    push = torch.where(problem.rows(tau), problem.coefficients(mu) * problem.sigma, zero).float()
    removed = torch.where(problem.rows(tau), problem.a, zero).float()
    D = problem.D.float()
    pools = (evidence.own, evidence.near, evidence.text)
    pushed, taken = ([taps.effects(layer, Q, D) for taps in pools] for Q in (push, removed))
    sigma = torch.where(pushed[0].mean(0) > 0, -1.0, 1.0)
    own, near, text = (sigma * up - off for up, off in zip(pushed, taken, strict=True))
    near = near / evidence.near_margin
    n_tokens, n_near = len(evidence.text.item), len(near)
    rows = torch.cat([text * (0.5 / n_tokens / KL) ** 0.5, near.mean(0, keepdim=True) / NEIGHBOURS, near / n_near**0.5 / ITEM])
    curvature = float((evidence.text.gradient[layer] ** 2).sum(1).mean()) / D.shape[1]
    moment = evidence.text.second_moment(layer) + evidence.near.second_moment(layer)
    metric = SPREAD * 0.5 * curvature / KL * moment
    return Layer(ids, sigma, sigma * push - removed, D, -own.mean(0) / evidence.own_margin, -near.mean(0), rows, metric)


@torch.no_grad()
def greedy(
    layers: Mapping[int, Layer],
    n: int,
    before: Sequence[tuple[int, int]] = (),
    changed: Mapping[int, Float[Tensor, "m d"]] | None = None,
) -> list[tuple[int, int]]:
    """(layer, column) of the features taken, best first; ends early where no candidate raises fall / sqrt(damage).

    `before` were taken earlier (of the `n` in all) and `changed` is what they changed, a layer: it counts as damage where effects
    cannot show it any more.
    """
    numbers = sorted(layers)
    fall, alone = (torch.cat(parts) for parts in ([layers[x].fall for x in numbers], [layers[x].own() for x in numbers]))
    place = [(x, c) for x in numbers for c in range(len(layers[x].ids))]
    damage = torch.cat([layers[x].damage for x in numbers], 1)
    start, at = {}, 0
    for x in numbers:
        start[x] = slice(at, at + len(layers[x].ids))
        at += len(layers[x].ids)
    usable = (alone > 0) & (fall > 0)
    change = {x: torch.zeros(layers[x].Q.shape[0], layers[x].D.shape[1]) for x in numbers}
    spread, total, lost, cost = torch.zeros_like(fall), torch.zeros(len(damage)), 0.0, 0.0
    for x, made in (changed or {}).items():
        change[x] += made
        spread[start[x]] = layers[x].spread(change[x])
        cost += float((change[x] * (layers[x].metric @ change[x])).sum())
    for x, column in before:
        usable[start[x].start + column] = False
    order: list[tuple[int, int]] = []
    while len(order) + len(before) < n and bool(usable.any()):
        cross = total @ damage + spread
        ratio = ((lost + fall) / (cost + 2 * cross + alone).clamp_min(1e-12).sqrt()).masked_fill(~usable, -torch.inf)
        best = int(ratio.argmax())
        if order and float(ratio[best]) <= lost / max(cost, 1e-12) ** 0.5:
            break
        cost, lost = float(cost + 2 * cross[best] + alone[best]), lost + float(fall[best])
        total, usable[best] = total + damage[:, best], False
        x, column = place[best]
        change[x] += layers[x].Q[:, column : column + 1] * layers[x].D[column]
        spread[start[x]] = layers[x].spread(change[x])
        order.append((x, column))
    return order


def _described(host: "Host", sae: "SAE", layer: Layer, column: int, scans: Scans) -> FeatureEvidence:
    point, f = hook_point_of(sae), int(layer.ids[column])
    direction: Direction = "suppress_positive" if layer.sigma[column] < 0 else "suppress_negative"
    here = {key: {point: s[point]} for key, s in scans.items()}
    others = [s[point] for (pool, split), s in here.items() if pool != "target" and split == "train"]
    phi, delta, rho = contrast(here["target", "train"][point], others)
    stats = {f: (int(phi[f]), float(delta[f]), float(rho[f]))}
    e = describe(host, point, sae, here, [(f, direction, "effect", [])], stats)[0]
    return dataclasses.replace(e, effects={"margin": -float(layer.fall[column]), "neighbours": -float(layer.near[column])})
