"""Feature selection of ItD on activations written out by hand, beside the rule computed prompt by prompt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.sae.sparse import SparseActs
from efface.t2i.methods.itd.selection import EmptySelection, largest, prompt_peaks, select_features


def sparse(rows) -> SparseActs:
    dense = torch.tensor(rows, dtype=torch.float32)
    counts = (dense != 0).sum(1)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return SparseActs(indptr, dense.nonzero()[:, 1].int(), dense[dense != 0], dense.shape[1])


def test_peaks_are_the_maxima_of_each_prompt():
    tokens = sparse([[1, 0, 5], [2, 0, 3], [0, 4, 0], [0, 0, 0], [0, 1, 0]])
    peaks = prompt_peaks(tokens, torch.tensor([0, 0, 2, 2, 2]), 4)
    assert peaks.to_dense().tolist() == [[2, 0, 5], [0, 0, 0], [0, 4, 0], [0, 0, 0]]
    for bad in (torch.tensor([0, 1]), torch.tensor([0, 0, 0, 0, 4])):
        with pytest.raises(InputError):
            prompt_peaks(tokens, bad, 4)


def test_the_largest_never_take_what_is_silent():
    peaks = sparse([[3, 0, 1, 2], [0, 7, 0, 0]])
    assert largest(peaks, 2).to_dense().tolist() == [[3, 0, 0, 2], [0, 7, 0, 0]]
    assert largest(peaks, 99).to_dense().tolist() == peaks.to_dense().tolist()
    with pytest.raises(InputError, match="k_sel"):
        largest(peaks, 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=2, max_size=6), st.integers(1, 4), st.integers(1, 5))
def test_minus_union_is_the_papers_rule(rows, k, cut):
    cut = min(cut, len(rows) - 1)

    def a(row):
        return {i for i in sorted(range(6), key=lambda i: (-row[i], i))[:k] if row[i] > 0}

    union = set().union(*(a(r) for r in rows[cut:]))
    want = set().union(*(a(r) - union for r in rows[:cut]))
    try:
        got = select_features(sparse(rows[:cut]), sparse(rows[cut:]), k_sel=k)
    except EmptySelection:
        assert not want
    else:
        assert set(got.features) == want
        assert set(got.taken) == set().union(*(a(r) for r in rows[:cut])) & union


def test_frequency_and_contrast_find_what_is_the_concepts_own():
    target, retain = sparse([[9, 1, 0, 1]] * 3 + [[9, 0, 0, 1]]), sparse([[9, 0, 0, 0]] * 8 + [[9, 1, 1, 0]] * 2)
    assert select_features(target, retain, "frequency", least_target=0.7, most_retain=0.1).features == (3,)
    assert select_features(target, retain, "frequency", least_target=0.7, most_retain=0.3).features == (3, 1)
    assert select_features(target, retain, "contrast", n_contrast=1).features == (3,)
    assert 0 not in select_features(target, retain, "contrast", n_contrast=4).features  # strongest, and everybody's
    everybody = select_features(target, sparse([[0, 0, 1, 0]]), "contrast", n_contrast=1)
    assert everybody.features == (0,)


def test_an_empty_selection_says_who_took_the_features():
    target, retain = sparse([[1, 2, 0]]), sparse([[0, 0, 1], [1, 2, 0], [1, 0, 0]])
    with pytest.raises(EmptySelection) as caught:
        select_features(target, retain)
    assert caught.value.takers == (1, 2)
    text = str(caught.value.explained(["a sea", "a hound at night", "a wolf"], "dog"))
    assert text.index("a hound at night") < text.index("a wolf")
    assert "a sea" not in text
    with pytest.raises(EmptySelection) as silent:
        select_features(sparse([[0, 0, 0]]), retain)
    assert "wider" in str(silent.value.explained([], "dog"))


def test_refuses():
    peaks = sparse([[1, 0, 2]])
    with pytest.raises(UnknownName, match="frequency"):
        select_features(peaks, peaks, "frequenzy")
    with pytest.raises(InputError, match="of 2"):
        select_features(peaks, sparse([[1, 1]]))
    with pytest.raises(MatchedNothing, match="no retain prompts"):
        select_features(peaks, SparseActs(torch.zeros(1, dtype=torch.int64), peaks.indices[:0], peaks.values[:0], 3))
    with pytest.raises(InputError, match="most_retain"):
        select_features(peaks, peaks, "frequency", most_retain=0.0)
