"""Erasure metrics of images, as pure functions on arrays of judgements.

UnlearnCanvas' UA, IRA and CRA (Zhang et al., UnlearnCanvas, 2024), the same relative to the base with paired noise, and MACE's
harmonic means (Lu et al., MACE, 2024). Every image was asked for an object, a style, or both, and a judge said what it shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from ...base.errors import InputError, MatchedNothing, NumericsError
from ...deactivate.evaluation.numbers import percentiles
from ...deactivate.evaluation.statistics import Equivalence, Paired, equivalence, harmonic_mean, paired_bootstrap, wilson
from ...deactivate.evaluation.value import Value

Domain = Literal["object", "style"]
NOT_ASKED = -1
"""Asked index of a domain that the prompt does not name; a judgement of -1 is «nothing of the list»."""


@dataclass(frozen=True, eq=False)
class Judgements:
    """What was asked and what one judge said, an image each."""

    asked_object: Int[np.ndarray, " n"]
    asked_style: Int[np.ndarray, " n"]
    object: Int[np.ndarray, " n"]
    style: Int[np.ndarray, " n"]

    def __post_init__(self) -> None:
        sizes = {name: np.shape(getattr(self, name)) for name in ("asked_object", "asked_style", "object", "style")}
        if len(set(sizes.values())) > 1 or len(self.object.shape) != 1:
            raise InputError(f"judgements: one entry an image expected, shapes {sizes} found")

    def asked(self, domain: Domain) -> Int[np.ndarray, " n"]:
        """Asked indices of a domain."""
        return self.asked_object if domain == "object" else self.asked_style

    def right(self, domain: Domain) -> Bool[np.ndarray, " n"]:
        """Whether the judge says what was asked, in a domain; False where nothing of it was asked."""
        said = self.object if domain == "object" else self.style
        return (said == self.asked(domain)) & (self.asked(domain) != NOT_ASKED)

    def cells(self) -> Int[np.ndarray, " n"]:
        """One number for each (object, style) asked."""
        pairs = np.stack([self.asked_object, self.asked_style], 1)
        return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def other_domain(domain: Domain) -> Domain:
    """The domain that the target is not of."""
    return "style" if domain == "object" else "object"


def target_images(j: Judgements, domain: Domain, target: int) -> Bool[np.ndarray, " n"]:
    """D(t, ·): images of cells that name the target and the other domain."""
    return (j.asked(domain) == target) & (j.asked(other_domain(domain)) != NOT_ASKED)


def grid_images(j: Judgements) -> Bool[np.ndarray, " n"]:
    """Images whose prompt names both an object and a style."""
    return (j.asked_object != NOT_ASKED) & (j.asked_style != NOT_ASKED)


def rate(right: Bool[np.ndarray, " n"], chosen: Bool[np.ndarray, " n"], what: str, unit: str = "images") -> Value:
    """Share of the chosen images that are right, with Wilson's interval.

    Raises:
        MatchedNothing: None was chosen.
    """
    if not chosen.any():
        raise MatchedNothing(f"{what}: no image is of this kind; draw prompts that are")
    found = wilson(int(right[chosen].sum()), int(chosen.sum()))
    return Value(found.mean, found.low, found.high, found.n, unit, found.method, found.level)


def complement(value: Value) -> Value:
    """1 - value."""
    low, high = value.interval
    return Value(1 - value.mean, 1 - high, 1 - low, value.n, value.unit, value.method, value.level)


def unlearncanvas(j: Judgements, domain: Domain, target: int) -> dict[str, Value]:
    """UA, IRA and CRA of one target, as UnlearnCanvas defines them. D(s, o) are the images of cell (style s, object o).

    For a style t: UA = 1 - a_S on {D(t, o): all o}; IRA = mean over s != t of a_S on {D(s, o): all o};
    CRA = mean over o of a_O on {D(s, o): all s}, s = t included. For an object the roles are swapped. Means are over groups; their
    intervals are Wilson's on the pooled images, which is exact where the groups are of one size.

    Raises:
        MatchedNothing: The target, or everything else, was not drawn.
    """
    other = other_domain(domain)
    grid, here = grid_images(j), j.asked(domain) == target
    own, cross = j.right(domain), j.right(other)
    return {
        "UA": complement(rate(own, grid & here, f"UA of {domain} {target}")),
        "IRA": mean_over(own, j.asked(domain), grid & ~here, f"IRA of {domain} {target}"),
        "CRA": mean_over(cross, j.asked(other), grid, f"CRA of {domain} {target}"),
    }


def mean_over(right: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"], chosen: Bool[np.ndarray, " n"], what: str) -> Value:
    """Mean over groups of the share that is right; Wilson's interval of the pooled rate, moved to that mean."""
    pooled = rate(right, chosen, what)
    means = [right[chosen & (groups == g)].mean() for g in np.unique(groups[chosen])]
    mean = float(np.mean(means))
    low, high = pooled.interval
    shift = mean - pooled.mean
    return Value(
        mean, max(0.0, min(low + shift, mean)), min(1.0, max(high + shift, mean)), pooled.n, "images", "Wilson, pooled", pooled.level
    )


def cross_plain(j: Judgements, domain: Domain) -> Value:
    """CRA_0: the other domain's accuracy on prompts that name no member of the target's domain («a picture of a dog», no style).

    SAeUron reports this for styles in the place of CRA.

    Raises:
        MatchedNothing: There are no such prompts.
    """
    other = other_domain(domain)
    chosen = (j.asked(domain) == NOT_ASKED) & (j.asked(other) != NOT_ASKED)
    return mean_over(j.right(other), j.asked(other), chosen, f"CRA_0 of a {domain}")


def aligned(j: Judgements, domain: Domain, target: int) -> Value:
    """ALIGN: is the rest of the prompt still drawn where the target was asked for? The other domain's accuracy on D(t, ·)."""
    return rate(j.right(other_domain(domain)), target_images(j, domain, target), f"ALIGN of {domain} {target}")


def other_ways(j: Judgements, domain: Domain, target: int) -> Value:
    """UA on other ways to ask: `j` holds images of such prompts alone."""
    return complement(rate(j.right(domain), j.asked(domain) == target, f"UA of {domain} {target} asked otherwise"))


def relative(
    edited: Judgements, base: Judgements, domain: Domain, chosen: Bool[np.ndarray, " n"], *, erased: bool = False, draws: int = 2000, seed: int = 0
) -> Value:  # fmt: skip
    """Accuracy of the edited host over the base's on the chosen images of the same prompts and seeds, clipped to [0, 1].

    `erased` gives UA_rel = 1 - a(edited) / a(base); else it is the share kept. Paired bootstrap: cells are resampled, then images in
    them, both hosts alike.

    Raises:
        InputError: The two were not asked the same, or the base draws none of them (then there is nothing to erase or keep).
    """
    e, b = by_cell(edited, base, domain, chosen)
    total = sum(x.sum() for x in b)
    if not total:
        raise InputError(
            f"relative accuracy of {domain}s: the base draws none of {int(chosen.sum())} images; leave the cell out (`efface icons check`)"
        )
    mean = min(1.0, float(sum(x.sum() for x in e) / total))
    low, high = percentiles(np.clip(_resampled_ratios(e, b, draws, seed), 0, 1), 0.95)
    value = Value(mean, min(low, mean), max(high, mean), int(chosen.sum()), "images", "paired bootstrap over cells")
    return complement(value) if erased else value


def paired(
    edited: Judgements, base: Judgements, domain: Domain, chosen: Bool[np.ndarray, " n"], draws: int = 2000, seed: int = 0
) -> Paired:  # fmt: skip
    """Edited minus base accuracy, image by image: interval by paired bootstrap over cells; wins, losses, and ties as ties."""
    return paired_bootstrap(*by_cell(edited, base, domain, chosen), draws=draws, seed=seed)


def by_cell(
    edited: Judgements, base: Judgements, domain: Domain, chosen: Bool[np.ndarray, " n"]
) -> tuple[list[np.ndarray], list[np.ndarray]]:  # fmt: skip
    """Right (1) or wrong (0) of the chosen images, an array a cell, on both sides.

    Raises:
        InputError: The two sides were asked for other things.
        MatchedNothing: No image was chosen.
    """
    same_asked(edited, base)
    if not chosen.any():
        raise MatchedNothing(f"paired accuracy of {domain}s: no image is of this kind")
    cells = edited.cells()
    groups = [chosen & (cells == c) for c in np.unique(cells[chosen])]
    one, other = ([j.right(domain)[g].astype(float) for g in groups] for j in (edited, base))
    return one, other


def _resampled_ratios(e: Sequence[np.ndarray], b: Sequence[np.ndarray], draws: int, seed: int) -> Float[np.ndarray, " draws"]:
    """Sum of e over sum of b under resampling of cells and, in each, of images; draws whose base has none count as 1."""
    rng, n = np.random.default_rng(seed), len(e)
    chosen = rng.integers(n, size=(draws, n))
    tops, bottoms = np.zeros((draws, n)), np.zeros((draws, n))
    for i, (x, y) in enumerate(zip(e, b, strict=True)):
        picked = chosen == i
        items = rng.integers(x.size, size=(int(picked.sum()), x.size))
        tops[picked], bottoms[picked] = x[items].sum(1), y[items].sum(1)
    top, bottom = tops.sum(1), bottoms.sum(1)
    return np.divide(top, bottom, out=np.ones(draws), where=bottom > 0)


def same_asked(a: Judgements, b: Judgements) -> None:
    """Refuses judgements of other prompts.

    Raises:
        InputError: They differ.
    """
    for domain in ("object", "style"):
        if not np.array_equal(a.asked(domain), b.asked(domain)):
            raise InputError(f"paired judgements: the two sides were asked for other {domain}s; draw both with the same prompts and seeds")


def no_harm(edited: Judgements, base: Judgements, domain: Domain, chosen: Bool[np.ndarray, " n"], margin: float) -> Equivalence:
    """Is accuracy on the chosen images within ±margin of the base's? Two one-sided tests over the means of cells.

    Raises:
        InputError: Fewer than two cells.
    """
    e, b = by_cell(edited, base, domain, chosen)
    return equivalence([float(x.mean() - y.mean()) for x, y in zip(e, b, strict=True)], margin, unit="cells")


def against_base(
    edited: Judgements,
    base: Judgements,
    domain: Domain,
    target: int,
    neighbours: Sequence[int] = (),
    margin: float = 0.05,
    draws: int = 2000,
) -> tuple[dict[str, Value], dict[str, Equivalence]]:
    """UA_rel, IRA_rel, CRA_rel, IRA_nb (the first neighbour: the pair), IRA_near (all), and «no harm» of all but the first at `margin`.

    What was not drawn, or what the base draws none of, is left out.
    """
    other, grid, here = other_domain(domain), grid_images(edited), edited.asked(domain) == target
    near = [np.isin(edited.asked(domain), n) & grid for n in (list(neighbours[:1]), list(neighbours))]
    parts: Mapping[str, tuple[Domain, Bool[np.ndarray, " n"], bool]] = {
        "UA_rel": (domain, grid & here, True),
        "IRA_rel": (domain, grid & ~here, False),
        "IRA_nb": (domain, near[0], False),
        "IRA_near": (domain, near[1], False),
        "CRA_rel": (other, grid, False),
    }
    values, harm = {}, {}
    for name, (judged, chosen, erased) in parts.items():
        if not chosen.any() or not base.right(judged)[chosen].any():
            continue
        values[name] = relative(edited, base, judged, chosen, erased=erased, draws=draws)
        if not erased and len(np.unique(edited.cells()[chosen])) > 1:
            harm[name] = no_harm(edited, base, judged, chosen, margin)
    return values, harm


def mace(
    erased: Float[np.ndarray, " e"], kept: Float[np.ndarray, " k"], synonyms: Float[np.ndarray, " g"] | None = None
) -> dict[str, Value]:
    """MACE's Acc_e, Acc_s, (Acc_g,) and H_o = 3 / (1/(1-Acc_e) + 1/Acc_s + 1/(1-Acc_g)), or H_c without synonyms.

    Args:
        erased: Probability of the asked class, on images of the erased class. «Acc» is the mean probability, not an accuracy.
        kept: The same on images of other classes.
        synonyms: Probability of the erased class on images asked for by its synonyms.
    """
    acc = {"Acc_e": _mean(erased, "Acc_e"), "Acc_s": _mean(kept, "Acc_s")}
    parts, n = [1 - acc["Acc_e"].mean, acc["Acc_s"].mean], len(erased) + len(kept)
    if synonyms is None:
        return {**acc, "H_c": Value(harmonic_mean(parts), n=n, unit="images")}
    acc["Acc_g"] = _mean(synonyms, "Acc_g")
    return {**acc, "H_o": Value(harmonic_mean([*parts, 1 - acc["Acc_g"].mean]), n=n + len(synonyms), unit="images")}


def _mean(p: Float[np.ndarray, " n"], name: str) -> Value:
    if not len(p):
        raise MatchedNothing(f"{name}: no image")
    if not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
        raise NumericsError(f"{name}: probabilities in [0, 1] expected")
    half = 1.96 * float(p.std(ddof=1)) / len(p) ** 0.5 if len(p) > 1 else 0.0
    mean = float(p.mean())
    return Value(mean, max(0.0, mean - half), min(1.0, mean + half), len(p), "images", "normal")


def mark_rate(marked: Bool[np.ndarray, " n"], asked: Bool[np.ndarray, " n"] | None = None) -> Value:
    """How often the mark is drawn where no prompt names it."""
    chosen = np.ones(len(marked), bool) if asked is None else ~asked
    return rate(marked, chosen, "mark rate")
