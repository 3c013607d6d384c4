"""Strengths of many candidates at once: what one round of reading effects makes of them, on plain tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...attribution import Taps
from .least_damage import least_damage
from .surgery import Factors

KL = 0.03
"""Neutral divergence, nats a token, that counts as one unit of damage."""
NEIGHBOURS = 0.04
"""Share of the neighbours' margin that counts as one unit."""
ITEM = 0.15
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
        before, taken = (torch.cat([part[x] for x in numbers]) for part in (self.value, self.fall))
        r = Round.of(layers, evidence, before)
        goal = wanted + float(r.fall @ before)
        value = r.solved(r.worth(before).topk(min(CANDIDATES, len(before))).indices, goal)
        if int((value > 0).sum()) > most:
            shares = (taken + (value - before) * r.fall).masked_fill(value <= 0, -torch.inf)
            value = r.solved(shares.topk(most).indices, goal)
        sizes = [len(layers[x].ids) for x in numbers]
        now, fell, lost = (
            dict(zip(numbers, part.split(sizes), strict=True))
            for part in (value, (value - before) * r.fall, (before - value) * r.near.mean(0))
        )
        return Strengths(layers, now, *({x: old[x] + part[x] for x in numbers} for old, part in ((self.fall, fell), (self.near, lost))))

    def order(self) -> list[tuple[int, int]]:
        """(layer, column) of what is above 0, largest share of the fall first."""
        place = [(x, int(c)) for x in sorted(self.value) for c in self.value[x].nonzero()[:, 0]]
        return sorted(place, key=lambda at: -float(self.fall[at[0]][at[1]]))


@dataclass(frozen=True, eq=False)
class Round:
    """The quadratic problem of one round, over the candidates of all layers, layer after layer."""

    layers: Mapping[int, Layer]
    fall: Float[Tensor, " p"]
    """Share of the concept's margin that each takes at strength 1."""
    near: Float[Tensor, "n2 p"]
    rows: Float[Tensor, "n p"]
    """Damage that items show: the squared norm of `rows @ v`."""
    linear: Float[Tensor, " p"]
    """What neighbours have lost already: strengths that make it good are worth this much."""

    @classmethod
    def of(cls, layers: Mapping[int, Layer], evidence: Evidence, before: Float[Tensor, " p"]) -> "Round":
        """The problem at the strengths `before`, which are in force where `evidence` was read."""
        own, near, text = (torch.cat([getattr(layers[x], k) for x in sorted(layers)], 1) for k in ("own", "near", "text"))
        fall = -(evidence.open @ own) / len(own)
        deviation = (own + fall) * evidence.open[:, None] / len(own) / NOISE

        def felt(change: Tensor) -> Tensor:
            return torch.cat([change.mean(0, keepdim=True) / NEIGHBOURS, change / len(change) ** 0.5 / ITEM])

        rows = felt(near)
        linear = rows.T @ (rows @ before - felt(evidence.moved[:, None])[:, 0])
        return cls(layers, fall, near, torch.cat([rows, text, deviation]), linear)

    def worth(self, before: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Fall over the square root of damage, of each candidate alone; endless where it is in force already."""
        alone = (self.rows**2).sum(0) + torch.cat([self.layers[x].own_spread() for x in sorted(self.layers)])
        return (self.fall / alone.clamp_min(1e-30).sqrt()).masked_fill(before > 0, torch.inf)

    def solved(self, keep: Int[Tensor, " k"], goal: float) -> Float[Tensor, " p"]:
        """Strengths of the candidates `keep` that take `goal` of the margin; 0 of the others."""
        keep = keep.sort().values
        H = self.rows[:, keep].T @ self.rows[:, keep] + self._spread(keep)
        H += RIDGE * torch.diag(H.diagonal())
        found = least_damage(H.double(), self.linear[keep].double(), self.fall[keep].double(), goal)
        return torch.zeros_like(self.fall).index_copy(0, keep, found.to(self.fall))

    def _spread(self, keep: Int[Tensor, " k"]) -> Float[Tensor, "k k"]:
        """Layer by layer: there is none across layers."""
        blocks, start = [], 0
        for x in sorted(self.layers):
            end = start + len(self.layers[x].ids)
            blocks.append(self.layers[x].spread(keep[(keep >= start) & (keep < end)] - start))
            start = end
        return torch.block_diag(*blocks)
