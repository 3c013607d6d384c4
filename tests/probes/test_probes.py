"""Probes find what is there, both backends the same of it, and nothing where labels are dealt anew."""

from functools import partial

import pytest
import torch
from probes._data import classes, one_hot, read

from efface.base.errors import InputError, MatchedNothing
from efface.probes import (
    LinearConfig,
    MlpConfig,
    Score,
    control_labels,
    description_length,
    fit_linear,
    fit_mlp,
    fit_rbf,
    leace,
    pooled,
    score,
)


def ring(n: int = 1200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes with equal means, told apart by their distance from 0."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 6, generator=g)
    return x / x.norm(dim=1, keepdim=True) * (1 + 2 * y[:, None]) + 0.1 * torch.randn(n, 6, generator=g), y


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_both_backends_reach_the_same_minimum(kind: str, k: int) -> None:
    x, y = classes(k, 400, 6, size=1.0)
    one, two, other = (fit_linear(x, y, LinearConfig(kind, l2, b)) for b, l2 in (("sklearn", 0.1), ("torch", 0.1), ("torch", 3.0)))
    centre = [p.logits(x) - p.logits(x).mean(1, keepdim=True) for p in (one, two, other)]
    assert torch.allclose(centre[0], centre[1], atol=2e-3)
    assert not torch.allclose(centre[0], centre[2], atol=0.1)


def test_scores_are_over_the_majority_of_the_training_set() -> None:
    x, y = classes(2, 1000, 8, size=3.0)
    train, test = slice(0, 500), slice(500, None)
    found = score(fit_linear(x[train], y[train]), x[test], y[test], y[train])
    control = control_labels(y)
    chance = score(fit_linear(x[train], control[train]), x[test], control[test], control[train])
    assert found.excess > 0.3
    assert abs(chance.excess) < 4 * chance.standard_error
    assert sorted(control.tolist()) == sorted(y.tolist())
    mostly = torch.tensor([0, 0, 0, 1])
    assert score(fit_linear(x[train], y[train]), x[:4], torch.tensor([1, 1, 1, 0]), mostly).majority == 0.25
    both = pooled([Score(0.5, 0.5, 100), Score(1.0, 0.75, 300)])
    assert (both.accuracy, both.majority, both.n) == (0.875, 0.6875, 400)


def test_probes_that_are_not_linear_read_what_linear_ones_and_leace_miss() -> None:
    x, y = ring()
    erased = leace(read(x.double(), one_hot(y)))(x)
    train, test = slice(0, 800), slice(800, None)
    for fit in (partial(fit_mlp, config=MlpConfig(epochs=40)), fit_rbf):
        assert score(fit(erased[train], y[train]), erased[test], y[test], y[train]).accuracy > 0.9
    assert score(fit_linear(erased[train], y[train]), erased[test], y[test], y[train]).accuracy < 0.6


def test_fitting_twice_gives_the_same_perceptron() -> None:
    x, y = ring(200)
    a, b, other = (fit_mlp(x, y, MlpConfig(epochs=2, seed=s)).log_probs(x) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


def test_description_length_is_short_where_labels_are_easy_and_uniform_where_they_are_noise() -> None:
    x, y = classes(2, 800, 6, size=4.0)
    fit = partial(fit_linear, config=LinearConfig(l2=1e-3))
    easy, noise = description_length(x, y, fit), description_length(x, control_labels(y), fit)
    assert easy.uniform_bits == noise.uniform_bits == 800
    assert easy.compression > 2
    assert 0.85 < noise.compression < 1.05
    ringed = description_length(*ring(), partial(fit_mlp, config=MlpConfig(epochs=30)))
    assert ringed.compression > description_length(*ring(), fit).compression + 0.3


def test_refusals() -> None:
    x, y = classes(2, 40, 4)
    for bad, message in (
        (lambda: LinearConfig("svm"), "l2"),
        (lambda: MlpConfig(hidden=0), "hidden"),
        (lambda: fit_linear(x, y[:5]), "one label a vector"),
        (lambda: fit_linear(x, y * 2), "without gaps"),
        (lambda: description_length(x[:12], y[:12], fit_linear), "too few"),
    ):
        with pytest.raises(InputError, match=message):
            bad()
    with pytest.raises(MatchedNothing, match="two classes"):
        fit_mlp(x, torch.zeros_like(y))
