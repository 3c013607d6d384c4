"""A feature's label from what it fires on, what stands around it and what it promotes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evidence.held import Context
from .words import EvidenceWords, Stretch, WordIndex, stem

CANDIDATES = 12
"""Words a source that are weighed against each other."""
PRIOR = 10.0
"""Size of the prior in contexts: so many contexts of ordinary text are added to what was seen."""
LEAST_GAIN = 0.05
"""A word must raise the share of firing contexts covered, less that of silent ones, by so much, …"""
LEAST_NEW = 2
"""… and cover so many firing contexts that no word before it covers."""
SOURCES = ("tokens", "context", "promoted")


@dataclass(frozen=True)
class Proposal:
    """A label before it is scored."""

    text: str
    source: str
    """`tokens`, `context`, `promoted` (joined by + where its words come from several), or `host`."""
    stems: tuple[str, ...]
    """What its detector looks for."""


def log_odds(count: float, n: int, background: int, n_background: int, prior: float = PRIOR) -> float:
    """z-score of the log-odds of a count against the background, with the background as an informative prior.

    `δ = log((y + a) / (n + a0 - y - a)) - log((b + a) / (m + a0 - b - a))` with `a = a0 (b + ½) / (m + 1)`;
    `z = δ / sqrt(1 / (y + a) + 1 / (b + a))`.

    Source: Fightin' Words (Monroe, Colaresi and Quinn, 2008), Eqs. 16, 20, 22; counts may be fractions here.
    """
    a = prior * (background + 0.5) / (n_background + 1)
    inside = (count + a) / max(n + prior - count - a, 1e-9)
    outside = (background + a) / max(n_background + prior - background - a, 1e-9)
    return math.log(inside / outside) / math.sqrt(1 / (count + a) + 1 / (background + a))


def propose(words: EvidenceWords, feature: int, promoted: Sequence[str] = (), *, most: int = 4, least: int = 5) -> Proposal | None:
    """At most `most` words that stand in many contexts in which the feature fires and in few others.

    Candidates: words that it fires on (weighted by activation), words around them (both against their share of ordinary
    contexts), words that it promotes. Of these the word that covers most is taken, then the one that adds most to it, …
    Only the evidence part is read.

    Returns:
        None where fewer than `least` contexts are there, or no word tells them from others.
    """
    contexts = [c for _, c in words.evidence.quantiles(feature)]
    if len(contexts) < least:
        return None
    found = [words.stretch(c.tokens, c.position > c.peak) for c in contexts]
    index = words.index["evidence"]
    candidates = _candidates(contexts, found, index, promoted)
    covers = np.array([[s in here.stems for here in found] for s in candidates], dtype=bool).reshape(len(candidates), len(found))
    quiet = words.silence["evidence"].of(feature).numpy()
    false = np.array([index.present(s)[quiet] for s in candidates], dtype=bool).reshape(len(candidates), int(quiet.sum()))
    chosen = [list(candidates)[i] for i in cover(covers, false, most)]
    if not chosen:
        return None
    surface = Counter((w.stem, w.text) for here in found for w in here.spans if w.stem in chosen)
    spelled = (max((t for s, t in surface if s == c), key=lambda t, c=c: surface[c, t]) for c in chosen)
    text = ", ".join(t if t[0].isalnum() else f"«{t}»" for t in spelled)
    source = "+".join(s for s in SOURCES if any(candidates[c] == s for c in chosen))
    return Proposal(text, source, tuple(chosen))


def cover(covers: np.ndarray, false: np.ndarray, most: int) -> list[int]:
    """Rows taken one by one: `covers` [c, p] says which contexts each word stands in, `false` [c, q] the same of silent ones.

    Each step takes the word that raises (share of `p` covered - share of `q` covered) most, of those that cover `LEAST_NEW`
    more, while that is `LEAST_GAIN`.
    """
    chosen: list[int] = []
    hit, miss = np.zeros(covers.shape[1], dtype=bool), np.zeros(false.shape[1], dtype=bool)
    for _ in range(min(most, len(covers))):
        new = covers & ~hit
        gain = new.mean(1) - ((false & ~miss).mean(1) if len(miss) else 0.0)
        gain[new.sum(1) < LEAST_NEW] = -1.0
        best = int(gain.argmax())
        if gain[best] < LEAST_GAIN:
            break
        chosen.append(best)
        hit, miss = hit | covers[best], miss | false[best]
    return chosen


def _candidates(contexts: list[Context], found: list[Stretch], index: WordIndex, promoted: Sequence[str]) -> dict[str, str]:
    """Stem -> source, for words of at least two documents."""
    fires: dict[str, float] = {}
    stands: Counter[str] = Counter()
    for c, here in zip(contexts, found, strict=True):
        stands.update(here.stems)
        for s, activation in here.active(c.activations).items():
            fires[s] = fires.get(s, 0.0) + activation / c.value
    several = {s for s, n in stands.items() if n > 1}
    several = {s for s in several if len({c.document for c, here in zip(contexts, found, strict=True) if s in here.stems}) > 1}

    def ranked(counts: dict[str, float] | Counter[str]) -> list[str]:
        z = {s: log_odds(float(y), len(found), index.count(s), index.n) for s, y in counts.items() if y > 0 and s in several}
        return [s for s in sorted(z, key=lambda s: (-z[s], s)) if z[s] > 0][:CANDIDATES]

    says = [s for s in (stem(p.strip()) for p in promoted) if s in several]
    named = {"tokens": ranked(fires), "context": ranked(stands), "promoted": says}
    result: dict[str, str] = {}
    for source in SOURCES:
        for s in named[source]:
            result.setdefault(s, source)
    return result
