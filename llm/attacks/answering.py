"""What attacks on questions share: who is right, and what came of it, question by question."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...base.errors import MatchedNothing
from ...deactivate.concept import Question
from ...deactivate.evaluation.statistics import wilson
from ..evaluation.scoring import TEMPLATES, Scores, score_questions
from .protocol import AttackResult, Cost, Level

if TYPE_CHECKING:
    from ..host import Host


def prompt_of(question: Question, form: str) -> str:
    """What stands before « option» where nobody attacks."""
    return TEMPLATES[form].format(q=question.q.strip())


def asked(question: Question, prompt: str) -> Question:
    """The question put as `prompt`, whole."""
    return Question(prompt, question.options, question.answer)


def right(scores: Scores) -> list[bool]:
    """Whether the right option is the best alone: a tie is no answer."""
    return [i.credit == 1.0 for i in scores.items]


def answers(host: "Host", questions: Sequence[Question], form: str) -> list[bool]:
    """Who is right without an attack, the host as it stands."""
    return right(score_questions(host, questions, form))


def answers_to(host: "Host", prompts: Sequence[Question]) -> list[bool]:
    """Who is right where the questions of `prompts` are whole prompts."""
    return right(score_questions(host, prompts, "cloze"))


def outcome(
    name: str,
    level: Level,
    before: Sequence[bool],
    hits: Mapping[str, Sequence[bool | None]],
    cost: Cost,
    found: Mapping[str, Any] | None = None,
) -> AttackResult:
    """The result of an attack that takes, question by question, whichever variant works.

    `before` says who is right without it, `hits` who is under each variant; None: not tried, or cannot be read.

    Raises:
        MatchedNothing: No question was tried.
    """
    best = [_any(h) for h in zip(*hits.values(), strict=True)] if hits else [None] * len(before)
    tried = [(b, h) for b, h in zip(before, best, strict=True) if h is not None]
    if not tried:
        raise MatchedNothing(f"attack {name}: none of the {len(before)} questions could be tried")
    recovered = tuple(None if h is None else h and not b for b, h in zip(before, best, strict=True))
    rates = {n: sum(map(bool, h)) / max(1, sum(x is not None for x in h)) for n, h in hits.items()}
    return AttackResult(
        name, level, wilson(sum(b for b, _ in tried), len(tried)), wilson(sum(b or h for b, h in tried), len(tried)), cost,
        {"variants": rates, **(found or {})}, recovered,
    )  # fmt: skip


def _any(hits: Iterable[bool | None]) -> bool | None:
    known = [h for h in hits if h is not None]
    return any(known) if known else None
