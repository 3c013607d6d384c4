"""WEAT by hand on vectors whose associations are known, and neighbours."""

from math import comb

import pytest
import torch

from efface.base.errors import InputError, MatchedNothing
from efface.probes import neighbours, weat


def vectors(angles: list[float]) -> torch.Tensor:
    return torch.stack([torch.tensor(angles).cos(), torch.tensor(angles).sin()], 1)


def test_all_of_one_side_is_the_largest_effect_and_the_smallest_p() -> None:
    a, b = vectors([0.0, 0.1]), vectors([1.5, 1.6])
    near, far = vectors([0.05, 0.1, 0.2, 0.15]), vectors([1.4, 1.5, 1.45, 1.55])
    found = weat(near, far, a, b)
    assert found.exact
    assert found.partitions == comb(8, 4)
    assert found.p == 0.0
    assert found.d > 1.5
    turned = weat(far, near, a, b)
    assert turned.d == pytest.approx(-found.d)
    assert turned.p == pytest.approx(1 - 1 / comb(8, 4))
    mixed = weat(torch.cat([near[:2], far[:2]]), torch.cat([near[2:], far[2:]]), a, b)
    assert abs(mixed.d) < 0.5
    assert 0.2 < mixed.p < 0.8
    words = torch.cat([near, far]).double()
    s = [float(torch.cosine_similarity(w, a.double(), dim=1).mean() - torch.cosine_similarity(w, b.double(), dim=1).mean()) for w in words]
    by_hand = (sum(s[:4]) / 4 - sum(s[4:]) / 4) / float(torch.tensor(s).double().std())
    assert found.d == pytest.approx(by_hand)


def test_nothing_to_tell_apart_is_no_effect() -> None:
    same = vectors([0.5, 0.5])
    found = weat(same, same, vectors([0.0]), vectors([1.0]))
    assert (found.d, found.p) == (0.0, 1.0)


def test_neighbours_leave_the_word_itself_out() -> None:
    x = vectors([0.0, 0.1, 0.3, 2.0, 2.1])
    assert neighbours(x, [0, 3], 1).tolist() == [[1], [4]]
    assert neighbours(x, [2], 2).tolist() == [[1, 0]]


def test_refusals() -> None:
    x = vectors([0.0, 0.1, 0.2])
    with pytest.raises(InputError, match="equal length"):
        weat(x, x[:2], x, x)
    with pytest.raises(MatchedNothing, match="empty"):
        weat(x, x, x[:0], x)
    with pytest.raises(InputError, match="k must lie"):
        neighbours(x, [0], 3)
