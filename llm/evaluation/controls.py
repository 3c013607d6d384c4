"""What an edit must be read beside.

As many random features, random directions of equal norm, and a filter on the concept's names.
"""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...base.config import from_mapping
from ...base.errors import InputError, MatchedNothing
from ...deactivate.edit import Edit
from ...deactivate.evaluation.controls import control_edit, random_projection, redrawn
from ...deactivate.parts import Dense, LowRank, Part, ProjectionPart, WeightsPart
from ..methods.pisces.config import FeatureRef, PiscesConfig
from ..methods.pisces.fit import neuron_signs, weight_delta
from ..methods.pisces.surgery import Factors, layer_problem, saes_by_layer, written
from ..pools import general_texts
from ..scanning import check_saes, hook_point_of, scan
from .metrics import Measured
from .scoring import Item, Scores, contains

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...sae import SAE
    from ..host import Host


class RandomFeatures:
    """Draws of the control «random features»: the edit's recipe on features drawn by lot.

    Same layers and same count; each drawn feature's change has the Frobenius norm of the one it stands for. Its rows are rewritten
    at the same tau, mu and signs; where the edit's coefficients were solved for, it takes over those of the one it stands for: the
    same neurons say when to write, and another feature is written.
    Drawn are features that fire on general text, and none that the edit itself changed.
    """

    def __init__(self, host: "Host", edit: Edit, saes: Sequence["SAE"], concept: "Concept", texts: int = 50) -> None:
        plans = edit.evidence.get("concepts") if isinstance(edit.evidence, Mapping) else None
        if edit.eraser != "pisces" or not plans:
            raise InputError(f"control «random features»: needs an edit by features; {edit.eraser} has none")
        self.host, self.plans = host, plans
        self.config = from_mapping(PiscesConfig, edit.config, where="the edit's config")
        check_saes(host, saes, other_model=self.config.other_model)
        self.saes = saes_by_layer(saes)
        self.refs = [[FeatureRef(_layer(f), f["id"], f["direction"]) for f in p["features"]] for p in plans]
        layers = sorted({r.layer for refs in self.refs for r in refs})
        if missing := [x for x in layers if x not in self.saes]:
            raise InputError(f"control «random features»: no SAE given for layers {missing}, which the edit changes")
        used = {hook_point_of(self.saes[x]): self.saes[x] for x in layers}
        scans = scan(host, general_texts(concept, "train", texts, self.config.seed), used)
        self.alive = {x: scans[hook_point_of(self.saes[x])].fired.nonzero()[:, 0].tolist() for x in layers}
        self.recipe = (
            _Solved(host, edit) if self.config.selection_or_default == "effect" else _Rows(host, self.saes, concept, layers, self.config)
        )

    def draw(self, seed: int) -> Edit:
        """One control edit.

        Raises:
            MatchedNothing: A layer has too few other features that fire.
        """
        rng = random.Random(f"random features/{seed}")
        parts: dict[int, list[Factors]] = {}
        for plan, refs in zip(self.plans, self.refs, strict=True):
            for layer in sorted({r.layer for r in refs}):
                own = [r for r in refs if r.layer == layer]
                before = sum(Q.shape[1] for Q, _ in parts.get(layer, ()))
                parts.setdefault(layer, []).append(self._drawn(layer, own, before, plan, rng))
        deltas = dict(weight_delta(self.host, layer, p) for layer, p in sorted(parts.items()))
        return control_edit([WeightsPart(deltas)], "random features", seed)

    def _drawn(self, layer: int, own: list[FeatureRef], before: int, plan: Mapping[str, Any], rng: random.Random) -> Factors:
        edited = {r.id for refs in self.refs for r in refs if r.layer == layer}
        pool = [i for i in self.alive[layer] if i not in edited]
        if len(pool) < len(own):
            raise MatchedNothing(
                f"control «random features»: layer {layer} has {len(pool)} other features that fire, {len(own)} are needed"
            )
        drawn = [FeatureRef(layer, i, r.direction) for i, r in zip(rng.sample(pool, len(own)), own, strict=True)]
        if isinstance(self.recipe, _Solved):
            Q0, D0 = self.recipe.factors(layer, before, len(own))
            Q, D = Q0, written(self.host, self.saes[layer], torch.tensor([r.id for r in drawn]), self.config).to(Q0)
        else:
            (Q0, D0), (Q, D) = (self.recipe.factors(layer, refs, plan["tau"], plan["mu"]) for refs in (own, drawn))
        wanted, have = Q0.norm(dim=0) * D0.norm(dim=1), Q.norm(dim=0) * D.norm(dim=1)
        return Q * (wanted / have.clamp_min(1e-30)), D


class _Rows:
    """Factors of features whose rows are rewritten at tau and mu."""

    def __init__(self, host: "Host", saes: Mapping[int, "SAE"], concept: "Concept", layers: Sequence[int], config: PiscesConfig) -> None:
        self.host, self.saes, self.config = host, saes, config
        self.signs = neuron_signs(host, concept, layers, config)

    def factors(self, layer: int, refs: Sequence[FeatureRef], tau: float, mu: float) -> Factors:
        """Of the given features, all of one layer."""
        problem = layer_problem(self.host, self.saes[layer], refs, self.signs[layer], self.config)
        return problem.Q(tau, self.config.mu_at(layer, mu, self.host.post_norm)), problem.D


class _Solved:
    """Factors of features whose coefficients were solved for: those of the edit itself."""

    def __init__(self, host: "Host", edit: Edit) -> None:
        self.host = host
        self.deltas: dict[str, LowRank] = {}
        for part in edit.parts:
            for name, delta in getattr(part, "deltas", {"": None}).items():
                if not isinstance(delta, LowRank) or name in self.deltas:
                    raise InputError("control «random features»: needs one low-rank change of each tensor; this edit has another part")
                self.deltas[name] = delta

    def factors(self, layer: int, start: int, n: int) -> Factors:
        """Of the `n` features of a layer from `start` on, as the edit has them one after another."""
        name, _, transposed = self.host.down_proj(layer)
        delta = self.deltas[name]
        Q, D = (delta.B, delta.A) if transposed else (delta.A.T, delta.B.T)
        return Q[:, start : start + n], D[start : start + n]


def random_directions(host: "Host", edit: Edit, seed: int) -> Edit:
    """The edit with every direction that it writes replaced by a Gaussian one of the same norm.

    Which rows, and how much of each, stays. A dense change writes one direction for each input; a projection becomes an orthogonal one of
    equal rank on random directions.

    Raises:
        InputError: The edit has a part that is neither a projection nor a change of matrices.
    """
    gen = torch.Generator().manual_seed(seed)
    deltas: dict[str, LowRank | Dense] = {}
    parts: list[Part] = [random_projection(p, gen) for p in edit.parts if isinstance(p, ProjectionPart)]
    for part in (p for p in edit.parts if not isinstance(p, ProjectionPart)):
        for name, delta in getattr(part, "deltas", {"": None}).items():
            # Conv1D, the layers' linear map where there is one, holds its weight as [in out]
            turned = host.family.transposed and name.startswith(f"{host.family.layers}.")
            if isinstance(delta, LowRank):
                A, B = (redrawn(delta.A.T, gen).T.contiguous(), delta.B) if turned else (delta.A, redrawn(delta.B, gen))
                deltas[name] = LowRank(B=B, A=A)
            elif isinstance(delta, Dense) and len(delta.shape) == 2:
                deltas[name] = Dense(redrawn(delta.change.T, gen).T.contiguous() if turned else redrawn(delta.change, gen))
            else:
                raise InputError("control «random directions»: needs projections or changes of matrices; this edit has another part")
    return control_edit([*parts, *([WeightsPart(deltas)] if deltas else [])], "random directions", seed)


def _layer(feature: Mapping[str, object]) -> int:
    return int(str(feature["hook_point"]).split(".")[1])


def string_filter(concept: "Concept", base: Measured) -> Measured:
    """What a filter on the concept's names would score.

    Where a question names it nothing is answered (margin 0, chance), else the base.
    """
    names = {n.casefold().strip() for n in (concept.name, *concept.synonyms.get("seen", ()), *concept.tokens)} - {""}

    def through(scores: Scores) -> Scores:
        return Scores(tuple(_flat(i) if any(contains(i.q.casefold(), n) for n in names) else i for i in scores.items))

    return Measured(through(base.target), through(base.neighbours) if base.neighbours else None, base.texts)


def _flat(item: Item) -> Item:
    """The item as scored by someone who answers nothing: all options alike."""
    return Item(item.q, item.options, (0.0,) * len(item.options), item.right, item.suppressed)
