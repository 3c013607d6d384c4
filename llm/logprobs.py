"""Scores of continuations, many at a time: the primitive under every figure of `llm.evaluation`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base.errors import InputError, NumericsError

if TYPE_CHECKING:
    from .host import Host

LOGIT_ROWS = 1024
"""Positions whose logits exist at the same time."""


@dataclass
class ScoredRow:
    """One row of a forward pass: ids, and what is read from it (index of the result, first position, target ids)."""

    prompt: str
    ids: list[int]
    reads: list[tuple[int, int, list[int]]]


@torch.no_grad()
def token_logprobs(host: "Host", prompts: Sequence[str], continuations: Sequence[str], *, batch_tokens: int = 4096) -> list[Tensor]:
    """Log p(token | prompt, earlier tokens) for the tokens of each continuation, float32 on the CPU.

    Prompt and continuation are encoded together and the continuation's tokens are those from the first on which differs
    from the prompt encoded alone, so a merge across the border is scored, not lost. Options of one prompt that need the
    same forward pass share it. Rows of like length run together (at most `batch_tokens` tokens, padding included);
    logits are computed only where a token is scored.

    Raises:
        InputError: Lists of different length, or a continuation without tokens.
        NumericsError: A score that is not a number.
    """
    if isinstance(prompts, str) or isinstance(continuations, str) or len(prompts) != len(continuations):
        raise InputError("prompts and continuations must be two lists of the same length")
    results: list[Tensor] = [torch.empty(0)] * len(prompts)
    for batch in batched(scored_rows(host, prompts, continuations), batch_tokens):
        _score(host, batch, results)
    return results


def scored_rows(host: "Host", prompts: Sequence[str], continuations: Sequence[str]) -> list[ScoredRow]:
    """Rows to run; one that another row of the same prompt begins with is read off that (the model is causal)."""
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
        rows.append(ScoredRow(prompt, whole[:-1], [(i, start - 1, whole[start:])]))
    rows.sort(key=lambda r: (r.prompt, r.ids))
    kept: list[ScoredRow] = []
    for row in rows:
        if kept and kept[-1].prompt == row.prompt and row.ids[: len(kept[-1].ids)] == kept[-1].ids:
            kept[-1] = ScoredRow(row.prompt, row.ids, kept[-1].reads + row.reads)
        else:
            kept.append(row)
    return kept


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
    ids, mask = host.pad([row.ids for row in batch])
    with host.rows([row.prompt for row in batch]):
        hidden = host.base(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    reads = [(b, *read) for b, row in enumerate(batch) for read in row.reads]
    at = torch.tensor([(b, start + n) for b, _, start, targets in reads for n in range(len(targets))], device=host.device)
    wanted = torch.tensor([t for *_, targets in reads for t in targets], device=host.device)
    scores = []
    for places, tokens in zip(at.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True):
        logits = host.head(hidden[places[:, 0], places[:, 1]]).float()
        scores.append(logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1))
    for (_, i, _, _), part in zip(reads, torch.cat(scores).cpu().split([len(r[3]) for r in reads]), strict=True):
        if torch.isnan(part).any():
            raise NumericsError(f"{host.name}: the score of continuation {i} is not a number")
        results[i] = part.clone()
