"""What an edit must be read beside.

As many random features, random directions of equal norm, and a filter on the concept's names.
"""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...base.config import from_mapping
from ...base.errors import InputError, MatchedNothing
from ...deactivate.edit import Edit
from ...deactivate.parts import LowRank, WeightsPart
from ..methods.pisces.config import FeatureRef, PiscesConfig
from ..methods.pisces.fit import neuron_signs, weight_delta
from ..methods.pisces.surgery import Factors, layer_problem, saes_by_layer
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

    Same layers, same count, same tau, mu and signs; each drawn feature's change has the Frobenius norm of the one it
    stands for. Drawn
    are features that fire on general text, and none that the edit itself changed.
    """

    def __init__(self, host: "Host", edit: Edit, saes: Sequence["SAE"], concept: "Concept", texts: int = 50) -> None:
        plans = edit.evidence.get("concepts") if isinstance(edit.evidence, Mapping) else None
        if edit.eraser != "pisces" or not plans:
            raise InputError(f"control «random features»: needs an edit by features; {edit.eraser} has none")
        self.host, self.plans = host, plans
        self.config = from_mapping(PiscesConfig, edit.config, where="the edit's config")
        check_saes(host, saes, other_model=self.config.other_model)
        self.saes = saes_by_layer(saes)
        self.refs = [[FeatureRef(_layer(f), f["id"], f["direction"], f.get("strength", 1.0)) for f in p["features"]] for p in plans]
        layers = sorted({r.layer for refs in self.refs for r in refs})
        if missing := [x for x in layers if x not in self.saes]:
            raise InputError(f"control «random features»: no SAE given for layers {missing}, which the edit changes")
        self.signs = neuron_signs(host, concept, layers, self.config)
        used = {hook_point_of(self.saes[x]): self.saes[x] for x in layers}
        scans = scan(host, general_texts(concept, "train", texts, self.config.seed), used)
        self.alive = {x: scans[hook_point_of(self.saes[x])].fired.nonzero()[:, 0].tolist() for x in layers}

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
                parts.setdefault(layer, []).append(self._drawn(layer, own, plan["tau"], plan["mu"], rng))
        deltas = dict(weight_delta(self.host, layer, p) for layer, p in sorted(parts.items()))
        return _control(deltas, "random features", seed)

    def _drawn(self, layer: int, own: list[FeatureRef], tau: float, mu: float, rng: random.Random) -> Factors:
        edited = {r.id for refs in self.refs for r in refs if r.layer == layer}
        pool = [i for i in self.alive[layer] if i not in edited]
        if len(pool) < len(own):
            raise MatchedNothing(
                f"control «random features»: layer {layer} has {len(pool)} other features that fire, {len(own)} are needed"
            )
        drawn = [FeatureRef(layer, i, r.direction) for i, r in zip(rng.sample(pool, len(own)), own, strict=True)]
        (Q0, D0), (Q, D) = self._factors(layer, own, tau, mu), self._factors(layer, drawn, tau, mu)
        wanted, have = Q0.norm(dim=0) * D0.norm(dim=1), Q.norm(dim=0) * D.norm(dim=1)
        return Q * (wanted / have.clamp_min(1e-30)), D

    def _factors(self, layer: int, refs: list[FeatureRef], tau: float, mu: float) -> tuple[Tensor, Tensor]:
        problem = layer_problem(self.host, self.saes[layer], refs, self.signs[layer], self.config)
        return problem.Q(tau, self.config.mu_at(layer, mu, self.host.post_norm)), problem.D


def random_directions(host: "Host", edit: Edit, seed: int) -> Edit:
    """The edit with every direction that it writes replaced by a Gaussian one of the same norm.

    Which rows, and how much of each, stays.

    Raises:
        InputError: The edit has a part that is no low-rank change of weights.
    """
    gen = torch.Generator().manual_seed(seed)
    down = {name: transposed for name, _, transposed in map(host.down_proj, range(host.n_layers))}
    deltas: dict[str, LowRank] = {}
    for part in edit.parts:
        for name, delta in getattr(part, "deltas", {"": None}).items():
            if not isinstance(delta, LowRank):
                raise InputError("control «random directions»: needs low-rank changes of weights; this edit has another part")
            if down.get(name, False):
                deltas[name] = LowRank(B=delta.B, A=_redrawn(delta.A.T, gen).T.contiguous())
            else:
                deltas[name] = LowRank(B=_redrawn(delta.B, gen), A=delta.A)
    return _control(deltas, "random directions", seed)


def _redrawn(columns: Tensor, gen: torch.Generator) -> Tensor:
    """Gaussian columns with the norms of `columns`."""
    new = torch.randn(columns.shape, generator=gen, dtype=torch.float64)
    return (new * (columns.double().norm(dim=0) / new.norm(dim=0))).to(columns.dtype)


def _control(deltas: Mapping[str, LowRank], name: str, seed: int) -> Edit:
    return Edit(
        parts=[WeightsPart(dict(deltas))], eraser="control", config={"control": name, "seed": seed},
        evidence={"control": name}, seeds={"control": seed},
    )  # fmt: skip


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
