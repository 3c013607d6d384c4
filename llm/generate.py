"""Seeded generation with a KV cache; each prompt has its own random numbers, whatever it is batched with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from ..base.errors import InputError, NumericsError
from ..base.running import progress

if TYPE_CHECKING:
    from .host import Host


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    greedy: bool = False
    """Take the most probable token; the rest is then ignored."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_k: int = 50
    """Draw among so many most probable tokens; 0: all."""
    top_p: float = 1.0
    """Draw among the most probable tokens that together reach this probability, at least one."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InputError(f"temperature must be above 0 (use greedy for the most probable token); found {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError(f"top_k must be 0 or more and top_p in (0, 1]; found {self.top_k} and {self.top_p}")


@torch.no_grad()
def generate(host: "Host", prompts: Sequence[str], seed: int, max_new_tokens: int, sampling: Sampling, batch_size: int = 32) -> list[str]:
    """Continuations without special tokens, in the order of `prompts`; a row ends at the model's EOS token.

    The i-th prompt draws its numbers from a generator with seed `seed + i`. Prompts of like length run together,
    left-padded.

    Raises:
        InputError: No prompts, or a number out of range.
    """
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"prompts must be a list of at least one string; found {prompts!r}")
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(f"max_new_tokens and batch_size must be at least 1; found {max_new_tokens} and {batch_size}")
    ids = host.token_ids(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
    texts = [""] * len(prompts)
    batches = range(0, len(order), batch_size)
    for start in progress(batches, desc="writing", unit="batch", enabled=len(batches) > 1, inner=True):
        batch = order[start : start + batch_size]
        with host.rows([prompts[i] for i in batch]):
            new = _continue(host, [ids[i] for i in batch], [seed + i for i in batch], max_new_tokens, sampling)
        for i, row in zip(batch, new, strict=True):
            texts[i] = str(host.tokenizer.decode(row, skip_special_tokens=True))
    return texts


def eos_ids(host: "Host") -> set[int]:
    """Tokens that end a text: the tokenizer's EOS and those of the generation config."""
    config = getattr(host.model, "generation_config", None)
    named = [host.tokenizer.eos_token_id, getattr(config, "eos_token_id", None)]
    return {i for n in named if n is not None for i in (n if isinstance(n, list | tuple) else [n])}


def _continue(host: "Host", rows: list[list[int]], seeds: list[int], steps: int, sampling: Sampling) -> list[list[int]]:
    ids, mask = host.pad(rows, left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    cache = DynamicCache(config=host.model.config)
    ends, done = eos_ids(host), [False] * len(rows)
    new: list[list[int]] = [[] for _ in rows]
    for step in progress(range(steps), desc=f"{len(rows)} texts" if len(rows) > 1 else "text", unit="token", inner=True):
        out = host.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = choose(out.logits[:, -1].float().cpu(), generators, sampling)
        for i, token in enumerate(chosen.tolist()):
            done[i] = done[i] or token in ends
            if not done[i]:
                new[i].append(token)
        if all(done) or step + 1 == steps:
            break
        ids = chosen[:, None].to(host.device)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return new


def choose(logits: Float[Tensor, "b V"], generators: list[torch.Generator], sampling: Sampling) -> Int[Tensor, "b"]:
    """The next token a row: the most probable, or the inverse of the cumulative distribution at a uniform number.

    Raises:
        NumericsError: Logits that are not finite numbers.
    """
    if torch.isnan(logits).any():
        raise NumericsError("generation: the model's logits are not numbers")
    if sampling.greedy:
        return logits.argmax(1)
    k = min(sampling.top_k or logits.shape[1], logits.shape[1])
    values, tokens = logits.topk(k, dim=1)
    p = (values.double() / sampling.temperature).softmax(1)
    p = p * ((p.cumsum(1) - p) < sampling.top_p)
    reach = p.cumsum(1)
    u = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]) * reach[:, -1:]
    place = torch.searchsorted(reach, u, right=True).clamp(max=k - 1)
    return tokens.gather(1, place)[:, 0]
