"""What adding a little somewhere would do to many items at once, to first order, from one backward pass.

Read at `layers.N.mlp_out`: H is what enters the down-projection (`mlp_hidden`), G the gradient at its output. A change
`Delta W_out = q d^T` of the value vectors adds `(H q) d` at every token, so item j moves by `sum_t (H_t . q)(G_t . d)`.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import MatchedNothing
from ..base.running import progress
from .evaluation.scoring import TEMPLATES
from .hooks import attach
from .logprobs import ScoredRow, batched, forward_inputs, scored_rows

if TYPE_CHECKING:
    from ..deactivate.concept import Question
    from .host import Host

BATCH_TOKENS = 1024
TOKENS = 1024
"""Tokens whose effects on all features exist at the same time."""


@dataclass(frozen=True, eq=False)
class Taps:
    """Hidden activations and gradients at the tokens of some items."""

    hidden: dict[int, Float[Tensor, "t m"]]
    """Layer -> H."""
    gradient: dict[int, Float[Tensor, "t d"]]
    """Layer -> G, of the token's own item."""
    item: Int[Tensor, " t"]
    """Which item a token belongs to."""
    n: int
    """Items."""
    value: Float[Tensor, " n"]
    """The figure of each item, of the host as it stands."""

    def effects(self, layer: int, Q: Float[Tensor, "m p"], D: Float[Tensor, "p d"]) -> Float[Tensor, "n p"]:
        """First-order change of each item when `Delta W_out = Q[:, f] D[f]`, for each f alone."""
        out = torch.zeros(self.n, Q.shape[1], dtype=Q.dtype, device=Q.device)
        for h, g, i in zip(self.hidden[layer].split(TOKENS), self.gradient[layer].split(TOKENS), self.item.split(TOKENS), strict=True):
            out.index_add_(0, i, (h.to(Q) @ Q) * (g.to(Q) @ D.T))
        return out

    def second_moment(self, layer: int) -> Float[Tensor, "m m"]:
        """Mean of `h h^T` over the tokens."""
        h = self.hidden[layer].float()
        return h.T @ h / len(h)


def question_taps(host: "Host", layers: Sequence[int], questions: "Sequence[Question]", form: str) -> Taps:
    """Items are questions, their figure the margin as `score_questions` has it.

    Raises:
        MatchedNothing: No questions.
    """
    if not questions:
        raise MatchedNothing("no questions to take gradients of: add some to this split of the concept file")
    prompts, continuations, weights = [], [], []
    for q in questions:
        prompts += [TEMPLATES[form].format(q=q.q.strip())] * len(q.options)
        continuations += [f" {o.strip()}" for o in q.options]
        weights += [1.0 if o == q.answer else -1.0 / (len(q.options) - 1) for o in q.options]
    owner = {p: i for i, p in enumerate(dict.fromkeys(prompts))}

    def margins(hidden: Tensor, batch: list[ScoredRow]) -> Tensor:
        reads = [(b, *read) for b, row in enumerate(batch) for read in row.reads]
        at = torch.tensor([(b, place) for b, _, places, _ in reads for place in places], device=hidden.device)
        wanted = torch.tensor([t for *_, targets in reads for t in targets], device=hidden.device)
        share = torch.tensor([weights[i] / len(targets) for _, i, _, targets in reads for _ in targets], device=hidden.device)
        logits = host.head(hidden[at[:, 0], at[:, 1]]).float()
        parts = share * (logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1))
        return parts.new_zeros(len(batch)).index_add(0, at[:, 0], parts)

    rows = scored_rows(host, prompts, continuations)
    return _tapped(host, layers, rows, lambda row: owner[row.prompt], len(owner), margins)


def text_taps(host: "Host", layers: Sequence[int], texts: Sequence[str], seed: int = 0) -> Taps:
    """Items are texts, their figure the log-likelihood of tokens drawn from the host, summed with random signs.

    With labels drawn from the model the mean square of an item's change is, a token, twice the Kullback-Leibler
    divergence that the change causes, to second order (the Fisher form); random signs make tokens of one text independent.

    Raises:
        MatchedNothing: No texts.
    """
    if not texts:
        raise MatchedNothing("no texts to take gradients of")
    rng = torch.Generator().manual_seed(seed)
    ids = [row for row in host.token_ids(list(texts)) if row]
    rows = [ScoredRow(str(i), row, [(i, list(range(len(row))), row)]) for i, row in enumerate(ids)]

    def signed(hidden: Tensor, batch: list[ScoredRow]) -> Tensor:
        kept = torch.cat([hidden[b, : len(row.ids)] for b, row in enumerate(batch)])
        of = torch.cat([torch.full((len(row.ids),), b, device=kept.device) for b, row in enumerate(batch)])
        logprobs = host.head(kept).float().log_softmax(-1)
        drawn = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=rng).to(kept.device)
        signs = torch.randint(0, 2, (len(kept),), generator=rng).to(kept.device) * 2 - 1
        return logprobs.new_zeros(len(batch)).index_add(0, of, signs * logprobs.gather(1, drawn)[:, 0])

    return _tapped(host, layers, rows, lambda row: row.reads[0][0], len(rows), signed)


def _tapped(
    host: "Host",
    layers: Sequence[int],
    rows: list[ScoredRow],
    item: Callable[[ScoredRow], int],
    n: int,
    figure: Callable[[Tensor, list[ScoredRow]], Tensor],
) -> Taps:
    """`item` says whose a row is, `figure` the figure of each row of a batch: an item's is the sum over its rows."""
    hidden: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    gradient: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    items: list[Tensor] = []
    value = torch.zeros(n)
    for batch in progress(list(batched(rows, BATCH_TOKENS)), desc="gradients", unit="batch", inner=True):
        inputs, keep = forward_inputs(host, batch)
        owners = torch.tensor([item(row) for row in batch], device=keep.device)
        items.append(owners[:, None].expand_as(keep)[keep])
        figures, read = _pass(host, layers, batch, inputs, figure)
        value.index_add_(0, owners.cpu(), figures.cpu())
        for layer, (h, g) in read.items():
            hidden[layer].append(h[keep])
            gradient[layer].append(g[keep])
    H, G = ({x: torch.cat(parts) for x, parts in found.items()} for found in (hidden, gradient))
    return Taps(H, G, torch.cat(items), n, value)


def _pass(
    host: "Host",
    layers: Sequence[int],
    batch: list[ScoredRow],
    inputs: dict[str, Tensor],
    figure: Callable[[Tensor, list[ScoredRow]], Tensor],
) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """One forward and backward pass: the rows' figures, and by layer H and G. The host's parameters get no gradient."""
    seen: dict[int, Tensor] = {}
    probes: dict[int, Tensor] = {}

    def probed(layer: int, x: Tensor) -> Tensor:
        probes[layer] = torch.zeros_like(x, requires_grad=True)
        return x + probes[layer]

    def see(layer: int, x: Tensor) -> None:
        seen[layer] = x.detach()

    with ExitStack() as undo, torch.enable_grad():
        wanted = [p for p in host.model.parameters() if p.requires_grad]
        for p in wanted:
            undo.callback(p.requires_grad_, True)
            p.requires_grad_(False)
        for layer in layers:
            undo.callback(attach(host.resolve(f"layers.{layer}.mlp_hidden"), lambda x, n=layer: see(n, x)).remove)
            undo.callback(attach(host.resolve(f"layers.{layer}.mlp_out"), lambda x, n=layer: probed(n, x)).remove)
        out = host.base(**inputs, use_cache=False)[0]
        figures = figure(out, batch)
        grads = torch.autograd.grad(figures.sum(), [probes[layer] for layer in layers])
    return figures.detach(), {layer: (seen[layer], g) for layer, g in zip(layers, grads, strict=True)}
