"""New coefficients of the value vectors in many features at once: what one round of reading effects makes of them.

`Delta W_out = Q D`: row i of Q says by how much neuron i writes less or more of each feature; D are the features' decoder rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...attribution import Taps
from .least_damage import least_damage

KL = 0.03
"""Neutral divergence, nats a token, that counts as one unit of damage."""
NEIGHBOURS = 0.04
"""Share of the neighbours' margin that counts as one unit."""
ITEM = 0.15
"""Root mean square, over neighbours' questions, of an item's change (share of the mean margin) that counts as one unit."""
NOISE = 0.1
"""Standard error of the fall, over the concept's questions, that counts as one unit: what few items cannot show."""
SPREAD = 50.0
"""Weight of damage that few texts cannot show: mean squared change of the layer's output on neutral and neighbour tokens, times
half the mean curvature of the layer, in units of `KL`. It is what keeps hundreds of items from being fitted one by one."""
SHRINK = 0.01
"""Of the second moment of neurons towards their mean square: there are few tokens for as many neurons."""
BLOCK = 2048
"""Tokens whose products with all others exist at the same time."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Taps of the three pools of the host as it stands, and the base margins they are read against."""

    own: Taps
    near: Taps
    text: Taps
    own_base: Float[Tensor, " n"]
    near_base: Float[Tensor, " n2"]

    @property
    def pools(self) -> tuple[Taps, Taps, Taps]:
        """The concept's questions, its neighbours', neutral text: items are numbered in this order."""
        return self.own, self.near, self.text

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

    @property
    def fall(self) -> Float[Tensor, " n"]:
        """What a change of each of the concept's margins is worth: their fall in shares of the base's mean."""
        return -self.open / len(self.open) / self.own_base.clamp_min(0).mean()


@dataclass(frozen=True, eq=False)
class _Reading:
    """One layer's tokens, pool after pool."""

    hidden: Float[Tensor, "t m"]
    """Whitened: `root^-1 h`."""
    gradient: Float[Tensor, "t d"]
    root: Float[Tensor, "m m"]
    """Lower root of the metric: a change A of W_out is of size trace(A' root root' A)."""


class Round:
    """Least-damage coefficients on the host that `evidence` was read from."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        sizes = [p.n for p in evidence.pools]
        self.n = sum(sizes)
        starts = (0, sizes[0], sizes[0] + sizes[1])
        self.item = torch.cat([p.item.cpu() + start for p, start in zip(evidence.pools, starts, strict=True)])
        self.read = {x: _read(evidence, x) for x in evidence.own.hidden}
        self.fall = torch.cat([evidence.fall, torch.zeros(sizes[1] + sizes[2])])
        self.rows, self.done = _damage(evidence)

    @torch.no_grad()
    def solved(self, D: Mapping[int, Float[Tensor, "p d"]], wanted: float) -> dict[int, Float[Tensor, "m p"]]:
        """Layer -> Q: the change in the span of the given features that takes `wanted` more of the margin, and least else.

        The change of a feature's coefficients costs what its size in the metric is, whatever the other features do.

        Raises:
            ValueError: Nothing in that span moves the margin.
        """
        K = torch.zeros(self.n, self.n, dtype=torch.float64)
        for layer, directions in D.items():
            K += self._products(self.read[layer], self.read[layer].gradient @ _root(directions))
        alpha = least_damage(K, self.fall.double(), self.rows.double(), self.done.double(), wanted).float()
        out: dict[int, Tensor] = {}
        for layer, directions in D.items():
            r = self.read[layer]
            weighed = (r.gradient @ directions.T) * alpha[self.item].to(r.gradient)[:, None]
            out[layer] = torch.linalg.solve_triangular(r.root.T, r.hidden.T @ weighed, upper=True)
        return out

    @torch.no_grad()
    def least(self, layers: Sequence[int], wanted: float) -> float:
        """The damage of the best change of these layers alone, in the span of no dictionary: which layers are worth one.

        Raises:
            ValueError: Nothing there moves the margin.
        """
        K = torch.zeros(self.n, self.n, dtype=torch.float64)
        for layer in layers:
            K += self._products(self.read[layer], self.read[layer].gradient)
        rows, done = self.rows.double(), self.done.double()
        alpha = least_damage(K, self.fall.double(), rows, done, wanted)
        change = K @ alpha
        return float(alpha @ change + (rows @ change + done).square().sum())

    def _products(self, r: _Reading, g: Float[Tensor, "t p"]) -> Float[Tensor, "n n"]:
        """Sum over the tokens of two items of (h . h')(g . g'), for all pairs of items; half of them computed."""
        K = torch.zeros(self.n, self.n)
        for start in range(0, len(g), BLOCK):
            here = slice(start, start + BLOCK)
            pairs = (r.hidden[here] @ r.hidden[start:].T) * (g[here] @ g[start:].T)
            pairs[:, : len(pairs)] *= 0.5  # the block on the diagonal is met again when the half is mirrored
            columns = torch.zeros(len(pairs), self.n).index_add_(1, self.item[start:], pairs.float().cpu())
            K.index_add_(0, self.item[here], columns)
        return (K + K.T).double()


def _read(evidence: Evidence, layer: int) -> _Reading:
    """Whitens by the second moment of the neurons on neutral and neighbour tokens, in units of damage."""
    H, G = (torch.cat([getattr(p, k)[layer] for p in evidence.pools]).float() for k in ("hidden", "gradient"))
    curvature = float((evidence.text.gradient[layer].float() ** 2).sum(1).mean()) / G.shape[1]
    moment = (evidence.text.second_moment(layer) + evidence.near.second_moment(layer)).double()
    moment = moment + SHRINK * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
    root = torch.linalg.cholesky(SPREAD * 0.5 * curvature / KL * moment).float()
    return _Reading(torch.linalg.solve_triangular(root, H.T, upper=False).T.contiguous(), G, root)


def _root(D: Float[Tensor, "p d"]) -> Float[Tensor, "d r"]:
    """Some F of at most d columns with `F F' = D' D`."""
    return D.T if len(D) <= D.shape[1] else torch.linalg.qr(D, mode="r").R.T


def _damage(evidence: Evidence) -> tuple[Float[Tensor, "k n"], Float[Tensor, " k"]]:
    """Rows whose squares, summed over items' changes, are damage; and what each amounts to already."""
    own, near, text = (p.n for p in evidence.pools)
    base, tokens = evidence.own_base.clamp_min(0).mean(), len(evidence.text.item)
    share = torch.eye(near) / evidence.near_base.mean()
    felt = torch.cat([share.mean(0, keepdim=True) / NEIGHBOURS, share / near**0.5 / ITEM])
    divergence = torch.eye(text) * (0.5 / tokens / KL) ** 0.5
    deviation = (torch.eye(own) / base + evidence.fall) * evidence.open[:, None] / own / NOISE
    rows = torch.block_diag(deviation, felt, divergence)
    done = torch.cat([torch.zeros(own), felt @ (evidence.moved * evidence.near_base.mean()), torch.zeros(text)])
    return rows, done
