"""Choosing features, and how strongly each is edited, by what their edits do to first order instead of by what they detect.

One forward and backward pass over the concept's and its neighbours' questions (`train`) and over neutral text says how every
candidate's edit would move every item. Strengths are those that take a wanted share of the margin with the least damage:
the fall adds up, and so does damage where two edits push alike. Most strengths come out as 0.
Not in the paper; it stands in for filters 3.3a and 3.3c, which try each feature alone, and for one mu for all features.
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
from .strengths import least_damage
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
NOISE = 0.1
"""Standard error of the fall, over the concept's questions, that counts as one unit: what few items cannot show."""
SPREAD = 0.5
"""Weight of damage that few texts cannot show: mean squared change of the layer's output on neutral and neighbour tokens, times
the mean curvature of the layer."""
RIDGE = 0.1
"""Share of each candidate's own damage that is added once more, whatever the others do: damage of two edits that seems to cancel
on the items read need not cancel elsewhere."""
CANDIDATES = 1000
"""Candidates among which strengths are shared out: those with the largest fall for their own damage."""
MAX_TOKENS = 48
FEWEST = 20
"""Questions in `train` below which those of `validation` are read too."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Candidates of one layer, each with its rewrite `Delta W_out = Q[:, f] D[f]` in the direction that lowers the margin."""

    ids: Int[Tensor, " p"]
    sigma: Float[Tensor, " p"]
    Q: Float[Tensor, "m p"]
    D: Float[Tensor, "p d"]
    own: Float[Tensor, "n p"]
    """Change of the margin of each of the concept's questions, in shares of their mean base margin."""
    near: Float[Tensor, "n2 p"]
    """The same of the neighbours' questions."""
    text: Float[Tensor, "n3 p"]
    """Square root form: the squared norm of summed columns is the divergence on neutral text, in units of `KL`."""
    metric: Float[Tensor, "m m"]
    """Of damage that the items read cannot show: a change Delta W_out = A does trace(A^T metric A)."""

    def spread(self, columns: Int[Tensor, " k"]) -> Float[Tensor, "k k"]:
        """Square form, over those candidates, of damage that the items read cannot show."""
        Q, D = self.Q[:, columns], self.D[columns]
        return (Q.T @ (self.metric @ Q)) * (D @ D.T)

    def own_spread(self) -> Float[Tensor, " p"]:
        """The diagonal of `spread`, of every candidate."""
        return (self.Q * (self.metric @ self.Q)).sum(0) * (self.D**2).sum(1)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Taps of the three pools of the host as it stands, and the base margins they are read against."""

    own: Taps
    near: Taps
    text: Taps
    own_base: Float[Tensor, " n"]
    near_base: Float[Tensor, " n2"]

    @property
    def open(self) -> Float[Tensor, " n"]:
        """1 for the concept's questions whose margin is above 0 still, else 0: no more can fall there."""
        return (self.own.value > 0).float()

    @property
    def fallen(self) -> float:
        """Share of the concept's base margin that is gone; an item below 0 counts as 0."""
        return 1 - float(self.own.value.clamp_min(0).mean() / self.own_base.clamp_min(0).mean())

    @property
    def moved(self) -> Float[Tensor, " n2"]:
        """Change of each neighbours' margin so far, in shares of their mean."""
        return (self.near.value - self.near_base) / self.near_base.mean()


def by_effect(
    host: "Host",
    concept: "Concept",
    by_layer: Mapping[int, "SAE"],
    signs: Mapping[int, Tensor],
    scans: Scans,
    config: PiscesConfig,
    n: int,
) -> list[FeatureEvidence]:
    """At most `n` features and their strengths, those first that lower the margin most. Candidates fire on the `train` texts.

    In each of `effect_rounds` rounds a share of the wanted fall is taken, and effects are read anew on the host with the
    strengths of the round before: what the first ones did is not linear.

    Raises:
        InputError: There are no questions of the concept or of its neighbours, or their base margin is not above 0.
        MatchedNothing: No candidate lowers the margin.
    """
    ids = {number: _eligible(hook_point_of(sae), scans, config) for number, sae in sorted(by_layer.items())}
    ids = {number: found for number, found in ids.items() if len(found)}
    nothing = MatchedNothing(
        f"no feature that fires on {concept.name!r} lowers its margin at tau={config.tau}; lower tau or use another SAE"
    )
    if not ids:
        raise nothing
    problems = {
        number: layer_problem(host, by_layer[number], [FeatureRef(number, f) for f in found.tolist()], signs[number], config)
        for number, found in ids.items()
    }
    state = Strengths.none(ids)
    bases: tuple[Tensor, Tensor] | None = None
    for part in range(config.effect_rounds):
        with trial(host, state.factors()):
            evidence = gather(host, concept, sorted(ids), config, bases)
        bases = evidence.own_base, evidence.near_base
        wanted = (config.effect_fall - evidence.fallen) / (config.effect_rounds - part)
        if wanted <= 0:
            break
        layers = {x: candidates(problems[x], ids[x], evidence, x, config, state.signs(x)) for x in ids}
        state = state.next(layers, evidence, wanted, n)
    order = state.order()[:n]
    if not order:
        raise nothing
    return [_described(host, by_layer[x], ids[x], state, column, x, scans) for x, column in order]


@dataclass(frozen=True, eq=False)
class Strengths:
    """Strength of every candidate, and what rounds so far predicted of it."""

    layers: Mapping[int, Layer]
    value: Mapping[int, Float[Tensor, " p"]]
    fall: Mapping[int, Float[Tensor, " p"]]
    """Share of the concept's margin that each has taken, by prediction."""
    near: Mapping[int, Float[Tensor, " p"]]
    """The same of the neighbours'."""

    @classmethod
    def none(cls, ids: Mapping[int, Tensor]) -> "Strengths":
        """All zero."""
        zeros = [{x: torch.zeros(len(found)) for x, found in ids.items()} for _ in range(3)]
        return cls({}, *zeros)

    def signs(self, layer: int) -> Float[Tensor, " p"]:
        """The sign of each candidate that is in force, 0 of the others."""
        value = self.value[layer]
        return torch.where(value > 0, self.layers[layer].sigma, 0.0) if layer in self.layers else torch.zeros_like(value)

    def factors(self) -> dict[int, Factors]:
        """The edit."""
        found: dict[int, Factors] = {}
        for x, layer in self.layers.items():
            if len(columns := self.value[x].nonzero()[:, 0]):
                found[x] = layer.Q[:, columns] * self.value[x][columns], layer.D[columns]
        return found

    @torch.no_grad()
    def next(self, layers: Mapping[int, Layer], evidence: Evidence, wanted: float, most: int) -> "Strengths":
        """The strengths that take `wanted` more of the margin with the least damage in all; at most `most` above 0."""
        numbers = sorted(layers)
        before = self._joined(self.value, numbers)
        own, near, text = (torch.cat([getattr(layers[x], k) for x in numbers], 1) for k in ("own", "near", "text"))
        fall = -(evidence.open @ own) / len(own)
        deviation = (own + fall) * evidence.open[:, None] / len(own) / NOISE
        felt = torch.cat([near.mean(0, keepdim=True) / NEIGHBOURS, near / len(near) ** 0.5 / ITEM])
        moved = evidence.moved
        so_far = torch.cat([moved.mean()[None] / NEIGHBOURS, moved / len(near) ** 0.5 / ITEM])
        linear = felt.T @ (felt @ before - so_far)
        rows = torch.cat([felt, text, deviation])
        alone = (rows**2).sum(0) + torch.cat([layers[x].own_spread() for x in numbers])
        worth = (fall / alone.clamp_min(1e-30).sqrt()).masked_fill(before > 0, torch.inf)
        goal = wanted + float(fall @ before)

        def strengths(keep: Tensor) -> Tensor:
            H = rows[:, keep].T @ rows[:, keep] + _blocks(layers, numbers, keep)
            H += RIDGE * torch.diag(H.diagonal())
            found = least_damage(H.double(), linear[keep].double(), fall[keep].double(), goal)
            return torch.zeros_like(fall).index_copy(0, keep, found.to(fall))

        value = strengths(worth.topk(min(CANDIDATES, len(worth))).indices.sort().values)
        if int((value > 0).sum()) > most:
            taken = self._joined(self.fall, numbers) + (value - before) * fall
            value = strengths(taken.masked_fill(value <= 0, -torch.inf).topk(most).indices.sort().values)
        sizes = [len(layers[x].ids) for x in numbers]
        now, fell, lost = (
            dict(zip(numbers, part.split(sizes), strict=True)) for part in (value, (value - before) * fall, (before - value) * near.mean(0))
        )
        return Strengths(layers, now, *({x: old[x] + part[x] for x in numbers} for old, part in ((self.fall, fell), (self.near, lost))))

    @staticmethod
    def _joined(parts: Mapping[int, Tensor], numbers: Sequence[int]) -> Float[Tensor, " p"]:
        return torch.cat([parts[x] for x in numbers])

    def order(self) -> list[tuple[int, int]]:
        """(layer, column) of what is above 0, largest share of the fall first."""
        place = [(x, int(c)) for x in sorted(self.value) for c in self.value[x].nonzero()[:, 0]]
        return sorted(place, key=lambda at: -float(self.fall[at[0]][at[1]]))


def _blocks(layers: Mapping[int, Layer], numbers: Sequence[int], keep: Int[Tensor, " k"]) -> Float[Tensor, "k k"]:
    """Spread of the candidates `keep` (ascending, numbered through all layers): none across layers."""
    blocks, start = [], 0
    for x in numbers:
        end = start + len(layers[x].ids)
        blocks.append(layers[x].spread(keep[(keep >= start) & (keep < end)] - start))
        start = end
    return torch.block_diag(*blocks)


def _eligible(point: str, scans: Scans, config: PiscesConfig) -> Int[Tensor, " p"]:
    """Features that fire on the concept's `train` texts and detect it well enough on `validation`."""
    alive = scans["target", "train"][point].fired.nonzero()[:, 0]
    if config.effect_auroc <= 0 or not len(alive):
        return alive
    areas = detection(scans, point, alive)["validation"]
    return alive if areas is None else alive[areas >= config.effect_auroc]


def gather(
    host: "Host", concept: "Concept", layers: Sequence[int], config: PiscesConfig, bases: tuple[Tensor, Tensor] | None = None
) -> Evidence:
    """Reads the pools; `n_effect` questions a pool at most. `bases` are the unedited margins; None: the host is unedited."""
    own, near = (_questions(concept, name, config.n_effect) for name in ("questions", "neighbour_questions"))
    texts = [cut_text(host, t, MAX_TOKENS) for t in general_texts(concept, "train", config.n_effect_texts, config.seed)]
    if not texts:
        raise InputError(f"concept {concept.name!r} has no general texts in train, which selection=effect reads; add some")
    taps = [question_taps(host, layers, questions, concept.form) for questions in (own, near)]
    if bases is None:
        for name, tap in zip(("questions", "neighbour_questions"), taps, strict=True):
            if float(tap.value.mean()) <= 0:
                raise InputError(
                    f"selection=effect: {host.name} has no positive margin on the {name} of {concept.name!r}; nothing can fall"
                )
    return Evidence(*taps, text_taps(host, layers, texts, config.seed), *(bases or (t.value for t in taps)))


def _questions(concept: "Concept", name: str, most: int) -> "list[Question]":
    """At most `most` of `train`, filled up from `validation` where `train` has few (there must be some)."""
    found = list(getattr(concept, name).get("train", ()))
    if len(found) < FEWEST:
        found += getattr(concept, name).get("validation", ())
    if not found:
        raise InputError(
            f"concept {concept.name!r} has no {name} in train or validation, which selection=effect reads: "
            "add some, or set selection=detect"
        )
    return found[:most]


@torch.no_grad()
def candidates(
    problem: LayerProblem, ids: Tensor, evidence: Evidence, layer: int, config: PiscesConfig, signs: Float[Tensor, " p"]
) -> Layer:
    """Effects of every feature's rewrite at `tau` and `mu_effect`.

    The sign of each is that in `signs` or, where that is 0, the one that lowers the margin more.
    """
    zero = problem.a.new_zeros(())
    push = torch.where(problem.rows(config.tau), problem.coefficients(config.mu_effect) * problem.sigma, zero).float()
    removed = torch.where(problem.rows(config.tau), problem.a, zero).float()
    D = problem.D.float()
    pools = (evidence.own, evidence.near, evidence.text)
    pushed, taken = ([taps.effects(layer, Q, D) for taps in pools] for Q in (push, removed))
    sigma = torch.where(pushed[0].mean(0) > 0, -1.0, 1.0)
    sigma = torch.where(signs == 0, sigma, signs)
    own, near, text = (sigma * up - off for up, off in zip(pushed, taken, strict=True))
    Q = sigma * push - removed
    curvature = float((evidence.text.gradient[layer] ** 2).sum(1).mean()) / D.shape[1]
    moment = evidence.text.second_moment(layer) + evidence.near.second_moment(layer)
    text = text * (0.5 / len(evidence.text.item) / KL) ** 0.5
    return Layer(
        ids,
        sigma,
        Q,
        D,
        own / evidence.own_base.clamp_min(0).mean(),
        near / evidence.near_base.mean(),
        text,
        SPREAD * 0.5 * curvature / KL * moment,
    )


def _described(host: "Host", sae: "SAE", ids: Tensor, state: Strengths, column: int, layer: int, scans: Scans) -> FeatureEvidence:
    point, f = hook_point_of(sae), int(ids[column])
    direction: Direction = "suppress_positive" if state.layers[layer].sigma[column] < 0 else "suppress_negative"
    here = {key: {point: s[point]} for key, s in scans.items()}
    others = [s[point] for (pool, split), s in here.items() if pool != "target" and split == "train"]
    phi, delta, rho = contrast(here["target", "train"][point], others)
    stats = {f: (int(phi[f]), float(delta[f]), float(rho[f]))}
    e = describe(host, point, sae, here, [(f, direction, "effect", [])], stats)[0]
    effects = {"margin": -float(state.fall[layer][column]), "neighbours": -float(state.near[layer][column])}
    return dataclasses.replace(e, effects=effects, strength=float(state.value[layer][column]))
