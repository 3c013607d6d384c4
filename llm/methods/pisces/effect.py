"""Choosing features, and how strongly each is edited, by what their edits do to first order instead of by what they detect.

One forward and backward pass over the concept's and its neighbours' questions (`train`) and over neutral text says how every
candidate's edit would move every item. Strengths are those that take a wanted share of the margin with the least damage:
the fall adds up, and so does damage where two edits push alike. Most strengths come out as 0.
Not in the paper; it stands in for filters 3.3a and 3.3c, which try each feature alone, and for one mu for all features.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ....base.errors import InputError, MatchedNothing
from ...attribution import question_taps, text_taps
from ...evaluation.texts import cut_text
from ...features import FeatureEvidence, Scans, contrast, describe, detection
from ...pools import general_texts
from ...scanning import hook_point_of
from .config import Direction, FeatureRef, PiscesConfig
from .math import LayerProblem
from .strengths import KL, SPREAD, Evidence, Layer, Strengths
from .surgery import layer_problem, trial

if TYPE_CHECKING:
    from ....deactivate.concept import Concept, Question
    from ....sae import SAE
    from ...host import Host

MAX_TOKENS = 48
FEWEST = 20
"""Questions in `train` below which those of `validation` are read too."""


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
    described = {x: _described(host, by_layer[x], ids[x], state, x, scans) for x in ids}
    return [described[x][column] for x, column in order]


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


def _described(host: "Host", sae: "SAE", ids: Tensor, state: Strengths, layer: int, scans: Scans) -> dict[int, FeatureEvidence]:
    """Column -> evidence, of the candidates of a layer that are in force."""
    point, columns = hook_point_of(sae), state.value[layer].nonzero()[:, 0].tolist()
    here = {key: {point: s[point]} for key, s in scans.items()}
    others = [s[point] for (pool, split), s in here.items() if pool != "target" and split == "train"]
    phi, delta, rho = contrast(here["target", "train"][point], others)
    directions: dict[int, Direction] = {
        c: "suppress_positive" if state.layers[layer].sigma[c] < 0 else "suppress_negative" for c in columns
    }
    features = {c: int(ids[c]) for c in columns}
    stats = {f: (int(phi[f]), float(delta[f]), float(rho[f])) for f in features.values()}
    found = describe(host, point, sae, here, [(f, directions[c], "effect", []) for c, f in features.items()], stats)
    return {
        c: dataclasses.replace(
            e,
            strength=float(state.value[layer][c]),
            effects={"margin": -float(state.fall[layer][c]), "neighbours": -float(state.near[layer][c])},
        )
        for c, e in zip(columns, found, strict=True)
    }
