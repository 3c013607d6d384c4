"""Choosing features, and what becomes of their coefficients, by what a change does to first order instead of by what they detect.

One forward and backward pass over the concept's and its neighbours' questions (`train`) and over neutral text says how any change
of the coefficients of the value vectors would move every item. Among all changes in the span of the candidates that take a wanted
share of the margin the one with the least damage is known in closed form (`coefficients.py`); the features that take most of it
are kept, and the change is found again in their span alone.
Not in the paper; it stands in for filters 3.3a and 3.3c, which try each feature alone, and for one mu on the rows above tau.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ....base.errors import InputError, MatchedNothing
from ....base.running import log
from ...attribution import question_taps, text_taps
from ...evaluation.texts import cut_text
from ...features import FeatureEvidence, Scans, contrast, describe, detection
from ...pools import general_texts
from ...scanning import hook_point_of
from .coefficients import Evidence, Round
from .config import Direction, PiscesConfig
from .surgery import Factors, check_refs, trial, written

if TYPE_CHECKING:
    from ....deactivate.concept import Concept, Question
    from ....sae import SAE
    from ...host import Host

MAX_TOKENS = 48
FEWEST = 20
"""Questions in `train` below which those of `validation` are read too."""

FEW = 100
"""Questions below which a warning says that the change will fit them one by one. Qwen2.5-Coder-1.5B, 25 questions: their margin fell
from 1.48 to -0.63, that of 25 others from 1.50 to 1.45; SmolLM2 with 350: half of it gone on all.
"""

Place = tuple[int, int]
"""(layer, column): a candidate."""


@dataclass(eq=False)
class Solved:
    """The change so far, and what each feature has of it."""

    D: Mapping[int, Float[Tensor, "p d"]]
    """Layer -> decoder rows of its candidates."""
    Q: dict[Place, Float[Tensor, " m"]] = field(default_factory=dict)
    """Change of every value vector's coefficient in a feature."""
    fall: dict[Place, float] = field(default_factory=dict)
    """Share of the concept's margin that a feature has taken, by prediction."""
    near: dict[Place, float] = field(default_factory=dict)
    """The same of the neighbours'."""
    push: dict[Place, float] = field(default_factory=dict)
    """What the change makes the layer write along the feature at the concept's tokens, on average."""

    def order(self) -> list[Place]:
        """Largest share of the fall first."""
        return sorted(self.Q, key=lambda at: -self.fall[at])

    def factors(self, places: Sequence[Place]) -> dict[int, Factors]:
        """Layer -> (Q, D) of the given features, in the order given."""
        found: dict[int, list[Place]] = {}
        for at in places:
            found.setdefault(at[0], []).append(at)
        return {x: (torch.stack([self.Q[at] for at in here], 1), self.D[x][[c for _, c in here]]) for x, here in found.items()}

    def add(self, layer: int, columns: Int[Tensor, " k"], Q: Float[Tensor, "m k"], evidence: Evidence) -> None:
        """Puts one round's change of a layer on top."""
        directions = self.D[layer][columns]
        falls = evidence.fall @ evidence.own.effects(layer, Q, directions).cpu()
        losses = -evidence.near.effects(layer, Q, directions).mean(0).cpu() / evidence.near_base.mean()
        pushes = (evidence.own.hidden[layer].to(Q) @ Q).mean(0)
        for i, column in enumerate(columns.tolist()):
            at = layer, column
            self.Q[at] = self.Q.get(at, 0) + Q[:, i]
            for total, part in ((self.fall, falls), (self.near, losses), (self.push, pushes)):
                total[at] = total.get(at, 0.0) + float(part[i])


def by_effect(
    host: "Host", concept: "Concept", by_layer: Mapping[int, "SAE"], scans: Scans, config: PiscesConfig, n: int
) -> tuple[list[FeatureEvidence], list[Factors]]:
    """At most `n` features, those first that lower the margin most, and the change of each: (Q [m 1], D [1 d]).

    Candidates fire on the `train` texts, or are those that the config names. In each of `effect_rounds` rounds effects are read
    anew, on the host with the changes so far: what the first ones did is not linear.

    Raises:
        InputError: There are no questions of the concept or of its neighbours, or their base margin is not above 0.
        MatchedNothing: No candidate lowers the margin.
    """
    ids = _candidates(by_layer, scans, config)
    nothing = MatchedNothing(
        f"no feature that fires on {concept.name!r} lowers its margin; use another SAE, or a smaller effect_auroc (it is {config.effect_auroc})"
    )
    if not ids:
        raise nothing
    state = Solved({x: written(host, by_layer[x], found, config) for x, found in ids.items()})
    if (read := len(_questions(concept, "questions", config.n_effect))) < FEW:
        also = (
            ", and those of validation are among them: figures there say nothing, only --split test does"
            if "validation" in splits_read(concept)
            else ""
        )
        cut = read == config.n_effect < len(_questions(concept, "questions", FEW))
        cure = f"there are more, and n_effect={read} leaves them out" if cut else "add some, or set selection=detect"
        log.warning(
            "selection=effect reads %d questions of %s: with fewer than %d the change fits them alone%s; %s",
            read,
            concept.name,
            FEW,
            also,
            cure,
        )
    bases: tuple[Tensor, Tensor] | None = None
    for _ in range(config.effect_rounds):
        with trial(host, state.factors(state.order())):
            evidence = gather(host, concept, sorted(ids), config, bases)
        bases = evidence.own_base, evidence.near_base
        if (wanted := min(config.effect_fall, 1 - evidence.fallen)) <= 0:
            break
        try:
            _improve(state, evidence, wanted, n if config.refs else max(1, n // config.effect_rounds))
        except ValueError as e:
            raise nothing from e
    order = state.order()
    if sum(state.fall.values()) <= 0:
        raise nothing
    described = {x: _described(host, by_layer[x], ids[x], state, x, scans) for x in ids}
    return [described[x][c] for x, c in order], [state.factors([at])[at[0]] for at in order]


def _improve(state: Solved, evidence: Evidence, wanted: float, most: int) -> None:
    """One round: the best change in the span of all candidates names the features, the best in the span of those is made."""
    this = Round(evidence)
    falls: dict[int, Tensor] = {}
    for layer, Q in this.solved(state.D, wanted).items():
        falls[layer] = evidence.fall @ evidence.own.effects(layer, Q, state.D[layer]).cpu()
    least = torch.cat(list(falls.values())).topk(min(most, sum(map(len, falls.values())))).values[-1].clamp_min(1e-12)
    picked = {x: (f >= least).nonzero()[:, 0] for x, f in falls.items()}
    picked = {x: columns for x, columns in picked.items() if len(columns)}
    for layer, Q in this.solved({x: state.D[x][columns] for x, columns in picked.items()}, wanted).items():
        state.add(layer, picked[layer], Q, evidence)


def _candidates(by_layer: Mapping[int, "SAE"], scans: Scans, config: PiscesConfig) -> dict[int, Int[Tensor, " p"]]:
    """Layer -> features that may be changed."""
    if config.refs:
        check_refs(config.refs, by_layer)
        named = {x: sorted({r.id for r in config.refs if r.layer == x}) for x in sorted({r.layer for r in config.refs})}
        return {x: torch.tensor(found) for x, found in named.items()}
    found = {x: _eligible(hook_point_of(sae), scans, config) for x, sae in sorted(by_layer.items())}
    return {x: ids for x, ids in found.items() if len(ids)}


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
    of_own, of_near = (question_taps(host, layers, questions, concept.form) for questions in (own, near))
    if bases is None:
        for name, tap in (("questions", of_own), ("neighbour_questions", of_near)):
            if float(tap.value.mean()) <= 0:
                raise InputError(
                    f"selection=effect: {host.name} has no positive margin on the {name} of {concept.name!r}; nothing can fall"
                )
    base_own, base_near = bases or (of_own.value, of_near.value)
    return Evidence(of_own, of_near, text_taps(host, layers, texts, config.seed), base_own, base_near)


def splits_read(concept: "Concept") -> tuple[str, ...]:
    """The splits whose questions the change is solved from."""
    pools = (concept.questions, concept.neighbour_questions)
    return ("train", "validation") if any(len(p.get("train", ())) < FEWEST and p.get("validation") for p in pools) else ("train",)


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


def _described(host: "Host", sae: "SAE", ids: Tensor, state: Solved, layer: int, scans: Scans) -> dict[int, FeatureEvidence]:
    """Column -> evidence, of the candidates of a layer that are changed."""
    point, columns = hook_point_of(sae), sorted(c for x, c in state.Q if x == layer)
    here = {key: {point: s[point]} for key, s in scans.items()}
    others = [s[point] for (pool, split), s in here.items() if pool != "target" and split == "train"]
    phi, delta, rho = contrast(here["target", "train"][point], others)
    ends: dict[int, Direction] = {c: "suppress_positive" if state.push[layer, c] < 0 else "suppress_negative" for c in columns}
    features = {c: int(ids[c]) for c in columns}
    stats = {f: (int(phi[f]), float(delta[f]), float(rho[f])) for f in features.values()}
    found = describe(host, point, sae, here, [(f, ends[c], "effect", []) for c, f in features.items()], stats)
    return {
        c: dataclasses.replace(e, effects={"margin": -state.fall[layer, c], "neighbours": -state.near[layer, c]})
        for c, e in zip(columns, found, strict=True)
    }
