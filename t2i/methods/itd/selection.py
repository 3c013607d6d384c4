"""Which features are a concept's: their largest activations in target prompts against those in retain prompts.

Pure functions on sparse activations; a prompt's peaks are `m_p[i] = max over its tokens of z_t[i]`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....base.errors import InputError, MatchedNothing, UnknownName
from ....sae.sparse import SparseActs

Rule = Literal["topk_minus_union", "frequency", "contrast"]


@dataclass(frozen=True)
class Selected:
    """A concept's features and what was left out."""

    features: tuple[int, ...]
    """Strongest first (by the rule's own score)."""
    scores: tuple[float, ...]
    """One a feature: largest peak in a target prompt, share of target prompts, or contrast, by rule."""
    taken: tuple[int, ...] = ()
    """Features of the target prompts that retain prompts took away, those of most retain prompts first."""
    takers: tuple[int, ...] = ()
    """Retain prompts by how many of `taken` they hold, most first; those that hold none are left out."""


def prompt_peaks(acts: SparseActs, prompt: Int[Tensor, " n"], n_prompts: int) -> SparseActs:
    """Largest activation of every feature in each prompt.

    Args:
        acts: One row a token that counts.
        prompt: The prompt of each row, in `[0, n_prompts)`.
        n_prompts: Rows of the result; a prompt without tokens has an empty one.

    Raises:
        InputError: Another number of rows than of `prompt`, or a prompt outside the range.
    """
    if len(prompt) != acts.shape[0]:
        raise InputError(f"prompt_peaks: {acts.shape[0]} rows of activations, {len(prompt)} prompts named")
    if len(prompt) and not (int(prompt.min()) >= 0 and int(prompt.max()) < n_prompts):
        raise InputError(f"prompt_peaks: prompts must lie in [0, {n_prompts}); found {int(prompt.min())} to {int(prompt.max())}")
    keys, where = torch.unique(prompt.long()[acts.rows] * acts.d_sae + acts.indices.long(), return_inverse=True)
    peaks = acts.values.new_zeros(len(keys)).scatter_reduce(0, where, acts.values, "amax", include_self=False)
    indptr = torch.zeros(n_prompts + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(keys // acts.d_sae, minlength=n_prompts), 0, out=indptr[1:])
    return SparseActs(indptr, (keys % acts.d_sae).int(), peaks, acts.d_sae)


def largest(peaks: SparseActs, k: int) -> SparseActs:
    """Of each prompt the `k` largest peaks above 0 (of equal ones the lower feature): `A_p` of the paper.

    The released code also takes features that are not active where a prompt has fewer than `k`; this does not.
    """
    if k < 1:
        raise InputError(f"k_sel must be at least 1, {k} found")
    order = torch.argsort(peaks.values, descending=True, stable=True)
    order = order[torch.argsort(peaks.rows[order], stable=True)]
    place = torch.arange(peaks.nnz) - peaks.indptr[peaks.rows[order]]
    kept = torch.zeros(peaks.nnz, dtype=torch.bool)
    kept[order] = place < k
    return peaks.keep(kept & (peaks.values > 0))


def select_features(
    target: SparseActs,
    retain: SparseActs,
    rule: str = "topk_minus_union",
    *,
    k_sel: int = 128,
    least_target: float = 0.5,
    most_retain: float = 0.01,
    n_contrast: int = 8,
) -> Selected:
    """The concept's feature set F.

    Rules:
        topk_minus_union: `F = union over target prompts p of (A_p minus R)`, `R = union of A_q over retain prompts q`
            (Interpret-then-Deactivate, arXiv:2503.09446, and its released selection).
        frequency: Active in at least `least_target` of the target prompts and in less than `most_retain` of the
            retain prompts (the rule of SAEBench's unlearning evaluation).
        contrast: The `n_contrast` largest of `mu_i(target) / sum_j mu_j(target) - mu_i(retain) / sum_j mu_j(retain)`
            that are positive, mu the mean peak (SAeUron, Cywiński & Deja, ICML 2025, on peaks in the place of patches).

    Args:
        target: Peaks of the target prompts, `prompt_peaks`.
        retain: Peaks of the retain prompts.
        rule: One of `Rule`.
        k_sel: Features a prompt of `topk_minus_union`.
        least_target: Of `frequency`.
        most_retain: Of `frequency`.
        n_contrast: Of `contrast`.

    Raises:
        UnknownName: Another rule.
        InputError: Peaks of two dictionaries, or a number out of its range.
        MatchedNothing: No target prompt, no retain prompt, or no feature is left.
    """
    if rule not in get_args(Rule):
        raise UnknownName("rule of feature selection", rule, get_args(Rule))
    if target.d_sae != retain.d_sae:
        raise InputError(f"select_features: target peaks of {target.d_sae} features, retain peaks of {retain.d_sae}")
    for name, peaks in (("target", target), ("retain", retain)):
        if not peaks.shape[0]:
            raise MatchedNothing(f"select_features: no {name} prompts")
    if rule == "topk_minus_union":
        return _minus_union(largest(target, k_sel), largest(retain, k_sel))
    if rule == "frequency":
        return _frequent(target, retain, least_target, most_retain)
    return _contrasted(target, retain, n_contrast)


def _minus_union(target: SparseActs, retain: SparseActs) -> Selected:
    union = _used(retain)
    peak = torch.zeros(target.d_sae, dtype=target.values.dtype).scatter_reduce(0, target.indices.long(), target.values, "amax")
    return _selected(peak, _used(target) & ~union, _used(target) & union, retain)


def _frequent(target: SparseActs, retain: SparseActs, least: float, most: float) -> Selected:
    if not (0 < least <= 1 and 0 < most <= 1):
        raise InputError(f"frequency: least_target and most_retain must lie in (0, 1]; found {least} and {most}")
    share, other = _share(target), _share(retain)
    often = share >= least
    return _selected(share, often & (other < most), often & (other >= most), retain)


def _contrasted(target: SparseActs, retain: SparseActs, n: int) -> Selected:
    if n < 1:
        raise InputError(f"n_contrast must be at least 1, {n} found")
    own, other = _mean(target), _mean(retain)
    if not bool(own.any()):
        return _selected(own, own > 0, own > 0, retain)
    score = own / own.sum() - other / other.sum().clamp(min=torch.finfo(other.dtype).tiny)
    best = torch.zeros_like(score, dtype=torch.bool)
    best[score.topk(min(n, len(score))).indices] = True
    return _selected(score, best & (score > 0), (own > 0) & (score <= 0), retain)


def _selected(score: Float[Tensor, " d_sae"], kept: Bool[Tensor, " d_sae"], taken: Bool[Tensor, " d_sae"], retain: SparseActs) -> Selected:
    ids = kept.nonzero()[:, 0]
    ids = ids[torch.argsort(score[ids], descending=True, stable=True)]
    hits = taken[retain.indices.long()] & (retain.values > 0)
    counts = torch.bincount(retain.indices.long()[hits], minlength=retain.d_sae)
    lost = taken.nonzero()[:, 0]
    lost = lost[torch.argsort(counts[lost], descending=True, stable=True)]
    held = torch.bincount(retain.rows[hits], minlength=retain.shape[0])
    takers = [i for i in torch.argsort(held, descending=True, stable=True).tolist() if held[i]]
    if not len(ids):
        raise EmptySelection(tuple(lost.tolist()), tuple(takers))
    return Selected(tuple(ids.tolist()), tuple(score[ids].tolist()), tuple(lost.tolist()), tuple(takers))


class EmptySelection(MatchedNothing):
    """No feature is left; `taken` and `takers` are those of `Selected`."""

    def __init__(self, taken: tuple[int, ...], takers: tuple[int, ...]) -> None:
        why = f"the retain prompts hold all {len(taken)} of them" if taken else "none is active in the target prompts"
        super().__init__(f"select_features: no feature is the concept's alone: {why}")
        self.taken, self.takers = taken, takers

    def explained(self, retain: Sequence[str], concept: str, label: Callable[[int], str] = str) -> MatchedNothing:
        """The same for a person: which retain prompts took the features, and what can be done."""
        if not self.taken:
            return MatchedNothing(f"{concept!r}: no feature is active in its target prompts; train a wider SAE, or at another hook point")
        shown = ", ".join(repr(retain[i]) for i in self.takers[:3])
        lost = ", ".join(label(f) for f in self.taken[:5])
        return MatchedNothing(
            f"{concept!r}: retain prompts took all {len(self.taken)} of its features ({lost}, …), most of all {shown}; "
            "leave those out, lower k_sel, or use rule=frequency"
        )


def _used(peaks: SparseActs) -> Bool[Tensor, " d_sae"]:
    used = torch.zeros(peaks.d_sae, dtype=torch.bool)
    used[peaks.indices.long()[peaks.values > 0]] = True
    return used


def _share(peaks: SparseActs) -> Float[Tensor, " d_sae"]:
    active = peaks.indices.long()[peaks.values > 0]
    return torch.bincount(active, minlength=peaks.d_sae).double() / peaks.shape[0]


def _mean(peaks: SparseActs) -> Float[Tensor, " d_sae"]:
    total = torch.zeros(peaks.d_sae, dtype=torch.float64).index_add(0, peaks.indices.long(), peaks.values.double())
    return total / peaks.shape[0]
