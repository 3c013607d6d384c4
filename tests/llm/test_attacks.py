"""Curves, truth ratios and relearning as an attack."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from deactivate._kit import weights_edit
from planted import magic
from scipy.stats import ks_2samp
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing, NumericsError
from efface.llm.attacks import Attack, Relearning, RelearningConfig, area, half_recovery, leak
from efface.llm.evaluation.relearn import RelearnConfig, relearn_on
from efface.llm.evaluation.truth_ratio import gold_distance, ks_distance, truth_ratio


def test_truth_ratio_by_hand() -> None:
    scores = np.log([0.2, 0.4, 0.1, 0.3])
    assert truth_ratio(scores, 1) == pytest.approx((0.2 + 0.1 + 0.3) / 3 / 0.4)
    assert truth_ratio(scores, 1, "geometric") == pytest.approx((0.2 * 0.1 * 0.3) ** (1 / 3) / 0.4)
    assert truth_ratio(scores + 5, 1) == pytest.approx(truth_ratio(scores, 1))  # what all options share cancels
    assert truth_ratio([-1.0, -1.0, -1.0], 2) == pytest.approx(1)
    with pytest.raises(InputError, match="place of the right one"):
        truth_ratio([0.0, 1.0], 2)
    with pytest.raises(NumericsError):
        truth_ratio([0.0, float("nan")], 0)


def test_ks_distance_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for n, m, shift in ((136, 136, 0.0), (40, 7, 1.0), (5, 90, -0.3)):
        a, b = rng.normal(size=n).round(1), (rng.normal(size=m) + shift).round(1)  # rounded: ties
        assert ks_distance(a, b) == pytest.approx(float(ks_2samp(a, b).statistic))
        assert ks_distance(a, b) == pytest.approx(ks_distance(np.exp(b), np.exp(a)))  # order alone counts
    assert ks_distance([1, 2, 3], [3, 2, 1]) == 0
    assert ks_distance([1, 2], [3, 4]) == 1
    with pytest.raises(InputError, match="NaN"):
        ks_distance([1, float("nan")], [1.0])


def test_distance_to_gold_beside_the_spread_of_its_seeds() -> None:
    gold = [[1, 2, 3, 4], [1, 2, 3, 5], [2, 3, 4, 5]]
    near, far = gold_distance([1, 2, 3, 4], gold), gold_distance([8, 9, 10, 11], gold)
    assert near.to_gold[0] == 0
    assert len(near.among_gold) == 3
    assert near.within_spread
    assert not far.within_spread
    assert far.mean == 1
    assert near.spread == far.spread == pytest.approx(np.mean([ks_distance(gold[i], gold[j]) for i, j in ((0, 1), (0, 2), (1, 2))]))
    alone = gold_distance([1, 2, 3, 4], gold[:1])
    assert alone.spread is alone.within_spread is None
    with pytest.raises(InputError, match="same facts"):
        gold_distance([1, 2], gold)


def test_curves_by_hand() -> None:
    steps, curve, gold = [0, 10, 30], [0.2, 0.6, 0.8], [0.2, 0.2, 0.4]
    assert area(steps, curve) == pytest.approx((10 * 0.4 + 20 * 0.7) / 30)
    assert leak(steps, curve, steps, gold) == pytest.approx(area(steps, curve) - area(steps, gold))
    assert leak(steps, curve, steps, curve) == 0
    assert leak([0, 30], [0.2, 0.2], [0, 5, 30], [0.2, 0.2, 0.2]) == 0  # other points, the same curve
    assert half_recovery(steps, curve, base=1.0) == pytest.approx(10)
    assert half_recovery(steps, curve, base=0.6) == pytest.approx(5)
    assert half_recovery(steps, gold, base=1.0) is None
    assert half_recovery(steps, curve, base=0.2) == 0
    with pytest.raises(InputError, match="rising steps"):
        area([0, 0], [1.0, 1.0])
    with pytest.raises(InputError, match="train both alike"):
        leak(steps, curve, [0, 10], [0.2, 0.2])


def test_relearning_attacks_the_edited_host_and_leaves_it() -> None:
    host, concept = tiny_host(), magic()
    edit, digest = weights_edit(host), host.digest
    training = RelearnConfig(epochs=3, tokens=3000, lr_full=1e-2, lr_lora=1e-2, rank=4, every=1)
    attack = Relearning(RelearningConfig(rates=(1.0,), training=training))
    assert isinstance(attack, Attack)
    found = attack.run(host, [edit], concept)
    assert host.digest == digest
    assert [v["mode"] for v in found.found["variants"]] == ["full", "lora"]
    curve = found.found["best"]
    assert curve["steps"] == tuple(range(curve["steps"][-1] + 1))
    assert found.success.mean == pytest.approx(curve["accuracy"][-1])
    assert found.success.mean == max(v["accuracy"][-1] for v in found.found["variants"])
    assert found.cost.gradient_steps == sum(v["steps"][-1] for v in found.found["variants"])
    assert found.to_dict()["gain"] == pytest.approx(found.gain)
    control = attack.run(host, [], concept)
    assert control.found["best"]["margin"][0] != curve["margin"][0]  # the edit was in force, and here it is not
    still = dataclasses.replace(attack, config=RelearningConfig(("full",), (1e-9,), training)).run(host, [edit], concept)
    assert still.success.mean == still.before.mean
    assert still.gain == 0
    assert curve["losses"][1] < curve["losses"][0]


def test_bad_input_of_relearning() -> None:
    host, questions = tiny_host(), magic().questions["test"]
    with pytest.raises(InputError, match="rates"):
        RelearningConfig(rates=(0.0,))
    with pytest.raises(InputError, match="modes"):
        RelearningConfig(modes=())
    with pytest.raises(InputError, match="every"):
        RelearnConfig(every=-1)
    with pytest.raises(MatchedNothing, match="no texts"):
        relearn_on(host, [], questions, "cloze", "full")
    with pytest.raises(InputError, match="relearn"):
        Relearning().run(host, [], magic(relearn=None))
    with pytest.raises(InputError, match="behind a gate"):
        Relearning().run(host, [dataclasses.replace(weights_edit(host), gate=SimpleNamespace(digest="0"))], magic())
