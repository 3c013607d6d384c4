import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from efface.base.errors import InputError, NumericsError
from efface.deactivate.evaluation import statistics as S
from efface.deactivate.evaluation.value import Value


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of this test's own: what it draws does not depend on which tests ran before."""
    return np.random.default_rng(0)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 20), (20, 20), (41, 300)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    value = S.wilson(k, n)
    assert value.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert value.high - value.low > 0  # type: ignore[operator]
    with pytest.raises(InputError, match="not a rate"):
        S.wilson(n + 1, n)


def test_t_interval_is_scipys_and_one_concept_is_refused(rng: np.random.Generator) -> None:
    x = rng.normal(size=8)
    expected = stats.t.interval(0.9, 7, loc=x.mean(), scale=stats.sem(x))
    assert S.t_interval(x, 0.9).interval == pytest.approx(expected)
    with pytest.raises(InputError, match="at least 2"):
        S.t_interval([0.3])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: S.t_interval(x),
        lambda x: S.hierarchical_bootstrap([[1.0, 2.0], x]),
        lambda x: S.paired_bootstrap([x], [[0.0, 1.0, 2.0]]),
        lambda x: S.harmonic_mean(x),
        lambda x: S.tie_credit(x, 0),
        lambda x: S.auroc(x, [0.0, 1.0]),
        lambda x: S.auroc([0.0, 1.0], x, method="bootstrap"),
        lambda x: S.equivalence(x, 0.1),
        lambda x: S.mcnemar(x, [0.0, 1.0, 1.0]),
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_an_error_everywhere(call, bad: float) -> None:
    with pytest.raises(NumericsError, match="value 1 of 3"):
        call([0.5, bad, 0.25])


def test_hierarchical_interval_is_wider_than_one_over_pooled_items(rng: np.random.Generator) -> None:
    groups = [rng.normal(loc=m, size=60) for m in np.linspace(-1, 1, 8)]
    value = S.hierarchical_bootstrap(groups, seed=3)
    pooled = S.hierarchical_bootstrap([np.concatenate(groups)], seed=3)
    assert value == S.hierarchical_bootstrap(groups, seed=3) != S.hierarchical_bootstrap(groups, seed=4)
    assert value.mean == pytest.approx(np.mean([g.mean() for g in groups]))
    width, naive = value.interval[1] - value.interval[0], pooled.interval[1] - pooled.interval[0]
    assert width > 2 * naive  # concepts differ: treating their items as independent would be overconfident
    assert (value.n, value.unit, pooled.unit) == (8, "concepts", "items")


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(120):
        own = np.random.default_rng(trial)
        groups = [own.normal(loc=c, size=30) for c in own.normal(size=12)]
        low, high = S.hierarchical_bootstrap(groups, draws=300, seed=trial).interval
        hits += low <= 0 <= high
    assert 0.85 <= hits / 120 <= 1.0


def test_resampling_in_blocks_changes_no_shape(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(S, "BLOCK", 100)
    value = S.hierarchical_bootstrap([rng.normal(size=70), rng.normal(size=30)], draws=200)
    assert value.interval[0] < value.mean < value.interval[1]


def test_pairing_removes_what_both_sides_share_and_ties_are_ties(rng: np.random.Generator) -> None:
    hard = [rng.normal(scale=5, size=40) for _ in range(6)]
    better = [h + 0.5 + rng.normal(scale=0.1, size=40) for h in hard]
    paired = S.paired_bootstrap(better, hard)
    assert paired.verdict == "higher"
    assert paired.difference.mean == pytest.approx(0.5, abs=0.05)
    same = S.paired_bootstrap(hard, hard)
    assert (same.verdict, same.ties, same.wins, same.losses) == ("tie", 240, 0, 0)
    assert S.paired_bootstrap([[3.5, 3.25]], [[1.0, 1.0]], factor=3.0).wins == 2
    with pytest.raises(InputError, match="concept 1 has 3 items"):
        S.paired_bootstrap([[1.0], [1.0, 2.0, 3.0]], [[1.0], [1.0, 2.0]])


def test_harmonic_mean_is_published_figures_and_survives_zero() -> None:
    assert S.harmonic_mean([1 - 0.0012, 0.3790]) == pytest.approx(0.5495, abs=1e-4)
    assert S.harmonic_mean([1 - 0.0430, 0.8807]) == pytest.approx(0.9173, abs=1e-4)
    assert S.harmonic_mean([0.4, 0.4, 0.4]) == pytest.approx(0.4)
    assert S.harmonic_mean([0.0, 1.0]) < 1e-5
    with pytest.raises(InputError, match="negative"):
        S.harmonic_mean([-0.1, 1.0])


def test_ties_share_the_credit() -> None:
    assert S.tie_credit([1.0, 1.0, 0.0, 1.0], 1) == pytest.approx(1 / 3)
    assert S.tie_credit([1.0, 1.0, 0.0, 1.0], 2) == 0
    assert np.mean([S.tie_credit([0.0, 0.0], r) for r in (0, 1)]) == 0.5  # a blank output scores chance
    with pytest.raises(InputError, match="not among"):
        S.tie_credit([1.0, 2.0], 2)


def test_auroc_is_sklearns_and_its_intervals_agree(rng: np.random.Generator) -> None:
    x, y = np.round(rng.normal(loc=1, size=80), 1), np.round(rng.normal(size=120), 1)  # rounded: with ties
    truth = np.r_[np.ones(80), np.zeros(120)]
    delong, boot = S.auroc(x, y), S.auroc(x, y, method="bootstrap", draws=800)
    assert (delong.mean, boot.mean) == pytest.approx((roc_auc_score(truth, np.r_[x, y]),) * 2)
    assert delong.interval == pytest.approx(boot.interval, abs=0.02)
    assert S.auroc(y, x).interval == pytest.approx(tuple(1 - v for v in reversed(delong.interval)))


def test_auroc_at_perfect_separation_keeps_an_interval() -> None:
    value = S.auroc([2.0, 3.0, 4.0], [0.0, 1.0])
    assert (value.mean, value.high, value.method) == (1.0, 1.0, "Newcombe")
    assert 0.2 < value.interval[0] < 0.95
    assert S.auroc(np.arange(100, 200), np.arange(100)).interval[0] > value.interval[0]
    assert S.auroc([1.0], [0.0, 2.0]).method == "Newcombe"


def test_equivalence_needs_more_than_no_difference_found(rng: np.random.Generator) -> None:
    close, noisy = rng.normal(scale=0.01, size=10), rng.normal(scale=1.0, size=10)
    assert S.equivalence(close, 0.05).equivalent
    assert not S.equivalence(noisy, 0.05).equivalent  # a t-test finds no difference there either
    assert not S.equivalence(close + 1, 0.05).equivalent
    test = S.equivalence(close, 0.05)
    assert test.equivalent == (test.difference.interval[0] > -0.05 and test.difference.interval[1] < 0.05)
    se, mean = noisy.std(ddof=1) / np.sqrt(10), noisy.mean()
    p = max(stats.t.sf((mean + 2) / se, 9), stats.t.cdf((mean - 2) / se, 9))
    assert S.equivalence(noisy, 2.0).p == pytest.approx(p)
    with pytest.raises(InputError, match="margin"):
        S.equivalence(close, 0.0)


def test_mcnemar_counts_only_what_changed() -> None:
    before, after = [1] * 20 + [0] * 5, [0] * 15 + [1] * 5 + [0] * 4 + [1]
    test = S.mcnemar(before, after)
    assert (test.gained, test.lost) == (1, 15)
    assert test.p == pytest.approx(stats.binomtest(1, 16).pvalue)
    assert S.mcnemar(before, before).p == 1
    with pytest.raises(InputError, match="0/1"):
        S.mcnemar([0.5], [1.0])


def test_value_refuses_what_is_no_figure() -> None:
    with pytest.raises(NumericsError):
        Value(float("nan"))
    for bad in ({"low": 1.0}, {"low": 2.0, "high": 1.0}, {"n": 0}):
        with pytest.raises(InputError):
            Value(1.0, **bad)  # type: ignore[arg-type]
    assert Value(-0.0001, -1.0, 2.0).text(2) == "0.00 [-1.00, 2.00]"
    assert Value(1.0, 0.0, 2.0).scaled(-1.0).interval == (-2.0, 0.0)
