"""What gradient attacks and beams minimise: the options' log-probabilities behind a suffix, and the score of a gate.

A prompt is `head ⊕ suffix ⊕ tail`, in token embeddings: for questions the suffix follows the question and `Answer:` comes behind
it, for beginnings of sentences it stands before them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...base.errors import InputError, MatchedNothing
from ...deactivate.concept import Question
from ...deactivate.gate import Gate
from ...deactivate.layer import feature_acts
from ..hooks import captured
from ..parameters import weight_of
from ..tokens import special_table
from .config import SearchConfig

if TYPE_CHECKING:
    from ...deactivate.edit import Edit
    from ..host import Host

BATCH_TOKENS = 4096
_PARTS = {"question": ("Question: {q}", "\nAnswer:"), "cloze": ("", " {q}")}


@dataclass(frozen=True)
class Slot:
    """A question with a place for a suffix, in text and in tokens."""

    question: Question
    head_text: str
    tail_text: str
    head: list[int]
    tail: list[int]
    options: list[list[int]]
    right: int

    def prompt(self, suffix: str) -> str:
        """The prompt with a suffix in its place."""
        return f"{self.head_text}{suffix}{self.tail_text}"


def slot_of(host: "Host", question: Question, form: str) -> Slot:
    """The question's slot.

    Raises:
        InputError: An unknown form.
    """
    if form not in _PARTS:
        raise InputError(f"form must be question or cloze, {form!r} found")
    head, tail = (t.format(q=question.q.strip()) for t in _PARTS[form])
    first = host.token_ids([head])[0] if head else bare_start(host)
    ids = [own_ids(host, t) for t in (tail, *(f" {o.strip()}" for o in question.options))]
    return Slot(question, head, tail, first, ids[0], ids[1:], question.options.index(question.answer))


def bare_start(host: "Host") -> list[int]:
    """What the tokenizer puts before every text: BOS, or nothing."""
    special = special_table(host.tokenizer, host.unembedding().shape[1]).tolist()
    return [i for i in host.token_ids(["a"])[0][:1] if special[i]]


def own_ids(host: "Host", text: str) -> list[int]:
    """Ids of a text without specials."""
    return list(host.tokenizer(text, add_special_tokens=False)["input_ids"])


class Objective:
    """Loss of suffixes at one question, on the host as it stands; `gates` are pushed below their thresholds.

    L = -mean log p(answer), or that plus the log-sum-exp of the other options' means (`margin`);
    plus lam · Σ_g relu(score_g - threshold_g + dead band + margin).
    """

    def __init__(self, host: "Host", slot: Slot, config: SearchConfig, gates: Sequence[Gate] = ()) -> None:
        self.host, self.slot, self.config, self.gates = host, slot, config, gates
        self.embedding: Any = host.model.get_input_embeddings()
        self.queries = 0
        self.special = special_table(host.tokenizer, host.unembedding().shape[1]).tolist() if gates else []
        self.head, self.tail = self.embed(slot.head), self.embed(slot.tail)
        width = max(map(len, slot.options))
        self.targets = torch.tensor([o + [o[-1]] * (width - len(o)) for o in slot.options], device=host.device)
        self.counts = torch.tensor([len(o) for o in slot.options], device=host.device)

    @torch.no_grad()
    def embed(self, ids: Sequence[int] | Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Embeddings of tokens, as the model reads them, cut off from the parameters."""
        return self.embedding(torch.as_tensor(ids, dtype=torch.long, device=self.host.device))

    @property
    def matrix(self) -> Float[Tensor, "V d"]:
        """The embedding matrix. Some families scale its rows: a factor above 0, which no ranking sees."""
        return weight_of(self.embedding).detach()

    def prompts(self, suffix: Float[Tensor, "c k d"]) -> Float[Tensor, "c t d"]:
        """Whole prompts."""
        c = len(suffix)
        return torch.cat([self.head.expand(c, -1, -1), suffix, self.tail.expand(c, -1, -1)], 1)

    def means(self, suffix: Float[Tensor, "c k d"], which: Sequence[int] | None = None) -> Float[Tensor, "c m"]:
        """Mean log-probability of each option's tokens (of those in `which`) after each prompt."""
        chosen = list(range(len(self.targets))) if which is None else list(which)
        targets, counts = self.targets[chosen], self.counts[chosen]
        before = self.prompts(suffix)
        (c, t, _), (m, width) = before.shape, targets.shape
        rows = before.repeat_interleave(m, 0)  # [c*m t d]
        whole = torch.cat([rows, self.embed(targets[:, :-1]).repeat(c, 1, 1)], 1)
        mask = torch.ones(whole.shape[:2], dtype=torch.long, device=whole.device)
        hidden = self.host.base(inputs_embeds=whole, attention_mask=mask, use_cache=False)[0][:, t - 1 :]
        logp = self.host.head(hidden).float().log_softmax(-1).gather(-1, targets.repeat(c, 1)[..., None])[..., 0]
        kept = torch.arange(width, device=whole.device) < counts.repeat(c)[:, None]
        return ((logp * kept).sum(1) / kept.sum(1)).reshape(c, m)

    def loss(self, suffix: Float[Tensor, "c k d"]) -> Float[Tensor, " c"]:
        """Loss of each suffix; in pieces where that is many tokens and nobody wants gradients."""
        if torch.is_grad_enabled() and suffix.requires_grad:
            return self._loss(suffix)
        m = len(self.targets) if self.config.loss == "margin" else 1
        size = max(1, BATCH_TOKENS // (m * (self.head.shape[0] + suffix.shape[1] + self.tail.shape[0])))
        with torch.no_grad():
            return torch.cat([self._loss(part) for part in suffix.split(size)])

    def _loss(self, suffix: Tensor) -> Tensor:
        self.queries += len(suffix)
        right = self.slot.right
        if self.config.loss == "target":
            loss = -self.means(suffix, [right])[:, 0]
        else:
            means = self.means(suffix)
            others = [i for i in range(means.shape[1]) if i != right]
            loss = means[:, others].logsumexp(1) - means[:, right]
        for gate in self.gates:
            over = self.gate_score(gate, suffix) - gate.bound + self.config.margin
            loss = loss + self.config.lam * over.clamp_min(0).to(loss)
        return loss

    def gate_score(self, gate: Gate, suffix: Float[Tensor, "c k d"]) -> Float[Tensor, " c"]:
        """The gate's score of each prompt, differentiable where features fire: what can be lowered can be seen in the gradient.

        The host must stand without edits.
        """
        x = self.prompts(suffix)
        keep = self._kept(suffix.shape[1])
        sites = [self.host.resolve(s.hook_point) for s in gate.sources]
        mask = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
        with captured(sites, stop=True) as seen:
            self.host.base(inputs_embeds=x, attention_mask=mask, use_cache=False)
        columns = []
        for source in gate.sources:
            h = seen[source.hook_point][:, keep]
            acts = feature_acts(source.sae, h.reshape(-1, h.shape[-1]), source.features).double().cpu().reshape(*h.shape[:2], -1)
            columns.append(acts.mean(1) if gate.reduce == "mean" else acts.amax(1))
        return gate.standardised(torch.cat(columns, 1))

    def _kept(self, k: int) -> Tensor:
        """Positions that gates read; a suffix counts wherever it is not the sink."""
        ids = self.slot.head + [-1] * k + self.slot.tail
        special = self.special or special_table(self.host.tokenizer, self.host.unembedding().shape[1]).tolist()
        kept = [i for i, t in enumerate(ids) if (t < 0 or not special[t]) and not (self.host.sink_is_text and i == 0)]
        return torch.tensor(kept, device=self.host.device)


def pieces(host: "Host") -> list[str]:
    """Every token as text; empty for specials and for what is no printable ASCII."""
    size = host.unembedding().shape[1]
    special = special_table(host.tokenizer, size).tolist()[:size]
    texts = host.tokenizer.batch_decode([[i] for i in range(len(special))])
    plain = [t.strip() for t in texts]
    return ["" if s or not p.isascii() or not p.isprintable() else p.casefold() for p, s in zip(plain, special, strict=True)]


def allowed_tokens(host: "Host", slot: Slot, words: Sequence[str]) -> Int[Tensor, " n"]:
    """Tokens that a suffix may be made of: those that `pieces` shows in `words`, none that reads as one of any option's, no part of the answer and nothing with it.

    Raises:
        MatchedNothing: There is none.
    """
    answer, options = slot.question.answer.casefold().strip(), {words[i] for o in slot.options for i in o}
    held = [i for i, w in enumerate(words) if w and w not in options and not (len(w) > 2 and w in answer) and answer not in w]
    if not held:
        raise MatchedNothing(f"no token is left for a suffix at {slot.question.q!r}")
    return torch.tensor(held, device=host.device)


def gates_of(edits: "Sequence[Edit]", config: SearchConfig) -> list[Gate]:
    """The gates that an aware attacker pushes against.

    Raises:
        InputError: A gate that is no weighted sum of features, or edits with and without gates together.
    """
    gated = [e for e in edits if e.gate is not None]
    if not gated or config.gate == "oblivious":
        return []
    if len(gated) != len(edits):
        raise InputError("a gate-aware attack needs every edit behind a gate, or none: set gate=oblivious")
    found = [e.gate for e in gated]
    if other := [type(g).__name__ for g in found if not isinstance(g, Gate)]:
        raise InputError(f"a gate-aware attack reads gates of weighted features, {other[0]} found: set gate=oblivious")
    return [g for g in found if isinstance(g, Gate)]


@contextmanager
def searched(host: "Host", edits: "Sequence[Edit]", gates: Sequence[Gate]) -> Iterator[None]:
    """The host on which a suffix is searched for: unedited where the gates are to be closed, else with all edits always in force."""
    from ..evaluation.suite import applied

    with applied(host, [] if gates else [replace(e, gate=None) for e in edits]):
        yield
