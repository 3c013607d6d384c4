"""What a host writes when texts of a concept begin, and how another reads it: is the place of a concept that is gone still language?

«Reverse perplexity» of Gandikota et al. (arXiv:2410.02760, section 5): low is fluent. A loop is fluent too, so distinct trigrams stand beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...base.errors import NumericsError
from ..pools import pool_texts
from .texts import cut_text

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ..host import Host

PROMPT_TOKENS, NEW_TOKENS = 8, 48


@dataclass(frozen=True)
class Written:
    """Beginnings and what one state of a host wrote after them."""

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    """Without the beginning; empty where the host ended at once."""
    nll: tuple[float, ...] = ()
    """Nats, of each text that is not empty, behind its beginning, as the reader has it; none before it was read."""
    tokens: tuple[int, ...] = ()
    """The reader's, of each."""
    distinct: tuple[float, ...] = ()
    """Share of each one's trigrams of tokens that are not repeated; (0, 1]."""

    @property
    def perplexity(self) -> float:
        """Exponential of the reader's mean negative log-likelihood a token."""
        return math.exp(sum(self.nll) / sum(self.tokens))


def beginnings(host: "Host", concept: "Concept", split: str, n: int, seed: int = 0) -> tuple[str, ...]:
    """The first tokens of at most `n` of the concept's texts; none where it has no texts in the split."""
    found = (cut_text(host, t, PROMPT_TOKENS).rstrip() for t in pool_texts(concept, "target", split, n, seed))
    return tuple(t for t in found if t)


def write(host: "Host", prompts: Sequence[str], seed: int = 0) -> Written:
    """What the host, as it stands, writes after each, sampled at temperature 1 from its 50 likeliest tokens; the i-th draws from seed `seed + i`."""
    return Written(tuple(prompts), tuple(host.generate(prompts, seed, NEW_TOKENS)))


def read(reader: "Host", written: Written) -> Written:
    """The same with what the reader makes of it.

    Raises:
        NumericsError: A likelihood that is not finite.
    """
    kept = [(p, t) for p, t in zip(written.prompts, written.texts, strict=True) if t.strip()]
    if not kept:
        return written
    prompts, texts = ([k[n] for k in kept] for n in (0, 1))
    logprobs = reader.token_logprobs(prompts, texts)
    nll = tuple(-float(s.double().sum()) for s in logprobs)
    if not all(math.isfinite(x) for x in nll):
        raise NumericsError(f"{reader.name}: the likelihood of what was written is not finite")
    ids = reader.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return replace(written, nll=nll, tokens=tuple(len(s) for s in logprobs), distinct=tuple(distinct(row) for row in ids))


def distinct(ids: Sequence[int], n: int = 3) -> float:
    """Share of the n-grams that differ from all before them; 1 where there is at most one."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
