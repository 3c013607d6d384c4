"""Closed-form erasers keep what their theorems promise, and their negative controls do not."""

import torch
from probes._data import classes, one_hot, read

from efface.probes import LinearConfig, fit_linear, leace, mean_projection, oracle, orthogonal, rayleigh, regression, shrunk
from efface.probes.erasers import AffineEraser
from efface.probes.fantope import fantope


def data(k: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = classes(k)
    return x, one_hot(y)


def size(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().sum(1).mean())


def test_streaming_is_the_batch() -> None:
    x, z = data()
    m = read(x, z, 7)
    assert torch.allclose(m.xx, torch.cov(x.T), atol=1e-10)
    assert torch.allclose(m.xz, torch.cov(torch.cat([x, z], 1).T)[:12, 12:], atol=1e-10)


def test_guardedness_rank_mean_and_edit_size() -> None:
    x, z = data()
    m = read(x, z)
    found = {"leace": leace(m), "orthogonal": orthogonal(m), "shrunk": leace(shrunk(m))}
    for eraser in found.values():
        means = (z.T @ eraser(x)) / z.sum(0)[:, None]
        assert (means - means[0]).abs().max() < 1e-7
        assert (eraser.P @ m.xz).norm() < 1e-8 * m.xz.norm()
        assert eraser.rank == 2
        assert torch.allclose(eraser.P @ eraser.P, eraser.P, atol=1e-10)
        assert torch.allclose(eraser(eraser(x)), eraser(x))
        assert torch.allclose(eraser(x).mean(0), x.mean(0))
    before = (z.T @ x) / z.sum(0)[:, None]
    assert (before - before[0]).abs().max() > 0.5
    edits = {n: size(e(x), x) for n, e in found.items()}
    assert size(oracle(m)(x, z), x) < edits["leace"] < edits["shrunk"] < edits["orthogonal"]
    P = found["leace"].P
    assert torch.linalg.eigvalsh(m.xx - P @ m.xx @ P.T)[0] > -1e-9


def test_no_linear_classifier_is_left_and_one_was_there() -> None:
    x, y = classes(4, 2048, 24)
    m = read(x, one_hot(y))
    free = LinearConfig(backend="torch")
    for eraser in (leace(m), orthogonal(m)):
        erased = eraser(x) - eraser(x).mean(0)
        weight = fit_linear(erased, y, free).weight
        assert (weight - weight.mean(0)).abs().max() < 1e-6
    weight = fit_linear(x - x.mean(0), y, free).weight
    assert (weight - weight.mean(0)).abs().max() > 1e-2


def test_leace_is_where_the_edit_does_not_shrink_and_the_orthogonal_projection_is_not() -> None:
    m = read(*data())
    u = torch.linalg.svd(m.xz, full_matrices=False)[0][:, :2]
    eye = torch.eye(12).double()

    def slope(eraser: AffineEraser) -> float:
        """Of tr((P - I) Sigma (P - I)ᵀ) along changes of P that keep P Sigma_XZ = 0."""
        return float((2 * (eraser.P - eye) @ m.xx @ (eye - u @ u.T)).norm() / m.xx.norm())

    assert slope(leace(m)) < 1e-10
    assert slope(orthogonal(m)) > 1e-2


def test_leace_follows_any_invertible_map_and_orthogonal_rotations_alone() -> None:
    x, z = data()
    a = torch.randn(12, 12, generator=torch.Generator().manual_seed(3)).double()
    q = torch.linalg.qr(a)[0]
    one, two, turned = read(x, z), read(x @ a.T, z), read(x @ q.T, z)
    assert torch.allclose(leace(two).P, a @ leace(one).P @ a.inverse(), atol=1e-8)
    assert torch.allclose(orthogonal(turned).P, q @ orthogonal(one).P @ q.T, atol=1e-8)
    assert not torch.allclose(orthogonal(two).P, a @ orthogonal(one).P @ a.inverse(), atol=1e-2)


def test_nothing_to_erase_is_the_identity_and_noise_changes_little() -> None:
    x, z = data()
    assert torch.equal(leace(read(x, torch.ones(len(x), 1).double()))(x), x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    m, noise = read(x, z), read(x, z[order])
    spread = float(m.xx.trace())
    # of n vectors, k - 1 whitened directions with correlations of about sqrt(d / n) are taken: a share of at most (k - 1) / d in expectation
    between = float((oracle(noise)(x, z[order]) - x).square().sum(1).mean()) / spread
    assert between < 5 * 2 / len(x)
    assert size(oracle(m)(x, z), x) / spread > 10 * between


def test_regression_leaves_no_predictor_and_inlps_first_step_does() -> None:
    x, y = classes(2)
    x, t = x - x.mean(0), (y.double() - 0.5)[:, None]
    e = regression(x, t)
    left = x @ e.P
    residual = t - left @ torch.linalg.lstsq(left, t, driver="gelsd").solution
    assert abs(float(residual.square().sum() / t.square().sum()) - 1) < 1e-9
    w = torch.linalg.lstsq(x, t).solution
    w = w / w.norm()
    chained = x - x @ w @ w.T
    residual = t - chained @ torch.linalg.lstsq(chained, t, driver="gelsd").solution
    assert float(residual.square().sum() / t.square().sum()) < 1 - 1e-3
    assert torch.allclose(e.P, orthogonal(read(x, one_hot(y)), affine=False).P, atol=1e-8)


def test_rayleigh_takes_the_largest_unless_told() -> None:
    x, y = classes(2)
    x, t = x - x.mean(0), (y.double() - 0.5)[:, None]
    assert torch.allclose(rayleigh(x.T @ t @ t.T @ x, 1).P, regression(x, t).P, atol=1e-8)
    a = x.T @ x

    def most(e: AffineEraser) -> float:
        return float(torch.linalg.eigvalsh(e.P @ a @ e.P)[-1])

    assert most(rayleigh(a, 2)) < most(rayleigh(a, 2, which="smallest"))
    assert abs(most(rayleigh(a, 2)) / float(torch.linalg.eigvalsh(a)[-3]) - 1) < 1e-9


def test_mean_projection_is_orthogonal_and_sal_takes_singular_vectors_in_their_order() -> None:
    x, z = data(4)
    x, z = x[:777], z[:777]  # unlike class sizes
    m = read(x, z)
    means = (z.T @ x) / z.sum(0)[:, None]
    assert torch.allclose(mean_projection(means).P, orthogonal(m).P, atol=1e-8)
    left = [float((orthogonal(m, k=k).P @ m.xz).norm()) for k in (1, 2, 3)]
    assert left[0] > left[1] > left[2]
    assert left[2] < 1e-8 * float(m.xz.norm()) < left[1]


def test_fantope_is_the_nearest_member() -> None:
    g = torch.Generator().manual_seed(1)
    a = torch.randn(9, 9, generator=g).double()
    a = a + a.T
    p = fantope(a, 3)
    values = torch.linalg.eigvalsh(p)
    assert abs(float(p.trace()) - 3) < 1e-8
    assert values.min() > -1e-10
    assert values.max() < 1 + 1e-10
    assert torch.allclose(fantope(p, 3), p, atol=1e-9)
    assert not torch.allclose(p, a, atol=0.1)
    for _ in range(20):
        q = torch.linalg.qr(torch.randn(9, 3, generator=g).double())[0]
        assert float(((a - p) * (q @ q.T - p)).sum()) < 1e-9
