"""Scores of continuations, many at a time: the primitive under every figure of `llm.evaluation`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base.errors import InputError, NumericsError
from ..base.running import progress

if TYPE_CHECKING:
    from .host import Host

LOGIT_ROWS = 1024
"""Positions whose logits exist at the same time."""


@dataclass
class ScoredRow:
    """One row of a forward pass. Where continuations part, it is a tree: each token sees what leads to it and nothing else."""

    prompt: str
    ids: list[int]
    reads: list[tuple[int, list[int], list[int]]]
    """Index of the result, positions that predict, target ids."""
    parents: list[int] | None = None
    """Position of the token before each one, -1 for the first; None: its left neighbour."""


@torch.no_grad()
def token_logprobs(host: "Host", prompts: Sequence[str], continuations: Sequence[str], *, batch_tokens: int = 4096) -> list[Tensor]:
    """Log p(token | prompt, earlier tokens) for the tokens of each continuation, float32 on the CPU.

    Prompt and continuation are encoded together and the continuation's tokens are those from the first on which differs
    from the prompt encoded alone, so a merge across the border is scored, not lost. What options of one prompt have in
    common is computed once. Rows of like length run together (at most `batch_tokens` tokens, padding included);
    logits are computed only where a token is scored.

    Raises:
        InputError: Lists of different length, or a continuation without tokens.
        NumericsError: A score that is not a number.
    """
    if isinstance(prompts, str) or isinstance(continuations, str) or len(prompts) != len(continuations):
        raise InputError("prompts and continuations must be two lists of the same length")
    results: list[Tensor] = [torch.empty(0)] * len(prompts)
    batches = list(batched(scored_rows(host, prompts, continuations), batch_tokens))
    for batch in progress(batches, desc="scoring", unit="batch", enabled=len(batches) > 2, inner=True):
        _score(host, batch, results)
    return results


def scored_rows(host: "Host", prompts: Sequence[str], continuations: Sequence[str]) -> list[ScoredRow]:
    """Rows to run: one a prompt, a tree where its continuations part; the empty prompt has one for each continuation.

    Trees need an attention mask of the caller's and positions below the sliding window; elsewhere each continuation that no
    other one begins with has a row of its own.
    """
    if not prompts:
        return []
    distinct = list(dict.fromkeys(prompts))
    alone = dict(zip(distinct, host.token_ids(distinct), strict=True))
    together = host.token_ids([p + c for p, c in zip(prompts, continuations, strict=True)])
    rows: list[ScoredRow] = []
    for i, (prompt, whole) in enumerate(zip(prompts, together, strict=True)):
        start = next(
            (n for n, (a, b) in enumerate(zip(alone[prompt], whole, strict=False)) if a != b),
            min(len(alone[prompt]), len(whole)),
        )
        if start == len(whole) or not continuations[i]:
            raise InputError(f"continuation {i} ({continuations[i]!r}) has no tokens of its own after its prompt")
        start = max(start, 1)
        rows.append(ScoredRow(prompt, whole[:-1], [(i, list(range(start - 1, len(whole) - 1)), whole[start:])]))
    rows.sort(key=lambda r: (r.prompt, r.ids))
    kept: list[ScoredRow] = []
    for row in rows:
        if kept and kept[-1].prompt == row.prompt and row.ids[: len(kept[-1].ids)] == kept[-1].ids:
            kept[-1] = ScoredRow(row.prompt, row.ids, kept[-1].reads + row.reads)
        else:
            kept.append(row)
    groups = [list(group) for _, group in groupby(kept, key=lambda r: r.prompt)]
    window = getattr(host.model.config, "sliding_window", None) or sys.maxsize
    own_mask = host.model.config._attn_implementation in ("eager", "sdpa")
    return [r for g in groups for r in ([_tree(g)] if own_mask and g[0].prompt and max(len(x.ids) for x in g) < window else g)]


def _tree(rows: list[ScoredRow]) -> ScoredRow:
    """Rows of one prompt as one row, each beginning that they share there once."""
    if len(rows) == 1:
        return rows[0]
    at: dict[tuple[int, int], int] = {}
    reads: list[tuple[int, list[int], list[int]]] = []
    for row in rows:
        path = [-1]
        for token in row.ids:
            path.append(at.setdefault((path[-1], token), len(at)))
        reads += [(i, [path[1 + p] for p in places], targets) for i, places, targets in row.reads]
    return ScoredRow(rows[0].prompt, [token for _, token in at], reads, [parent for parent, _ in at])


def forward_inputs(host: "Host", batch: Sequence[ScoredRow]) -> tuple[dict[str, Tensor], Tensor]:
    """What the backbone is called with, and which tokens are no padding `[b t]` (bool)."""
    ids, mask = host.pad([row.ids for row in batch])
    if all(row.parents is None for row in batch):
        return {"input_ids": ids, "attention_mask": mask}, mask.bool()
    b, width = ids.shape
    sees = torch.eye(width, dtype=torch.bool).repeat(b, 1, 1)  # padding sees itself: a softmax over nothing is no number
    for row, seen in zip(batch, sees, strict=True):
        for i, parent in enumerate(row.parents or range(-1, len(row.ids) - 1)):
            if parent >= 0:
                seen[i] |= seen[parent]
    positions = sees.sum(-1) - 1
    least = torch.finfo(host.dtype).min
    bias = torch.zeros(b, 1, width, width, dtype=host.dtype).masked_fill(~sees[:, None], least)
    return {"input_ids": ids, "attention_mask": bias.to(ids.device), "position_ids": positions.to(ids.device)}, mask.bool()


def batched(rows: list[ScoredRow], batch_tokens: int) -> Iterator[list[ScoredRow]]:
    """Rows of like length together, at most `batch_tokens` tokens a batch, padding included."""
    batch: list[ScoredRow] = []
    for row in sorted(rows, key=lambda r: len(r.ids)):
        if batch and (len(batch) + 1) * len(row.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _score(host: "Host", batch: list[ScoredRow], results: list[Tensor]) -> None:
    inputs, _ = forward_inputs(host, batch)
    with host.rows([row.prompt for row in batch]):
        hidden = host.base(**inputs, use_cache=False)[0]
    reads = [(b, *read) for b, row in enumerate(batch) for read in row.reads]
    at = torch.tensor([(b, place) for b, _, places, _ in reads for place in places], device=host.device)
    wanted = torch.tensor([t for *_, targets in reads for t in targets], device=host.device)
    scores = []
    for places, tokens in zip(at.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True):
        logits = host.head(hidden[places[:, 0], places[:, 1]]).float()
        scores.append(logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1))
    for (_, i, _, _), part in zip(reads, torch.cat(scores).cpu().split([len(r[3]) for r in reads]), strict=True):
        if torch.isnan(part).any():
            raise NumericsError(f"{host.name}: the score of continuation {i} is not a number")
        results[i] = part.clone()
