"""How well a host predicts running text.

Perplexity a token and bits a byte, on neutral, concept and continuation text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...base.errors import MatchedNothing, NumericsError

if TYPE_CHECKING:
    from ..host import Host


@dataclass(frozen=True)
class TextFigures:
    """Summed negative log-likelihood of each text, its scored tokens and its bytes."""

    nll: tuple[float, ...]
    """Nats."""
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-likelihood a token."""
        return math.exp(sum(self.nll) / sum(self.tokens))

    @property
    def bits_per_byte(self) -> float:
        """Negative log-likelihood in bits over UTF-8 bytes: comparable between tokenizers."""
        return sum(self.nll) / math.log(2) / sum(self.bytes)


def text_figures(host: "Host", texts: Sequence[str], max_tokens: int = 128) -> TextFigures:
    """Predicts every token of each text's first `max_tokens`.

    The first one is predicted only where the tokenizer puts a BOS before it.

    Bytes of an unpredicted first token are not counted.

    Raises:
        MatchedNothing: No text with a predicted token.
        NumericsError: A likelihood that is not finite.
    """
    cut = [c for c in (cut_text(host, t, max_tokens) for t in texts) if c]
    rows = host.token_ids(cut) if cut else []
    kept = [t for t, row in zip(cut, rows, strict=True) if len(row) >= 2]
    if not kept:
        raise MatchedNothing("no text with at least two tokens to predict")
    logprobs = host.token_logprobs([""] * len(kept), kept)
    nll, tokens, sizes = [], [], []
    for text, scores in zip(kept, logprobs, strict=True):
        total = -float(scores.double().sum())
        if not math.isfinite(total):
            raise NumericsError(f"{host.name}: the likelihood of {text[:40]!r} is not finite")
        plain = host.tokenizer(text, add_special_tokens=False)["input_ids"]
        unpredicted = len(plain) - len(scores)
        head = str(host.tokenizer.decode(plain[:unpredicted])) if unpredicted > 0 else ""
        nll.append(total)
        tokens.append(len(scores))
        sizes.append(max(1, len(text.encode()) - len(head.encode())))
    return TextFigures(tuple(nll), tuple(tokens), tuple(sizes))


def cut_text(host: "Host", text: str, max_tokens: int) -> str:
    """The part of `text` that its first `max_tokens` tokens cover."""
    spans = host.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text if len(spans) <= max_tokens else text[: spans[max_tokens - 1][1]]


def continuation_texts(host: "Host", texts: Sequence[str], prompt_tokens: int = 12, new_tokens: int = 32) -> list[str]:
    """Beginnings of `texts` with what the host itself writes after them, greedily.

    Made by the unedited host, then scored on both.

    Raises:
        MatchedNothing: No text to begin with.
    """
    prompts = [p for p in (cut_text(host, t, prompt_tokens).rstrip() for t in texts) if p]
    if not prompts:
        raise MatchedNothing("no texts whose beginnings could be continued")
    written = host.generate(prompts, 0, new_tokens, greedy=True)
    return [p + w for p, w in zip(prompts, written, strict=True)]
