"""Reading answers out of hidden states (L5): what every layer holds at the end of a prompt, and the logit lens on it.

Source of the lens: interpreting GPT: the logit lens (nostalgebraist, 2020): final norm and unembedding on the residual stream.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.errors import InputError
from ...base.running import progress
from ...deactivate.concept import Question
from .answering import answers, outcome, prompt_of
from .config import LogitLensConfig
from .protocol import AttackResult, Cost, Level

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ..host import Host

BATCH = 32


def chosen_layers(host: "Host", layers: Sequence[int]) -> list[int]:
    """The layers asked for; all where none is.

    Raises:
        InputError: One that the host has not.
    """
    bad = [i for i in layers if not 0 <= i < host.n_layers]
    if bad:
        raise InputError(f"layers: {host.name} has layers 0 to {host.n_layers - 1}; {bad} found")
    return list(layers) or list(range(host.n_layers))


@torch.no_grad()
def last_states(host: "Host", prompts: Sequence[str], layers: Sequence[int]) -> Float[Tensor, "n l d"]:
    """What stands behind each layer at the last token of each prompt, float32 on the CPU; edits in force are seen."""
    points = [f"layers.{i}.resid_post" for i in layers]
    out = []
    for start in progress(range(0, len(prompts), BATCH), desc="reading prompts", unit="batch", inner=True):
        ids, mask = host.encode_texts(prompts[start : start + BATCH])
        seen = host.activations(ids, mask, points)
        rows, last = torch.arange(len(ids), device=ids.device), mask.sum(1) - 1
        out.append(torch.stack([seen[p][rows, last] for p in points], 1).float().cpu())
    return torch.cat(out)


def first_tokens(host: "Host", prompt: str, options: Sequence[str]) -> list[int] | None:
    """The token that tells each option after the prompt; None where two options begin with the same one."""
    texts = [f"{prompt} {o.strip()}" for o in options]
    alone, *whole = host.token_ids([prompt, *texts])
    found = []
    for row in whole:
        same = next((i for i, (a, b) in enumerate(zip(alone, row, strict=False)) if a != b), min(len(alone), len(row)))
        if same != len(alone) or same == len(row):  # a merge across the border: what follows the prompt is no token of its own
            return None
        found.append(row[same])
    return found if len(set(found)) == len(found) else None


@torch.no_grad()
def lens(host: "Host", states: Float[Tensor, "n l d"], tokens: Sequence[int]) -> Float[Tensor, "n l m"]:
    """Logits of `tokens` that the final norm and the unembedding read from hidden states."""
    x = states.to(host.device, host.dtype)
    return host.head(host.final_norm()(x))[..., list(tokens)].float().cpu()


@dataclass(frozen=True)
class LogitLens:
    """The lens behind every layer. The attacker reads where train questions are read best; without any, where these are: an upper bound."""

    config: LogitLensConfig = field(default_factory=LogitLensConfig)

    @property
    def name(self) -> str:
        """`logit-lens`."""
        return "logit-lens"

    @property
    def level(self) -> Level:
        """L5: the attacker reads hidden states."""
        return "L5"

    def run(self, host: "Host", edits: "Sequence[Edit]", concept: "Concept", split: str = "test") -> AttackResult:
        """See `Attack.run`; questions two of whose options begin with the same token are not tried.

        Raises:
            MatchedNothing: No question can be read.
        """
        from ..evaluation.suite import applied

        begun = time.perf_counter()
        questions, known = concept.require("questions", split), concept.questions.get("train", ())
        layers = chosen_layers(host, self.config.layers)
        with applied(host, edits):
            before = answers(host, questions, concept.form)
            read, trained = (_read(host, pool, concept.form, layers) for pool in (questions, known))
        picked_on = "train questions" if any(r is not None for r in trained) else "the questions attacked: an upper bound"
        rates = _rates(trained if picked_on == "train questions" else read, len(layers))
        best = max(range(len(layers)), key=lambda i: rates[i])
        hits = [None if r is None else r[best] for r in read]
        found = {"layer": layers[best], "layer picked on": picked_on, "layers": layers, "by layer": _rates(read, len(layers))}
        return outcome(self.name, self.level, before, {f"layer {layers[best]}": hits}, Cost(seconds=time.perf_counter() - begun), found)


def _read(host: "Host", questions: Sequence[Question], form: str, layers: Sequence[int]) -> list[list[bool] | None]:
    """By question and layer, whether the right option's first token is the best alone."""
    prompts = [prompt_of(q, form) for q in questions]
    tokens = [first_tokens(host, p, q.options) for p, q in zip(prompts, questions, strict=True)]
    states = last_states(host, prompts, layers) if prompts else torch.empty(0, len(layers), 0)
    out: list[list[bool] | None] = []
    for q, t, x in zip(questions, tokens, states, strict=True):
        if t is None:
            out.append(None)
            continue
        logits = lens(host, x[None], t)[0]  # [l m]
        own = logits[:, q.options.index(q.answer)]
        out.append([int((row >= score).sum()) == 1 for row, score in zip(logits, own, strict=True)])
    return out


def _rates(read: Sequence[list[bool] | None], n_layers: int) -> list[float]:
    known = [r for r in read if r is not None]
    return [sum(r[i] for r in known) / max(1, len(known)) for i in range(n_layers)]
