"""Continuations that leave a concept: a forget text, a sentence that changes the topic, and what the base writes then.

Two further branches, an expert's and a novice's, read their own beginning and what has been written, never the forget text.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from ....base.running import progress
from ...generate import Sampling, choose, eos_ids
from ...tuning.texts import Row
from .math import guided_logits
from .templates import EXPERT, NOVICE, TOPIC_CHANGE

if TYPE_CHECKING:
    from ...host import Host

BATCH = 16
"""Continuations that are written together."""


@dataclass(frozen=True)
class Branches:
    """What the three branches of one continuation begin with, as token ids."""

    plain: tuple[int, ...]
    """Prompt and topic change."""
    expert: tuple[int, ...]
    novice: tuple[int, ...]
    prompt: int
    """Tokens of the prompt in `plain`."""


def branches(host: "Host", prompt: Sequence[int], concept: str, seed: str) -> Branches:
    """The three beginnings for a prompt; templates and topic change by lot."""
    rng = random.Random(seed)
    change = ". " + rng.choice(TOPIC_CHANGE)
    expert, novice = (rng.choice(t).replace("{c}", concept) for t in (EXPERT, NOVICE))
    added = host.tokenizer(change, add_special_tokens=False, verbose=False)["input_ids"]
    up, down = host.token_ids([expert, novice])
    return Branches((*prompt, *added), tuple(up), tuple(down), len(prompt))


@torch.no_grad()
def written(host: "Host", starts: Sequence[Branches], tokens: int, gamma: float, seed: int) -> list[list[int]]:
    """What is written after each beginning, sampled from the whole vocabulary; the i-th draws from seed `seed + i`."""
    found: list[list[int]] = []
    for first in progress(range(0, len(starts), BATCH), desc="writing continuations", unit="batch", inner=True):
        found += _batch(host, starts[first : first + BATCH], tokens, gamma, seed + first)
    return found


def continuation_rows(
    host: "Host", prompts: Sequence[Row], concept: str, tokens: int, gamma: float, seed: int, *, drop_first: bool = False
) -> list[Row]:
    """Prompt, topic change and continuation as rows whose tokens after the prompt count.

    Args:
        host: The base: nothing that is being trained may be on.
        prompts: Forget texts.
        concept: In words, for the templates.
        tokens: Length of a continuation.
        gamma: Strength of the guidance.
        seed: Of everything drawn.
        drop_first: Leave the first token after the prompt out of the count, as the authors' code does.
    """
    starts = [branches(host, p.ids, concept, f"consistency/{seed}/{n}") for n, p in enumerate(prompts)]
    rows = zip(starts, written(host, starts, tokens, gamma, seed), strict=True)
    return [Row((*s.plain, *new), s.prompt + int(drop_first)) for s, new in rows]


def _batch(host: "Host", starts: Sequence[Branches], tokens: int, gamma: float, seed: int) -> list[list[int]]:
    b = len(starts)
    ids, mask = host.pad([getattr(s, branch) for branch in ("plain", "expert", "novice") for s in starts], left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(b)]
    cache = DynamicCache(config=host.model.config)
    ends, done, new = eos_ids(host), [False] * b, [list[int]() for _ in starts]
    for step in range(tokens):
        out = host.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        chosen = choose(_scores(out.logits[:, -1], b, gamma).cpu(), generators, Sampling(top_k=0))
        for i, token in enumerate(chosen.tolist()):
            done[i] = done[i] or token in ends
            if not done[i]:
                new[i].append(token)
        if all(done) or step + 1 == tokens:
            break
        ids = chosen.repeat(3)[:, None].to(host.device)
        mask = torch.cat([mask, mask.new_ones(3 * b, 1)], 1)
        positions = positions[:, -1:] + 1
    return new


def _scores(logits: Tensor, b: int, gamma: float) -> Tensor:
    """Guided scores of the next token; the base's own logits where there is no guidance."""
    plain, expert, novice = logits.split(b)
    return plain.float() if gamma == 0 else guided_logits(plain, expert, novice, gamma)
