"""Erasure metrics: by hand on small grids, invariances, and what must not count as success."""

import numpy as np
import pytest

from efface.base.errors import InputError, MatchedNothing, NumericsError
from efface.t2i.evaluation import metrics as m
from efface.t2i.evaluation.kid import kid, polynomial_mmd


def grid(n_objects: int = 3, n_styles: int = 4, images: int = 5) -> tuple[np.ndarray, np.ndarray]:
    cells = [(o, s) for o in range(n_objects) for s in range(n_styles) for _ in range(images)]
    return np.array([c[0] for c in cells]), np.array([c[1] for c in cells])


def judged(objects: np.ndarray, styles: np.ndarray, *, said_o=None, said_s=None) -> m.Judgements:
    return m.Judgements(objects, styles, objects.copy() if said_o is None else said_o, styles.copy() if said_s is None else said_s)


def test_the_three_of_unlearncanvas_by_hand() -> None:
    objects, styles = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([0, 0, 1, 0, 1, 0, 1, 1])
    said_o = np.array([-1, 1, 0, 1, 1, 2, 2, 0])  # of object 0: one of three right
    said_s = np.array([0, 1, 1, 0, 1, 0, 1, -1])
    found = m.unlearncanvas(m.Judgements(objects, styles, said_o, said_s), "object", 0)
    assert found["UA"].mean == pytest.approx(2 / 3)
    assert found["IRA"].mean == pytest.approx((1 + 2 / 3) / 2)  # mean over objects 1 and 2, not over images (4/5)
    assert found["CRA"].mean == pytest.approx((3 / 4 + 3 / 4) / 2)  # style 0: 3 of 4; style 1: 3 of 4
    assert (found["UA"].n, found["IRA"].n, found["CRA"].n) == (3, 5, 8)
    style = m.unlearncanvas(m.Judgements(objects, styles, said_o, said_s), "style", 1)
    assert style["UA"].mean == pytest.approx(1 / 4)
    assert style["IRA"].mean == pytest.approx(3 / 4)
    assert style["CRA"].mean == pytest.approx((1 / 3 + 1 + 2 / 3) / 3)
    for value in (*found.values(), *style.values()):
        assert value.low <= value.mean <= value.high


def test_identity_and_accuracy_on_the_target_are_complements() -> None:
    objects, styles = grid()
    said = np.where(np.arange(len(objects)) % 7 == 0, -1, objects)
    base = judged(objects, styles, said_o=said)
    here = objects == 1
    assert m.unlearncanvas(base, "object", 1)["UA"].mean == pytest.approx(1 - (said == objects)[here].mean())
    values, harm = m.against_base(base, base, "object", 1, [2])
    assert values["UA_rel"].mean == 0
    assert all(values[k].mean == 1 for k in ("IRA_rel", "IRA_nb", "CRA_rel"))
    assert all(h.equivalent for h in harm.values())


def test_relabelling_changes_nothing_and_each_metric_reads_its_own_head() -> None:
    rng = np.random.default_rng(0)
    objects, styles = grid()
    said_o, said_s = (np.where(rng.random(len(x)) < 0.7, x, (x + 1) % 3) for x in (objects, styles))
    one = m.unlearncanvas(m.Judgements(objects, styles, said_o, said_s), "object", 1)
    swap = np.array([2, 0, 1])
    other = m.unlearncanvas(m.Judgements(swap[objects], styles, swap[said_o], said_s), "object", int(swap[1]))
    assert {k: v.mean for k, v in one.items()} == pytest.approx({k: v.mean for k, v in other.items()})
    blind = m.unlearncanvas(m.Judgements(objects, styles, np.full_like(said_o, -1), said_s), "object", 1)
    assert blind["CRA"].mean == one["CRA"].mean
    assert blind["IRA"].mean == 0 != one["IRA"].mean
    roles = m.unlearncanvas(m.Judgements(styles, objects, said_s, said_o), "style", 1)
    assert {k: v.mean for k, v in roles.items()} == pytest.approx({k: v.mean for k, v in one.items()})


def test_relative_to_a_weak_base_garbage_is_not_free_erasure() -> None:
    objects, styles = grid(images=10)
    weak = objects.copy()
    weak[(objects == 0) & (np.arange(len(objects)) % 2 == 0)] = -1  # the base draws the target half the time
    base = judged(objects, styles, said_o=weak)
    assert m.unlearncanvas(base, "object", 0)["UA"].mean == pytest.approx(0.5)  # nothing was erased
    values, _ = m.against_base(base, base, "object", 0)
    assert values["UA_rel"].mean == 0
    blank = judged(objects, styles, said_o=np.full_like(objects, -1), said_s=np.full_like(styles, -1))
    values, harm = m.against_base(blank, base, "object", 0, [1])
    assert values["UA_rel"].mean == 1
    assert values["IRA_rel"].mean == values["IRA_nb"].mean == values["CRA_rel"].mean == 0
    assert not any(h.equivalent for h in harm.values())
    assert m.aligned(blank, "object", 0).mean == 0 < m.aligned(base, "object", 0).mean


def test_ratio_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    objects, styles = grid(4, 8, 12)
    hit, widths = 0, []
    for _ in range(40):
        b = np.where(rng.random(len(objects)) < 0.9, objects, -1)
        e = np.where(rng.random(len(objects)) < 0.45, objects, -1)
        value = m.relative(
            judged(objects, styles, said_o=e),
            judged(objects, styles, said_o=b),
            "object",
            m.grid_images(judged(objects, styles)),
            draws=400,
        )
        widths.append(value.high - value.low)
        hit += value.low <= 0.5 <= value.high
    assert 33 <= hit <= 40
    assert max(widths) < 0.2


def test_paired_comparison_counts_ties_and_wants_the_same_prompts() -> None:
    objects, styles = grid(2, 2, 3)
    said = objects.copy()
    said[:2] = -1
    pair = m.paired(judged(objects, styles, said_o=said), judged(objects, styles), "object", np.ones(12, bool), draws=100)
    assert (pair.wins, pair.losses, pair.ties) == (0, 2, 10)
    with pytest.raises(InputError, match="same prompts and seeds"):
        m.relative(judged(objects, styles), judged(objects[::-1].copy(), styles), "object", np.ones(12, bool))
    with pytest.raises(InputError, match="the base draws none"):
        m.relative(judged(objects, styles), judged(objects, styles, said_o=np.full_like(objects, -1)), "object", objects == 0)


def test_prompts_without_a_style_are_their_own_figure() -> None:
    objects, styles = grid(2, 2, 2)
    plain_objects = np.concatenate([objects, [0, 0, 1]])
    plain_styles = np.concatenate([styles, [-1, -1, -1]])
    said = np.concatenate([np.full(8, -1), [0, 1, 1]])
    j = m.Judgements(plain_objects, plain_styles, said, plain_styles.copy())
    assert m.cross_plain(j, "style").mean == pytest.approx((0.5 + 1) / 2)
    assert m.unlearncanvas(j, "style", 0)["CRA"].mean == 0  # the grid alone
    with pytest.raises(MatchedNothing, match="CRA_0"):
        m.cross_plain(judged(objects, styles), "style")
    assert not j.right("style")[8:].any()  # nothing asked, nothing right


def test_mace_figures_of_the_paper_and_bounds() -> None:
    for e, s, h in ((0.0012, 0.3790, 0.5495), (0.0430, 0.8807, 0.9173)):
        found = m.mace(np.full(50, e), np.full(50, s))
        assert found["H_c"].mean == pytest.approx(h, abs=1e-4)
        assert min(1 - e, s) <= found["H_c"].mean <= max(1 - e, s)
    assert m.mace(np.full(3, 0.3), np.full(3, 0.7), np.full(3, 0.3))["H_o"].mean == pytest.approx(0.7)
    assert m.mace(np.full(3, 1.0), np.full(3, 0.7))["H_c"].mean < 1e-5
    with pytest.raises(NumericsError):
        m.mace(np.array([1.2]), np.array([0.5]))


def test_other_ways_and_the_mark() -> None:
    asked = np.array([0, 0, 0, 1])
    j = m.Judgements(asked, np.full(4, -1), np.array([0, -1, 2, 0]), np.full(4, 0))
    assert m.other_ways(j, "object", 0).mean == pytest.approx(2 / 3)
    assert m.mark_rate(np.array([True, False, True, False])).mean == 0.5
    assert m.mark_rate(np.array([True, False, True, False]), np.array([True, False, False, False])).mean == pytest.approx(1 / 3)
    with pytest.raises(MatchedNothing):
        m.other_ways(j, "object", 3)


def test_kid_of_one_distribution_is_nothing_and_of_two_is_something() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 16)), rng.normal(size=(600, 16))
    same = kid(x, y, "normal", size=100)
    assert abs(same.value.mean) < 3 * same.standard_error
    far = kid(x, y + 0.5, "normal", size=100)
    assert far.value.mean > 5 * far.standard_error
    assert far.features == "normal"
    a, b = np.array([[1.0], [0.0]]), np.array([[2.0], [1.0]])
    assert polynomial_mmd(a, b) == pytest.approx((2 * 1 + 2 * 27) / 2 - 2 / 4 * (27 + 8 + 1 + 1))
    negatives = [polynomial_mmd(rng.normal(size=(20, 8)), rng.normal(size=(20, 8))) < 0 for _ in range(40)]
    assert any(negatives)  # unbiased, so not clipped
    assert not all(negatives)
    with pytest.raises(InputError, match="name of its extractor"):
        kid(x, y, "")
    with pytest.raises(InputError, match="two subsets"):
        kid(x[:150], y, "normal", size=100)
