"""Closed-form erasers keep what their theorems promise, and their negative controls do not."""

import torch

from efface.probes.erasers import fantope, leace, orthogonal
from efface.probes.moments import Moments, MomentsFitter


def data(k: int = 3, n: int = 900, d: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % k
    x = torch.randn(n, d, generator=g).double() @ torch.randn(d, d, generator=g).double() + 2 * torch.randn(k, d, generator=g).double()[y]
    return x + 5, torch.nn.functional.one_hot(y, k).double()


def read(x: torch.Tensor, z: torch.Tensor, size: int = 10**9) -> Moments:
    fitter = MomentsFitter()
    for i in range(0, len(x), size):
        fitter.update(x[i : i + size], z[i : i + size])
    return fitter.moments()


def test_streaming_is_the_batch() -> None:
    x, z = data()
    m = read(x, z, 7)
    assert torch.allclose(m.xx, torch.cov(x.T), atol=1e-10)
    assert torch.allclose(m.xz, torch.cov(torch.cat([x, z], 1).T)[:12, 12:], atol=1e-10)


def test_guardedness_rank_mean_and_edit_size() -> None:
    x, z = data()
    m = read(x, z)
    found = {"leace": leace(m), "orthogonal": orthogonal(m)}
    for eraser in found.values():
        means = (z.T @ eraser(x)) / z.sum(0)[:, None]
        assert (means - means[0]).abs().max() < 1e-7
        assert (eraser.P @ m.xz).norm() < 1e-8 * m.xz.norm()
        assert eraser.left.shape[1] == 2
        assert torch.allclose(eraser.P @ eraser.P, eraser.P, atol=1e-10)
        assert torch.allclose(eraser(x).mean(0), x.mean(0))
    before = (z.T @ x) / z.sum(0)[:, None]
    assert (before - before[0]).abs().max() > 0.5
    size = {n: float((e(x) - x).square().mean()) for n, e in found.items()}
    assert size["leace"] < size["orthogonal"]
    P = found["leace"].P
    assert torch.linalg.eigvalsh(m.xx - P @ m.xx @ P.T)[0] > -1e-9


def test_leace_follows_any_invertible_map_and_orthogonal_does_not() -> None:
    x, z = data()
    a = torch.randn(12, 12, generator=torch.Generator().manual_seed(3)).double()
    one, two = read(x, z), read(x @ a.T, z)
    assert torch.allclose(leace(two).P, a @ leace(one).P @ a.inverse(), atol=1e-8)
    assert not torch.allclose(orthogonal(two).P, a @ orthogonal(one).P @ a.inverse(), atol=1e-2)


def test_nothing_to_erase_is_the_identity() -> None:
    x, z = data()
    assert torch.equal(leace(read(x, torch.ones(len(x), 1).double()))(x), x)
    assert not torch.equal(leace(read(x, z))(x), x)


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
