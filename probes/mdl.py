"""Minimum description length of labels given vectors: how well, and how easily, a probe reads them (online coding)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError
from .scores import check_labels

SHARES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the blocks that are sent, as shares of all labels (Voita & Titov, 2020)."""


@runtime_checkable
class Coder(Protocol):
    """A fitted probe that gives probabilities."""

    def log_probs(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Log-probabilities (nats) of the classes."""
        ...


@dataclass(frozen=True)
class Description:
    """The online code of `n` labels."""

    bits: float
    """Its length."""
    uniform_bits: float
    """Length without a probe: n log2 k."""
    n: int

    @property
    def compression(self) -> float:
        """Uniform length over length: 1 where the probe finds nothing (below where it is led astray), larger where labels are easy to read."""
        return self.uniform_bits / self.bits

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"bits": self.bits, "uniform_bits": self.uniform_bits, "compression": self.compression, "n": self.n}


def description_length(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    fit: Callable[[Tensor, Tensor], Coder],
    *,
    seed: int = 0,
    least: int = 20,
) -> Description:
    """Online code length of the labels: each block is coded by a probe fitted on all blocks before it, the first one uniformly.

    Information-Theoretic Probing with Minimum Description Length (Voita & Titov, EMNLP 2020), online code: t_1 log2 k
    - sum over blocks of log2 p(y_block | x_block). Probabilities are mixed with 1/1000 of the uniform ones, so that a sure and
    wrong probe costs about 10 bits a label and not infinitely many. A block ends at least at `least` labels, and where the
    labels so far hold every class.

    Args:
        x: Vectors.
        y: Classes, 0 to k - 1.
        fit: Makes a probe of (vectors, labels), `fit_mlp` or `fit_linear`.
        seed: Of the order in which labels are sent.
        least: Labels in the first block, at least.

    Raises:
        InputError: Too few labels, or not one a vector.
        MatchedNothing: One class.
    """
    k, n = check_labels(x, y, "description length"), len(y)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(x.device)
    x, y = x[order], y[order]
    seen_all = max(int((y == c).nonzero()[0, 0]) for c in range(k)) + 1
    first = max(least, seen_all)
    ends = [*dict.fromkeys(e for s in SHARES if (e := round(s * n)) >= first)]
    if len(ends) < 2:
        raise InputError(f"description length: {n} labels are too few for two blocks (the first one takes {first})")
    bits = ends[0] * log2(k)
    for start, end in pairwise(ends):
        p = fit(x[:start], y[:start]).log_probs(x[start:end]).double().exp() * 0.999 + 0.001 / k
        bits -= float(p.gather(1, y[start:end, None]).log2().sum())
    return Description(bits, n * log2(k), n)
