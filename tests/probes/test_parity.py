"""The same erasers as concept-erasure 0.2.4 fits, where it is installed (`efface[peers]`)."""

import pytest
import torch
from probes._data import classes, one_hot, read

from efface.probes import ClassMoments, leace, oracle, orthogonal, quadratic, shrunk

peer = pytest.importorskip("concept_erasure")


@pytest.mark.parametrize("affine", [True, False])
def test_leace(affine: bool) -> None:
    x, y = classes(3)
    z, m = one_hot(y), read(x, one_hot(y))
    for options, ours in (
        ({"shrinkage": False}, leace(m, affine=affine)),
        ({"shrinkage": True}, leace(shrunk(m), affine=affine)),
        ({"method": "orth"}, orthogonal(m, affine=affine)),
    ):
        theirs = peer.LeaceFitter.fit(x, z, affine=affine, svd_tol=1e-8, **options).eraser
        assert torch.allclose(ours.P, theirs.P, atol=1e-6)
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert not torch.allclose(leace(m).P, orthogonal(m).P, atol=1e-3)


def test_oracle_and_quadratic() -> None:
    x, y = classes(3, 900, 6)
    z, m = one_hot(y), read(x, one_hot(y))
    assert torch.allclose(oracle(m)(x, z), peer.OracleFitter.fit(x, z, svd_tol=1e-8).eraser(x, z), atol=1e-6)
    for k in (2, 3):
        x, y = classes(k, 901, 4)
        ours = quadratic(ClassMoments(k).update(x, y).moments(), weighted=False)
        theirs = peer.QuadraticFitter.fit(x, y, shrinkage=False).eraser
        assert torch.allclose(ours(x, y), theirs(x, y), atol=1e-6)
    assert not torch.allclose(quadratic(ClassMoments(k).update(x, y).moments())(x, y), theirs(x, y), atol=1e-6)
