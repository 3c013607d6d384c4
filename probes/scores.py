"""How much a probe finds: accuracy over what always naming the commonest class reaches, with its standard error."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError, MatchedNothing


@runtime_checkable
class Probe(Protocol):
    """What every fitted probe answers."""

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The class of each vector."""
        ...


@dataclass(frozen=True)
class Score:
    """Accuracy on held-out vectors, and that of the class that is commonest in `train`."""

    accuracy: float
    majority: float
    n: int

    @property
    def excess(self) -> float:
        """Accuracy over majority: 0 where the probe finds nothing; negative by chance alone."""
        return self.accuracy - self.majority

    @property
    def standard_error(self) -> float:
        """Of the accuracy, binomial."""
        return (self.accuracy * (1 - self.accuracy) / self.n) ** 0.5

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, excess and standard error included."""
        return {**asdict(self), "excess": self.excess, "standard_error": self.standard_error}


def score(probe: Probe, x: Float[Tensor, "n d"], y: Int[Tensor, " n"], y_train: Int[Tensor, " m"]) -> Score:
    """The majority-corrected score of a probe on held-out vectors.

    Raises:
        MatchedNothing: No vectors.
        InputError: Another number of labels.
    """
    if not len(y) or not len(y_train):
        raise MatchedNothing("score: no held-out vectors, or no labels of the training set")
    if len(x) != len(y):
        raise InputError(f"score: {len(x)} vectors and {len(y)} labels; one label a vector")
    common = torch.bincount(y_train).argmax()
    return Score(float((probe.predict(x) == y).double().mean()), float((y == common.to(y.device)).double().mean()), len(y))


def pooled(scores: Sequence[Score]) -> Score:
    """The score of all held-out vectors together, as of folds.

    Raises:
        MatchedNothing: No scores.
    """
    if not scores:
        raise MatchedNothing("pooled: no scores given")
    n = sum(s.n for s in scores)
    return Score(sum(s.accuracy * s.n for s in scores) / n, sum(s.majority * s.n for s in scores) / n, n)


def control_labels(y: Int[Tensor, " n"], seed: int = 0) -> Int[Tensor, " n"]:
    """The same labels dealt to other vectors: what a probe learns of these it learns of any labels (selectivity).

    Designing and Interpreting Probes with Control Tasks (Hewitt & Liang, EMNLP 2019), with labels drawn an item, not a word type.
    """
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)]


def check_labels(x: Tensor, y: Tensor, what: str) -> int:
    """Number of classes, which are 0 to k - 1.

    Raises:
        InputError: Another number of labels than vectors, or a class of 0 to k - 1 without a vector.
        MatchedNothing: Fewer than two classes.
    """
    if len(x) != len(y):
        raise InputError(f"{what}: {len(x)} vectors and {len(y)} labels; one label a vector")
    if not len(y) or int(y.max()) == int(y.min()):
        raise MatchedNothing(f"{what}: at least two classes are needed; give vectors with and without the concept")
    counts = torch.bincount(y)
    if not counts.all():
        missing = (counts == 0).nonzero()[:, 0].tolist()
        raise InputError(f"{what}: classes are 0 to {len(counts) - 1}, and {missing} has no vector; number the classes without gaps")
    return len(counts)
