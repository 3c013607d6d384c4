"""R-LACE's game and INLP's iteration: projections, guardedness, and where they differ."""

import pytest
import torch
from probes._data import classes, one_hot, read

from efface.base.errors import InputError
from efface.probes import InlpConfig, LinearConfig, RlaceConfig, RlaceSgdConfig, fit_linear, inlp, orthogonal, rlace, rlace_sgd, score
from efface.probes.erasers import AffineEraser
from efface.probes.nullspace import intersection


def planted(n: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A label that stands in three of d rotated coordinates, in one of them squared too."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=g)
    x = torch.randn(n, d, generator=g)
    noise = torch.randn(n, 3, generator=g)
    x[:, 0] = (y + 0.3 * noise[:, 0]) ** 2 + 0.3 * y
    x[:, 1] = (y + 0.1 * noise[:, 1]) ** 2 - 0.7 * y
    x[:, 2] = (y + 0.2 * noise[:, 2]) ** 3 + 0.2 * y
    return x @ torch.linalg.qr(torch.randn(d, d, generator=g))[0], y


def is_projection(e: AffineEraser, rank: int) -> None:
    P, d = e.P, len(e.bias)
    assert torch.allclose(P, P.T, atol=1e-10)
    assert torch.allclose(P @ P, P, atol=1e-10)
    values = torch.linalg.eigvalsh(P)
    assert torch.allclose(values, (torch.arange(d) >= rank).to(values), atol=1e-10)


def excess(e: AffineEraser | None, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy of a new probe over the majority, on the half of the vectors that neither it nor the eraser has seen."""
    x = x if e is None else e(x)
    half = len(x) // 2
    probe = fit_linear(x[:half], y[:half], LinearConfig(l2=1e-3))  # without a penalty it reads what rounding leaves in float32
    return score(probe, x[half:], y[half:], y[:half]).excess


def gain(e: AffineEraser | None, x: torch.Tensor, y: torch.Tensor) -> float:
    """Nats by which a new probe beats the constant on held-out vectors. Guardedness is about convex losses: where classes are skewed alike,
    a threshold may still sort them better, or worse, than by chance.
    """
    x = x if e is None else e(x)
    half = len(x) // 2
    probe = fit_linear(x[:half], y[:half], LinearConfig(l2=1e-3))
    rows = torch.arange(half, len(x))
    share = torch.bincount(y[rows]).double() / len(rows)
    return float(probe.log_probs(x[rows])[torch.arange(len(rows)), y[rows]].mean() - (share * share.log()).sum())


def test_the_start_ends_the_game_where_class_means_decide() -> None:
    x, y = classes(3)
    game = rlace(x, y)
    is_projection(game.eraser, 2)
    assert game.rounds == 0
    assert game.entropy - game.loss < 1e-6
    assert torch.allclose(game.eraser.P, orthogonal(read(x, one_hot(y))).P, atol=1e-8)
    few = rlace(x, y, RlaceConfig(k=1, rounds=5))
    assert few.rounds > 0
    assert few.entropy - few.loss > 0.01


def test_a_random_start_finds_the_direction() -> None:
    x, y = (t.double() if t.is_floating_point() else t for t in planted(3000, 20))
    half = len(x) // 2
    game = rlace(x[:half], y[:half], RlaceConfig(start="random"))
    is_projection(game.eraser, 1)
    assert game.rounds > 0
    assert game.eigenvalues[0] > 0.9
    assert game.eigenvalues[1:].max() < 0.1
    assert game.entropy - game.loss < 1e-3
    assert gain(game.eraser, x, y) < 0.02
    assert gain(None, x, y) > 0.4
    assert gain(inlp(x[:half], y[:half], InlpConfig(rounds=1)).eraser, x, y) > 0.05


@pytest.mark.slow
def test_fewer_directions_than_classes_follow_rotations_and_beat_the_start() -> None:
    x, y = classes(4, 1200, 8)
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)).double())[0]
    config = RlaceConfig(k=2, rounds=5, tol=0.0)
    one, two = rlace(x, y, config), rlace(x @ q.T, y, config)
    is_projection(one.eraser, 2)
    assert torch.allclose(two.eraser.P, q @ one.eraser.P @ q.T, atol=1e-3)
    start = rlace(x, y, RlaceConfig(k=2, rounds=1, tol=100.0))
    assert start.rounds == 0
    assert one.loss > start.loss + 1e-4


def test_directions_stay_in_the_span_that_is_given() -> None:
    x, y = classes(2, 1200, 12)
    free = rlace(x, y)
    g = torch.Generator().manual_seed(4)
    span = torch.randn(12, 3, generator=g).double()
    inside = rlace(x, y, RlaceConfig(rounds=40), span=span)
    basis = torch.linalg.qr(span)[0]
    w = inside.eraser.left
    assert torch.allclose(basis @ (basis.T @ w), w, atol=1e-8)
    assert not torch.allclose(basis @ (basis.T @ free.eraser.left), free.eraser.left, atol=1e-2)
    assert inside.loss < free.loss - 1e-3  # means still differ outside the span
    wide = rlace(x, y, span=torch.cat([span, free.eraser.left], 1))
    assert wide.entropy - wide.loss < 1e-3


def test_the_released_procedure_finds_the_direction_too() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3000) % 2
    q = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    x = (torch.randn(3000, 8, generator=g) + 2 * y[:, None] * torch.eye(8)[0]) @ q
    half = len(x) // 2
    game = rlace_sgd(x[:half], y[:half], RlaceSgdConfig(iterations=2000, lr=0.05, every=500))
    assert game.eraser.rank == 1
    assert abs(float(game.eraser.left[:, 0] @ q[0])) > 0.95
    assert game.eigenvalues[0] > 0.9
    assert game.eigenvalues[1:].max() < 0.1
    early = rlace_sgd(x[:half], y[:half], RlaceSgdConfig(iterations=1))
    assert excess(game.eraser, x, y) < 0.2 < excess(early.eraser, x, y)


@pytest.mark.slow
def test_the_reference_scripts_size() -> None:
    x, y = planted(15_000, 200)
    game = rlace(x[:10_000], y[:10_000], RlaceConfig(start="random"))
    assert game.eigenvalues[0] > 0.9
    assert game.eigenvalues[1:].max() < 0.1
    erased = game.eraser(x)
    found = score(fit_linear(erased[:10_000], y[:10_000]), erased[10_000:], y[10_000:], y[:10_000])
    assert found.excess < 0.015
    assert score(fit_linear(x[:10_000], y[:10_000]), x[10_000:], y[10_000:], y[:10_000]).excess > 0.3


@pytest.mark.parametrize("kind", ["logistic", "svm", "regression"])
def test_inlps_directions_are_orthogonal_and_the_intersection_is_their_product(kind: str) -> None:
    x, y = classes(3, 600, 10)
    found = inlp(x, y, InlpConfig(rounds=3, kind=kind))
    rows = torch.cat(found.directions, 1)
    assert rows.shape[1] == 6
    assert torch.allclose(rows.T @ rows, torch.eye(6).double(), atol=1e-6)
    product = torch.eye(10).double()
    for r in found.directions:
        product = product @ (torch.eye(10).double() - r @ r.T)
    assert torch.allclose(product, found.eraser.P, atol=1e-6)
    is_projection(found.eraser, 6)
    slanted = [found.directions[0], (found.directions[0] + found.directions[1]) / 2**0.5]  # where they are not, it is not
    joint = intersection(slanted)
    chained = (torch.eye(10).double() - slanted[0] @ slanted[0].T) @ (torch.eye(10).double() - slanted[1] @ slanted[1].T)
    assert not torch.allclose(chained, torch.eye(10).double() - joint @ joint.T, atol=1e-2)


def test_inlp_stops_at_weak_classifiers() -> None:
    x, y = classes(2, 600, 10)
    assert len(inlp(x, y, InlpConfig(rounds=8, min_accuracy=0.99)).directions) < 8
    assert len(inlp(x, y, InlpConfig(rounds=8)).directions) == 8


def test_refusals() -> None:
    x, y = classes(2, 40, 12)
    for bad, message in (
        (lambda: rlace(x[:8], y[:8]), "as many as dimensions"),
        (lambda: rlace(x, y, RlaceConfig(k=13)), "k must lie in"),
        (lambda: rlace(x, y, span=torch.zeros(12, 2).double()), "no column"),
        (lambda: RlaceConfig(steps=0), "steps"),
        (lambda: InlpConfig(min_accuracy=2.0), "min_accuracy"),
    ):
        with pytest.raises(InputError, match=message):
            bad()
