"""Counts of each feature's activations: how often, how strongly, and their histogram."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

OCTAVES = (-12, 12)
PER_OCTAVE = 4
BINS = (OCTAVES[1] - OCTAVES[0]) * PER_OCTAVE
"""Bins of a histogram: a quarter octave each; the outermost two also hold all that lies beyond."""


def bin_edges() -> Float64[Tensor, " bins_plus_1"]:
    """`2**(-12 + i / 4)`: fixed, so that histograms of several runs add up."""
    return torch.pow(2.0, torch.arange(BINS + 1, dtype=torch.float64) / PER_OCTAVE + OCTAVES[0])


class Tallies:
    """Running counts over the tokens of the evidence part."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self.fired: Int[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64)
        """Tokens on which a feature is active."""
        self.total: Float64[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.float64)
        """Sum of its activations."""
        self.max: Float[Tensor, " d_sae"] = torch.zeros(d_sae)
        self.windows: Int[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64)
        """Windows of text in which it is active."""
        self.histogram: Int[Tensor, "d_sae bins"] = torch.zeros(d_sae, BINS, dtype=torch.int32)
        self._inner = bin_edges()[1:-1].float()

    def update(self, features: Int[Tensor, " n"], values: Float[Tensor, " n"], peaks: Int[Tensor, " p"]) -> None:
        """Adds active entries; `peaks` are the features of one entry a window."""
        self.fired += torch.bincount(features, minlength=self.d_sae)
        self.windows += torch.bincount(peaks, minlength=self.d_sae)
        self.total.index_add_(0, features, values.double())
        self.max.scatter_reduce_(0, features, values, "amax")
        bins = torch.bucketize(values, self._inner, right=True)
        self.histogram.view(-1).index_add_(0, features * BINS + bins, torch.ones(len(bins), dtype=torch.int32))
