"""The mathematics of SAeUron on plain tensors (Cywiński & Deja, ICML 2025; formula numbers are those of the method's README).

s = denoising steps, n = features; mu are mean activations over prompts and patches.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ....base.errors import InputError, MatchedNothing
from ....deactivate.stepwise import StepFeatures
from ....sae.sparse import SparseActs

EPSILON = 1e-8
"""Added to the sum of all features, as in the released code: at a step where nothing fires, no feature has a share."""


class MeanActivations:
    """Running mean of every feature at every step, in float64. Memory is steps times features, however much is read."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae, self.sums, self.counts = d_sae, dict[float, Tensor](), dict[float, int]()

    def update(self, time: float, acts: SparseActs) -> "MeanActivations":
        """Adds one row a patch, read at `time`.

        Raises:
            InputError: Activations of another dictionary.
        """
        if acts.d_sae != self.d_sae:
            raise InputError(f"means of {self.d_sae} features were begun, {acts.d_sae} came")
        total = self.sums.setdefault(time, torch.zeros(self.d_sae, dtype=torch.float64))
        total.index_add_(0, acts.indices.long().cpu(), acts.values.double().cpu())
        self.counts[time] = self.counts.get(time, 0) + acts.shape[0]
        return self

    @property
    def times(self) -> list[float]:
        """Noisiest first."""
        return sorted(self.sums, reverse=True)

    def mean(self) -> Float[Tensor, "s n"]:
        """A row a step, in the order of `times`.

        Raises:
            MatchedNothing: Nothing was read.
        """
        if not self.sums:
            raise MatchedNothing("mean activations: nothing was read")
        return torch.stack([self.sums[t] / self.counts[t] for t in self.times])


def scores(own: Float[Tensor, "s n"], rest: Float[Tensor, "s n"]) -> Float[Tensor, "s n"]:
    """A feature's share of all activation on the concept, minus its share on everything else (eq. 1)."""
    if own.shape != rest.shape:
        raise InputError(f"scores: means {list(own.shape)} of the concept, {list(rest.shape)} of the rest; the same steps expected")
    return own / (own.sum(1, keepdim=True) + EPSILON) - rest / (rest.sum(1, keepdim=True) + EPSILON)


def above_percentile(score: Float[Tensor, "s n"], percentile: float) -> Bool[Tensor, "s n"]:
    """Features above the percentile of all features' scores at their step, strictly (eq. 2).

    Also above 0, which percentiles as high as the authors' imply: what fires less on the concept than elsewhere is none of its features.
    """
    edge = torch.quantile(score.double(), percentile / 100, dim=1, keepdim=True)
    return (score > edge) & (score > 0)


@dataclass(frozen=True, eq=False)
class ConceptMeans:
    """Mean activations of one concept and of everything else, at the same steps."""

    times: tuple[float, ...]
    """Noisiest first."""
    own: Float[Tensor, "s n"]
    rest: Float[Tensor, "s n"]

    def thresholds(self, n_concepts: int) -> Float[Tensor, "s n"]:
        """mu_all: the mean over `n_concepts` concepts, of which the rest's prompts stand for all but one (eq. 3)."""
        return (self.own + (n_concepts - 1) * self.rest) / n_concepts

    def steps(self, percentile: float, gamma: float, by_mean: bool, n_concepts: int) -> tuple[StepFeatures, ...]:
        """What is done at each step: factor gamma mu(i, t, c), or gamma, above mu_all(i, t) (eq. 3)."""
        chosen = above_percentile(scores(self.own, self.rest), percentile)
        above = self.thresholds(n_concepts)
        found = []
        for i, time in enumerate(self.times):
            ids = chosen[i].nonzero()[:, 0]
            factors = gamma * self.own[i, ids] if by_mean else torch.full((len(ids),), gamma, dtype=torch.float64)
            found.append(StepFeatures(time, tuple(ids.tolist()), tuple(factors.tolist()), tuple(above[i, ids].tolist())))
        return tuple(found)
