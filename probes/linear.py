"""Linear probes: logistic regression and linear support vector machines, by scikit-learn or by torch, one interface."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError, NumericsError
from .scores import check_labels

Kind = Literal["logistic", "svm"]
Backend = Literal["auto", "sklearn", "torch"]
LARGE = 2**24
"""Numbers in `x` above which `auto` means torch."""


@dataclass(frozen=True)
class LinearConfig:
    """How a linear probe is fitted; scikit-learn and torch minimise the same objective."""

    kind: Kind = "logistic"
    """`logistic`: mean cross-entropy + l2/2 |W|², the bias free. `svm`: mean squared hinge + l2/2 (|W|² + |b|²), one against the rest."""
    l2: float = 0.0
    """Penalty, >= 0; `svm` needs one above 0 (scikit-learn's C is 1 / (l2 n))."""
    backend: Backend = "auto"
    """`auto`: scikit-learn up to `LARGE` numbers on the CPU, else torch."""
    max_iter: int = 500
    """Iterations of L-BFGS (torch, scikit-learn's logistic) or of liblinear times ten."""

    def __post_init__(self) -> None:
        if not 0 <= self.l2 < float("inf") or (self.kind == "svm" and not self.l2):
            raise InputError(f"l2 must be a number >= 0, for svm above 0; {self.l2} found")
        if self.max_iter < 1:
            raise InputError(f"max_iter must be at least 1, {self.max_iter} found")


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """logits = x Wᵀ + b, a row a class; of two classes the first row is 0."""

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]

    def logits(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Scores in the probe's dtype; of an SVM, distances and not log-odds."""
        return x.to(self.weight) @ self.weight.T + self.bias

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The class of each vector."""
        return self.logits(x).argmax(1)

    def log_probs(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Log-probabilities of the classes, for logistic probes."""
        return self.logits(x).log_softmax(1)


def fit_linear(x: Float[Tensor, "n d"], y: Int[Tensor, " m"], config: LinearConfig | None = None) -> LinearProbe:
    """A linear probe; vectors are centred for the logistic kind, which changes nothing but the number of iterations.

    Raises:
        InputError: Labels are not 0 to k - 1, or not one a vector.
        MatchedNothing: One class.
        NumericsError: NaN or infinity in `x`.
    """
    config = config or LinearConfig()
    k = check_labels(x, y, f"{config.kind} probe")
    if not torch.isfinite(x.sum()):
        raise NumericsError(f"{config.kind} probe: NaN or infinity in the vectors")
    small = x.numel() <= LARGE and x.device.type == "cpu"
    sklearn = config.backend == "sklearn" or (config.backend == "auto" and small)
    wide = x.to(torch.promote_types(x.dtype, torch.float64 if sklearn else torch.float32))
    shift = wide.mean(0) if config.kind == "logistic" else wide.new_zeros(wide.shape[1])
    fit = _sklearn if sklearn else _torch
    weight, bias = fit(wide - shift, y, k, config)
    return LinearProbe(weight, bias - weight @ shift)


def _sklearn(x: Tensor, y: Tensor, k: int, config: LinearConfig) -> tuple[Tensor, Tensor]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    c = 1 / (config.l2 * len(x)) if config.l2 else float("inf")
    if config.kind == "logistic":
        model = LogisticRegression(C=c, max_iter=config.max_iter, tol=1e-8)
    else:
        primal: Any = False  # the stubs allow "auto" alone
        model = LinearSVC(C=c, loss="squared_hinge", dual=primal, max_iter=10 * config.max_iter, tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x.cpu().numpy(), y.cpu().numpy())
    return _rows(torch.from_numpy(model.coef_).to(x), torch.from_numpy(model.intercept_).to(x), k)


def _torch(x: Tensor, y: Tensor, k: int, config: LinearConfig) -> tuple[Tensor, Tensor]:
    if config.kind == "logistic":
        return softmax_fit(x, y, k, l2=config.l2, max_iter=config.max_iter)[:2]
    targets = torch.nn.functional.one_hot(y, k).to(x) * 2 - 1
    targets = targets[:, 1:] if k == 2 else targets
    w, b = x.new_zeros(targets.shape[1], x.shape[1]), x.new_zeros(targets.shape[1])

    def objective(w: Tensor, b: Tensor) -> Tensor:
        hinge = (1 - targets * (x @ w.T + b)).clamp_min(0).square().sum() / len(x)
        return hinge + config.l2 / 2 * (w.square().sum() + b.square().sum())

    return _rows(*minimise(objective, w, b, config.max_iter), k)


def softmax_fit(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    k: int,
    *,
    l2: float = 0.0,
    max_iter: int = 500,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"], float]:
    """Weights, biases and mean cross-entropy (nats) of multinomial logistic regression by L-BFGS.

    Args:
        x: Vectors, best centred.
        y: Classes, 0 to k - 1.
        k: Their number.
        l2: Penalty l2/2 |W|².
        max_iter: Iterations, from 0.
    """
    free = 1 if k == 2 else k
    w, b = x.new_zeros(free, x.shape[1]), x.new_zeros(free)

    def objective(w: Tensor, b: Tensor) -> Tensor:
        loss = torch.nn.functional.cross_entropy(_logits(x @ w.T + b, k), y)
        return loss + l2 / 2 * w.square().sum() if l2 else loss

    w, b = minimise(objective, w, b, max_iter)
    loss = float(torch.nn.functional.cross_entropy(_logits(x @ w.T + b, k), y))
    return *_rows(w, b, k), loss


def minimise(objective: Callable[[Tensor, Tensor], Tensor], w: Tensor, b: Tensor, max_iter: int) -> tuple[Tensor, Tensor]:
    """Both tensors at the minimum that L-BFGS with strong Wolfe line search finds."""
    w, b = w.requires_grad_(), b.requires_grad_()
    solver = torch.optim.LBFGS(
        [w, b], max_iter=max_iter, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = objective(w, b)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    w, b = w.detach(), b.detach()
    if not (torch.isfinite(w).all() and torch.isfinite(b).all()):
        raise NumericsError("linear probe: the fit diverged; scale the vectors, or set l2")
    return w, b


def _logits(z: Tensor, k: int) -> Tensor:
    return torch.cat([torch.zeros_like(z), z], 1) if k == 2 else z


def _rows(w: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A row a class."""
    return (torch.cat([torch.zeros_like(w), w]), torch.cat([torch.zeros_like(b), b])) if k == 2 else (w, b)
