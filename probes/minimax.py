"""R-LACE: a projection of rank k against the best linear predictor, relaxed to the Fantope, each answered by the best response."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError, NumericsError
from .erasers import AffineEraser, onto
from .fantope import fantope, top_eigenvectors
from .linear import softmax_fit
from .scores import check_labels

Predictor = tuple[Tensor, Tensor]
"""Weights [k d] and biases [k]."""


@dataclass(frozen=True)
class RlaceConfig:
    """Linear Adversarial Concept Erasure (Ravfogel et al., ICML 2022, corrected version), solved by best responses."""

    k: int | None = None
    """Rank that is removed. Unset: classes - 1, which suffices; more only costs the main task."""
    start: Literal["sal", "random"] = "sal"
    """`sal`: the first left singular vectors of Sigma_XZ; with k >= classes - 1 class means then are equal, no linear predictor beats
    a constant, and the game ends before its first round. `random`: a Gaussian matrix, as the released code.
    """
    rounds: int = 100
    """Best responses of the predictor, at most."""
    steps: int = 10
    """Ascent steps of the projection between two of them."""
    lr: float = 0.1
    """Size of an ascent step; vectors are scaled to a mean variance of 1."""
    tol: float = 1e-3
    """Stop where the best predictor's cross-entropy is within this of the labels' entropy (nats): no accuracy then is further
    than sqrt(tol / 2) above the best constant's, in mean total variation.
    """
    grad_tol: float = 1e-9
    """Stop where the squared norm of the projection's gradient is below this."""
    l2: float = 1e-2
    """Penalty of the predictor that the projection answers: where classes can be separated, loss and slope vanish without one. The one that
    is judged by has none.
    """
    max_iter: int = 100
    """L-BFGS iterations of a best response, from 0: one that starts from the last, which may be far off on separable vectors, gets stuck."""
    seed: int = 0
    """Of the random start."""

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "max_iter"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, {getattr(self, name)} found")
        if not (self.lr > 0 and min(self.tol, self.grad_tol, self.l2) >= 0):
            raise InputError(
                f"lr must be above 0, tol, grad_tol and l2 at least 0; {self.lr}, {self.tol}, {self.grad_tol}, {self.l2} found"
            )


@dataclass(frozen=True, eq=False)
class Game:
    """How a game ended."""

    eraser: AffineEraser
    """x - W Wᵀ(x - E x), W [d k] orthonormal."""
    loss: float
    """Cross-entropy (nats) of the best linear predictor of the erased training vectors."""
    entropy: float
    """Of the labels: what the loss is at most."""
    rounds: int
    """Best responses that were answered; 0: the start was good enough."""
    eigenvalues: Float[Tensor, " m"]
    """Of the relaxed projection at the end, largest first."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        top = [round(float(v), 6) for v in self.eigenvalues[: self.eraser.rank + 2]]
        return {"loss": self.loss, "entropy": self.entropy, "rounds": self.rounds, "rank": self.eraser.rank, "eigenvalues": top}


class Board:
    """Vectors, labels and the span in which directions may be removed: what both players see.

    Args:
        x: Vectors; as many as dimensions, at least.
        y: Classes, 0 to k - 1.
        span: Columns that span where the removed directions must lie; None: everywhere.

    Raises:
        InputError: Labels or span do not fit, or fewer vectors than dimensions.
        MatchedNothing: One class.
        NumericsError: NaN or infinity.
    """

    def __init__(self, x: Float[Tensor, "n d"], y: Int[Tensor, " n"], span: Float[Tensor, "d m"] | None = None) -> None:
        self.classes = check_labels(x, y, "r-lace")
        n, d = x.shape
        if n < d:
            raise InputError(f"r-lace: {n} vectors of {d} dimensions; as many as dimensions are needed, or a predictor reads any labels")
        if not torch.isfinite(x.sum()):
            raise NumericsError("r-lace: NaN or infinity in the vectors")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        self.mean, self.y = wide.mean(0), y
        centred = wide - self.mean
        self.x = centred / centred.square().mean().sqrt().clamp_min(1e-12)
        self.basis = torch.eye(d).to(wide) if span is None else orthonormal(span.to(wide))
        self.inside = self.x if span is None else self.x @ self.basis
        shares = torch.bincount(y).double() / n
        self.entropy = float(-(shares * shares.log()).sum())

    def rank(self, k: int | None) -> int:
        """k, or classes - 1; at most what the span allows.

        Raises:
            InputError: Outside.
        """
        m = self.basis.shape[1]
        found = min(self.classes - 1, m) if k is None else k
        if not 1 <= found <= m:
            raise InputError(f"r-lace: k must lie in [1, {m}], the dimension of the span; {found} found")
        return found

    def sal(self, k: int) -> Float[Tensor, "m m"]:
        """Projection onto the first k left singular vectors of the span's Sigma_XZ."""
        z = torch.nn.functional.one_hot(self.y, self.classes).to(self.x)
        u = torch.linalg.svd(self.inside.T @ (z - z.mean(0)))[0][:, :k]
        return u @ u.T

    def erased(self, m: Float[Tensor, "m m"]) -> Float[Tensor, "n d"]:
        """X (I - B M Bᵀ)."""
        return self.x - self.inside @ m @ self.basis.T

    def respond(self, m: Float[Tensor, "m m"], max_iter: int, l2: float = 0.0) -> tuple[Predictor, float]:
        """The best predictor of what M leaves, and its cross-entropy (nats)."""
        w, b, loss = softmax_fit(self.erased(m), self.y, self.classes, l2=l2, max_iter=max_iter)
        return (w, b), loss

    def gradient(self, m: Float[Tensor, "m m"], w: Float[Tensor, "c d"], b: Float[Tensor, " c"]) -> Float[Tensor, "m m"]:
        """Of the predictor's cross-entropy with respect to M, symmetric."""
        slope = ((self.erased(m) @ w.T + b).softmax(1) - torch.nn.functional.one_hot(self.y, self.classes)) / len(self.x)
        g = -(self.inside.T @ slope) @ (w @ self.basis)
        return (g + g.T) / 2

    def eraser(self, m: Float[Tensor, "m m"], k: int) -> AffineEraser:
        """The rank-k projection nearest to M, in the vectors' own space."""
        return onto(self.basis @ top_eigenvectors(m, k), self.mean)


def rlace(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    config: RlaceConfig | None = None,
    *,
    span: Float[Tensor, "d m"] | None = None,
) -> Game:
    """Plays max over P, min over the predictor; of all rounds the one whose ROUNDED projection leaves the largest loss is kept.

    Deviations from the released code: a start from SAL, best responses by L-BFGS without penalty, the Fantope projection exact,
    stopping on cross-entropy against the labels' entropy and not on a training accuracy. Nothing guarantees the global
    optimum. `rlace_sgd` is the released procedure.

    Args:
        x: Vectors; the predictor has a bias, so their mean has no say.
        y: Classes, 0 to k - 1.
        config: Settings.
        span: Columns (decoder rows of an SAE's features, say) in whose span the removed directions must lie.

    Raises:
        InputError: See `Board`; or k does not lie in [1, dimension of the span].
    """
    config = config or RlaceConfig()
    board = Board(x, y, span)
    k = board.rank(config.k)
    m = board.sal(k) if config.start == "sal" else random_start(board.basis.shape[1], config.seed, k).to(board.x)
    best, kept, turn = -1.0, m, 0
    for turn in range(config.rounds + 1):
        top = top_eigenvectors(m, k)
        _, loss = board.respond(top @ top.T, config.max_iter)
        if loss > best:
            best, kept = loss, m
        if board.entropy - best < config.tol or turn == config.rounds:
            break
        answer, _ = board.respond(m, config.max_iter, config.l2)
        moved = _ascend(board, m, answer, k, config)
        if moved is None:
            break
        m = moved
    return Game(board.eraser(kept, k), best, board.entropy, turn, torch.linalg.eigvalsh(kept).flip(0))


def _ascend(board: Board, m: Tensor, answer: Predictor, k: int, config: RlaceConfig) -> Tensor | None:
    """Projected ascent against a predictor that stays; None where there is no slope."""
    for step in range(config.steps):
        g = board.gradient(m, *answer)
        if not step and float(g.square().sum()) < config.grad_tol:
            return None
        m = fantope(m + config.lr * g, k)
    return m


def random_start(d: int, seed: int, k: int) -> Float[Tensor, "d d"]:
    """The Fantope's nearest to 0.1 times a symmetrised Gaussian matrix."""
    a = 0.1 * torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return fantope((a + a.T) / 2, k)


def orthonormal(span: Float[Tensor, "d m"]) -> Float[Tensor, "d r"]:
    """An orthonormal basis of the columns' span.

    Raises:
        InputError: All columns are 0.
    """
    u, s, _ = torch.linalg.svd(span, full_matrices=False)
    kept = s > 1e-6 * s[0] if len(s) else torch.zeros(0, dtype=torch.bool)
    if not len(s) or not float(s[0]) > 0:
        raise InputError("span: no column that is not 0; give the directions among which to remove")
    return u[:, kept]
