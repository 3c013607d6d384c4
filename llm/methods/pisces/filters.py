"""Filters 3.3a and 3.3c: what a feature's edit must not do alone.

Raise the concept's tokens, harm neighbours or neutral text.

3.3b (features that never fire on the concept's texts) is part of finding candidates. Judges are local: the host's own
likelihoods.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....base.errors import MatchedNothing
from ....base.running import progress
from ...evaluation.texts import cut_text, text_figures
from ...features import FeatureEvidence, concept_tokens
from ...pools import general_texts, pool_texts
from .config import PiscesConfig
from .math import LayerProblem
from .surgery import PrefixCache, trial

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ...host import Host


@dataclass(frozen=True)
class Probe:
    """What the filters measure on one state of the host."""

    concept: float
    """Mean probability of the concept's tokens over all positions of its texts (of the texts' own next tokens, where
    it has no tokens).
    """
    neighbours: float | None
    """Mean probability of the next token on neighbours' texts."""
    text: float
    """Bits per byte on neutral text."""


class Judges:
    """The texts of a concept on which single-feature edits are probed, cut short and fixed."""

    def __init__(self, host: "Host", concept: "Concept", config: PiscesConfig, max_tokens: int = 48) -> None:
        def cut(texts: Sequence[str]) -> list[str]:
            return [cut_text(host, t, max_tokens) for t in texts]

        n, seed = config.n_probe, config.seed
        self.host = host
        self.concept = cut(pool_texts(concept, "target", "train", n, seed))
        self.neighbours = cut(pool_texts(concept, "neighbours", "train", n, seed))
        self.general = cut(general_texts(concept, "validation", n, seed))
        self.tokens = sorted(concept_tokens(host, concept)[0].values())

    def measure(self) -> Probe:
        """One pass over the three pools."""
        own = token_mass(self.host, self.concept, self.tokens) if self.tokens else _next_probability(self.host, self.concept)
        near = _next_probability(self.host, self.neighbours) if self.neighbours else None
        return Probe(own, near, text_figures(self.host, self.general).bits_per_byte)


def _next_probability(host: "Host", texts: Sequence[str]) -> float:
    return float(torch.cat(host.token_logprobs([""] * len(texts), texts)).double().exp().mean())


@torch.no_grad()
def token_mass(host: "Host", texts: Sequence[str], token_ids: Sequence[int], batch: int = 16, rows: int = 512) -> float:
    """Mean softmax probability of each of `token_ids` as the next token, over all text positions (pisces.md 3.3a)."""
    total, n = 0.0, 0
    for first in progress(range(0, len(texts), batch), desc="probabilities of tokens", unit="batch", inner=True):
        ids, mask = host.encode_texts(list(texts[first : first + batch]))
        hidden = host.base(input_ids=ids, attention_mask=mask, use_cache=False)[0][host.keep_mask(ids, mask)]
        for part in hidden.split(rows):
            logits: Tensor = host.head(part).double()
            total += float((logits[:, list(token_ids)] - logits.logsumexp(1, keepdim=True)).exp().sum())
            n += len(part) * len(token_ids)
    return total / n


def filtered(
    judges: Judges,
    ranked: Sequence[FeatureEvidence],
    problem: Callable[[FeatureEvidence], LayerProblem],
    config: PiscesConfig,
    wanted: int,
) -> tuple[list[FeatureEvidence], list[FeatureEvidence]]:
    """The first `wanted` features that pass, in rank order, and those that were dropped on the way.

    Both with what was measured.

    Features are probed a layer at a time from the layer's input on, as many as could still be needed.

    Raises:
        MatchedNothing: None that detects the concept passes; those at whose negative end its tokens lie are no edit by
            themselves.
    """
    kept: list[FeatureEvidence] = []
    dropped: list[FeatureEvidence] = []
    queue = list(ranked)
    while queue and len(kept) < wanted:
        batch, queue = queue[: wanted - len(kept)], queue[wanted - len(kept) :]
        for e in _probed(judges, batch, problem, config):
            (dropped if _verdict(e, config) else kept).append(e)
    if all(e.direction == "suppress_negative" for e in kept):
        raise MatchedNothing(
            "no feature that detects the concept passes the filters "
            f"({_verdict(dropped[0], config)}, for the first of {len(dropped)}); "
            "lower probe_mu, loosen max_neighbour_harm or max_text_harm, or set filters=false"
        )
    position = {(e.hook_point, e.id): i for i, e in enumerate(ranked)}
    return sorted(kept, key=lambda e: position[e.hook_point, e.id]), dropped


def _probed(
    judges: Judges,
    batch: Sequence[FeatureEvidence],
    problem: Callable[[FeatureEvidence], LayerProblem],
    config: PiscesConfig,
) -> list[FeatureEvidence]:
    out: list[FeatureEvidence] = []
    for layer in sorted({e.layer for e in batch}):
        with PrefixCache(judges.host, layer):
            base = judges.measure()
            for e in (e for e in batch if e.layer == layer):
                p = problem(e)
                with trial(judges.host, {layer: (p.Q(config.probe_tau, config.probe_mu), p.D)}):
                    out.append(dataclasses.replace(e, effects=_effects(judges.measure(), base)))
    return out


def _effects(now: Probe, base: Probe) -> dict[str, float]:
    effects = {"concept": now.concept - base.concept, "text": now.text / base.text - 1}
    if now.neighbours is not None and base.neighbours is not None:
        effects["neighbours"] = now.neighbours - base.neighbours
    return effects


def _verdict(e: FeatureEvidence, config: PiscesConfig) -> str:
    """Why a feature is dropped; empty: it stays."""
    if e.effects["concept"] > 0:
        return "its edit raises the concept's tokens"
    if e.effects.get("neighbours", 0.0) < -config.max_neighbour_harm:
        return "its edit harms the neighbours"
    return "its edit harms neutral text" if e.effects["text"] > config.max_text_harm else ""
