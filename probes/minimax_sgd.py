"""R-LACE as its authors released it: alternating stochastic gradient steps of the projection and of the predictor."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError
from .fantope import fantope, top_eigenvectors
from .minimax import Board, Game, random_start


@dataclass(frozen=True)
class RlaceSgdConfig:
    """Settings of the released code; the defaults are those of its function (its scripts use others)."""

    k: int | None = 1
    """Rank that is removed; None: classes - 1."""
    iterations: int = 75_000
    """One step of each player an iteration (GloVe script: 50,000)."""
    batch: int = 128
    """Vectors a step."""
    lr: float = 0.005
    """Learning rate of both (README: .003)."""
    weight_decay: float = 1e-4
    """Of both (GloVe script: 1e-5); for the projection it acts before the Fantope's."""
    eps: float = 0.0015
    """Stop where the best training accuracy of a new classifier is within this of the majority (GloVe script: .002)."""
    every: int = 1000
    """Iterations between two looks."""
    fits: int = 3
    """Classifiers fitted at a look, of which that of the smallest loss counts."""
    seed: int = 0
    """Of start, batches and classifiers."""

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "every", "fits"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, {getattr(self, name)} found")


def rlace_sgd(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], config: RlaceSgdConfig | None = None) -> Game:
    """Descent and ascent of the released code; the look with the largest loss is kept.

    Linear Adversarial Concept Erasure (Ravfogel et al., ICML 2022), section 4 and released code. Deviations: the
    Fantope projection is exact (there: 25 bisections), batches are drawn with replacement (there: a new permutation of all vectors for each),
    vectors are centred and scaled to a mean variance of 1 (there: as they come).

    Raises:
        InputError: See `Board`.
    """
    config = config or RlaceSgdConfig()
    board = Board(x, y)
    k, d = board.rank(config.k), x.shape[1]
    rng = torch.Generator().manual_seed(config.seed)
    m = random_start(d, config.seed, k).to(board.x)
    w = torch.empty(board.classes, d).uniform_(-(d**-0.5), d**-0.5, generator=rng).to(board.x)
    b = torch.zeros(board.classes).to(board.x)
    majority = float(torch.bincount(y).max()) / len(y)
    best, accuracy, kept, turn = -1.0, 1.0, m, 0
    for turn in range(config.iterations):
        m = _project(board, m, w, b, k, config, rng)
        w, b = _predict(board, m, w, b, config, rng)
        if turn % config.every == 0 or turn == config.iterations - 1:
            loss, found = _look(board, m, k, config)
            if loss > best:
                best, kept = loss, m
            accuracy = min(accuracy, found, key=lambda a: abs(a - majority))
            if turn > 1 and abs(accuracy - majority) < config.eps:
                break
    return Game(board.eraser(kept, k), best, board.entropy, turn + 1, torch.linalg.eigvalsh(kept).flip(0))


def _batch(board: Board, m: Tensor, w: Tensor, b: Tensor, config: RlaceSgdConfig, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, what M leaves of them, and the slope of the cross-entropy in the logits. Binary: one free row, as with BCE."""
    rows = torch.randint(len(board.x), (config.batch,), generator=rng).to(board.x.device)
    x = board.x[rows]
    left = x - x @ m
    slope = (left @ w.T + b).softmax(1) - torch.nn.functional.one_hot(board.y[rows], board.classes)
    if board.classes == 2:
        slope[:, 0] = 0
    return x, left, slope / config.batch


def _project(
    board: Board, m: Tensor, w: Tensor, b: Tensor, k: int, config: RlaceSgdConfig, rng: torch.Generator
) -> Tensor:  # fmt: skip
    x, _, slope = _batch(board, m, w, b, config, rng)
    g = -(x.T @ slope) @ w
    return fantope(m + config.lr * ((g + g.T) / 2 - config.weight_decay * m), k)


def _predict(board: Board, m: Tensor, w: Tensor, b: Tensor, config: RlaceSgdConfig, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    _, left, slope = _batch(board, m, w, b, config, rng)
    decay = config.weight_decay
    return w - config.lr * (slope.T @ left + decay * w), b - config.lr * (slope.sum(0) + decay * b)


def _look(board: Board, m: Tensor, k: int, config: RlaceSgdConfig) -> tuple[float, float]:
    """Smallest loss of some new classifiers of what the rounded projection leaves, and its accuracy, both on the training set."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import log_loss

    top = top_eigenvectors(m, k)
    x, y = board.erased(top @ top.T).cpu().numpy(), board.y.cpu().numpy()
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for i in range(config.fits):
            model = SGDClassifier(loss="log_loss", max_iter=1000, tol=1e-4, n_iter_no_change=15, alpha=1e-4, random_state=config.seed + i)
            model.fit(x, y)
            found.append((float(log_loss(y, model.predict_proba(x))), float(model.score(x, y))))
    return min(found)
