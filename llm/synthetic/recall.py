"""How many facts a model says right when it is asked in templates that it never saw with the attribute."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...base.running import progress
from ...deactivate.evaluation.statistics import wilson
from ..evaluation.scoring import TEMPLATES
from .language import translate
from .templates import FORMS, OPENINGS, Form, Split, ask, frames
from .world import Fact, World, packaged_world

if TYPE_CHECKING:
    from ..host import Host

BATCH = 128


@dataclass(frozen=True)
class Asked:
    """A prompt and what has to follow it."""

    prompt: str
    answer: str
    fact: Fact
    form: Form
    second: bool
    """Whether it is asked in the second language."""


def asked(
    facts: Sequence[Fact], split: Split = "test", forms: Sequence[Form] = FORMS, languages: Sequence[bool] = (False, True)
) -> Iterator[Asked]:
    """Each fact in each template of the split, form and language; stories after each fact's own choice of an opening."""
    for i, fact in enumerate(facts):
        for form in forms:
            for frame in frames(form, fact.kind, split):
                q, value = ask(form, fact, frame, opening=OPENINGS[i % len(OPENINGS)]), fact.value
                for second in languages:
                    text, answer = (translate(q), translate(value)) if second else (q, value)
                    yield Asked(TEMPLATES["question" if form == "question" else "cloze"].format(q=text), answer, fact, form, second)


@torch.no_grad()
def said_right(host: "Host", items: Sequence[Asked]) -> list[bool]:
    """Whether the most likely token of all, after each prompt, is the one that the answer begins with."""
    before = host.token_ids([i.prompt for i in items])
    whole = host.token_ids([f"{i.prompt} {i.answer}" for i in items])
    right = [False] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(before[i]))
    for at in progress(range(0, len(order), BATCH), desc="asking", unit="batch", inner=True):
        chosen = order[at : at + BATCH]
        ids, mask = host.pad([before[i] for i in chosen])
        last = mask.sum(1) - 1
        hidden = host.base(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        best = host.head(hidden[torch.arange(len(chosen), device=ids.device), last]).argmax(-1).tolist()
        for i, token in zip(chosen, best, strict=True):
            right[i] = token == whole[i][len(before[i])]
    return right


def recall(host: "Host", *, world: World | None = None, domains: Sequence[str] = (), split: Split = "test") -> dict[str, Any]:
    """Shares of right answers with Wilson intervals: over all, by form and language, and by domain.

    Raises:
        UnknownName: No such domain.
    """
    world = world or packaged_world()
    world.check(*domains)
    facts = [f for f in world.facts if not domains or f.domain in domains]
    items = list(asked(facts, split))
    right = said_right(host, items)

    def share(keep: list[bool]) -> dict[str, float | int]:
        hits = [r for r, k in zip(right, keep, strict=True) if k]
        v = wilson(sum(hits), len(hits))
        return {"recall": v.mean, "low": v.interval[0], "high": v.interval[1], "n": len(hits)}

    named = {f"{form}, {'second' if second else 'first'} language": (form, second) for form in FORMS for second in (False, True)}
    return {
        "split": split,
        "all": share([True] * len(items)),
        "forms": {n: share([(i.form, i.second) == pair for i in items]) for n, pair in named.items()},
        "domains": {d: share([i.fact.domain == d for i in items]) for d in dict.fromkeys(f.domain for f in facts)},
    }
