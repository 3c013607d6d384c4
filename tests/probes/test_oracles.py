"""Erasers that are told the label, and frozen erasers as folders."""

from pathlib import Path

import pytest
import torch
from probes._data import classes, one_hot, read

from efface.base.errors import ArtefactError, InputError
from efface.probes import ClassMoments, leace, load_eraser, oracle, quadratic
from efface.probes.frozen import Frozen
from efface.probes.oracles import barycentre, transport


def unlike(k: int, n: int = 900, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes with means and covariances of their own, of unlike size."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(k + 1, (n,), generator=g).clamp_max(k - 1)
    maps = torch.randn(k, d, d, generator=g).double()
    x = torch.einsum("nd,ned->ne", torch.randn(n, d, generator=g).double(), maps[y]) + torch.randn(k, d, generator=g).double()[y]
    return x, y


def test_oracle_leaves_no_covariance_and_changes_least() -> None:
    x, y = classes(3)
    z = one_hot(y)
    m = read(x, z)
    erased = oracle(m)(x, z)
    after = read(erased, z)
    assert after.xz.norm() < 1e-10 * m.xz.norm()
    assert torch.allclose((erased - erased.mean(0)).T @ (z - z.mean(0)), torch.zeros(12, 3).double(), atol=1e-7)
    assert (erased - x).square().sum() < (leace(m)(x) - x).square().sum()
    assert torch.allclose(erased.mean(0), x.mean(0))


@pytest.mark.parametrize("k", [2, 3])
def test_quadratic_makes_classes_one_gaussian(k: int) -> None:
    x, y = unlike(k)
    fitter = ClassMoments(k)
    for i in range(0, len(x), 100):
        fitter.update(x[i : i + 100], y[i : i + 100])
    fitted = fitter.moments()
    eraser = quadratic(fitted)
    erased = eraser(x, y)
    before, after = ([torch.cov(t[y == c].T) for c in range(k)] for t in (x, erased))
    assert max((a - after[0]).abs().max() for a in after) < 1e-7
    assert max((a - before[0]).abs().max() for a in before) > 0.5
    means = torch.stack([erased[y == c].mean(0) for c in range(k)])
    assert (means - x.mean(0)).abs().max() < 1e-8
    assert torch.allclose(quadratic(fitted, weighted=False).centre, torch.stack([x[y == c].mean(0) for c in range(k)]).mean(0))
    assert abs(qda_loss(erased, y) - entropy(y)) < 1e-6
    assert qda_loss(x, y) < entropy(y) - 0.05


def entropy(y: torch.Tensor) -> float:
    p = torch.bincount(y).double() / len(y)
    return float(-(p * p.log()).sum())


def qda_loss(x: torch.Tensor, y: torch.Tensor) -> float:
    """Cross-entropy of Bayes' rule with class Gaussians fitted by maximum likelihood, unbiased covariances."""
    parts = [x[y == c] for c in range(int(y.max()) + 1)]
    logs = [
        torch.distributions.MultivariateNormal(p.mean(0), torch.cov(p.T)).log_prob(x) + torch.tensor(len(p) / len(x)).log() for p in parts
    ]
    return float(-torch.stack(logs, 1).log_softmax(1)[torch.arange(len(y)), y].mean())


def test_transport_and_barycentre() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.cov(torch.randn(6, 40, generator=g).double()) for _ in range(2))
    t = transport(a, b)
    assert torch.allclose(t, t.T)
    assert torch.allclose(t @ a @ t, b, atol=1e-10)
    weights = torch.tensor([0.3, 0.7]).double()
    closed = barycentre(torch.stack([a, b]), weights)
    split = barycentre(torch.stack([a, b, b]), torch.tensor([0.3, 0.2, 0.5]).double())  # the same mixture, by the fixed point
    assert torch.allclose(closed, split, atol=1e-8)
    assert not torch.allclose(closed, 0.3 * a + 0.7 * b, atol=1e-3)


def test_frozen_erasers_come_back_and_damage_is_seen(tmp_path: Path) -> None:
    x, y = unlike(2)
    z = one_hot(y)
    m = read(x, z)
    made: dict[str, Frozen] = {"affine": leace(m), "oracle": oracle(m), "quadratic": quadratic(ClassMoments(2).update(x, y).moments())}
    for name, eraser in made.items():
        eraser.save(tmp_path / name)
        again = load_eraser(tmp_path / name)
        assert type(again) is type(eraser)
        for field, t in eraser.tensors().items():
            assert torch.equal(t, again.tensors()[field])
        with pytest.raises(InputError, match="exists"):
            eraser.save(tmp_path / name)
    (tmp_path / "affine" / "eraser.safetensors").write_bytes((tmp_path / "oracle" / "eraser.safetensors").read_bytes())
    with pytest.raises(ArtefactError, match="is not the file"):
        load_eraser(tmp_path / "affine")
    text = (tmp_path / "oracle" / "eraser.json").read_text()
    (tmp_path / "oracle" / "eraser.json").write_text(text.replace('"oracle"', '"orakel"'))
    with pytest.raises(InputError, match="nearest: oracle"):
        load_eraser(tmp_path / "oracle")


def test_refusals() -> None:
    x, y = unlike(2)
    with pytest.raises(InputError, match="full rank"):
        quadratic(ClassMoments(2).update(x[:7], torch.tensor([0, 0, 0, 1, 1, 1, 1])).moments())
    with pytest.raises(InputError, match="classes are 0 to 1"):
        quadratic(ClassMoments(2).update(x, y).moments())(x, y + 1)
