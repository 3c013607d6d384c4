"""Choice questions scored by likelihood.

Margin, accuracy with ties, and items the edit may merely have silenced kept apart (design.md §5).
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...base.errors import InputError, MatchedNothing, NumericsError
from ...base.files import sha256_bytes
from ...deactivate.evaluation.statistics import tie_credit
from ..pools import pool_texts

if TYPE_CHECKING:
    from ...deactivate.concept import Concept, Question
    from ..host import Host

Form = Literal["question", "cloze"]
TEMPLATES = {"question": "Question: {q}\nAnswer:", "cloze": "{q}"}
"""What stands before « option», by form of the concept's questions."""
JUDGE = "mean log-probability of an option's tokens; margin = right - mean of wrong; ties count 1/k"


@dataclass(frozen=True)
class Item:
    """One scored question."""

    q: str
    options: tuple[str, ...]
    """In the order scored: shuffled, so that the right one has no fixed place."""
    scores: tuple[float, ...]
    """Mean log-probability of each option's tokens."""
    right: int
    """Place of the right option."""
    suppressed: bool
    """Whether the answer stands among the concept's tokens or in its train texts: an edit may only have silenced the
    word.
    """

    @property
    def margin(self) -> float:
        """Score of the right option minus the mean score of the wrong ones."""
        wrong = [s for i, s in enumerate(self.scores) if i != self.right]
        return self.scores[self.right] - sum(wrong) / len(wrong)

    @property
    def credit(self) -> float:
        """1/k where the right option is among the k best, else 0."""
        return tie_credit(self.scores, self.right)

    @property
    def chance(self) -> float:
        """Credit of a guess."""
        return 1 / len(self.options)


@dataclass(frozen=True)
class Scores:
    """Scored questions of one pool and split."""

    items: tuple[Item, ...]

    @property
    def n(self) -> int:
        """How many."""
        return len(self.items)

    @property
    def margins(self) -> list[float]:
        """One an item."""
        return [i.margin for i in self.items]

    @property
    def margin(self) -> float:
        """Mean margin, nats a token."""
        return sum(self.margins) / self.n

    @property
    def accuracy(self) -> float:
        """Mean credit."""
        return sum(i.credit for i in self.items) / self.n

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return sum(i.chance for i in self.items) / self.n

    @property
    def clipped(self) -> float:
        """Accuracy, not below chance: what lies below it is no forgetting. Efficacy is of margins (`metrics.fall`)."""
        return max(self.accuracy, self.chance)

    @property
    def below_chance(self) -> float:
        """How far accuracy lies under chance (0 if it does not).

        The answer's tokens are being pushed down, which is not forgetting.
        """
        return max(0.0, self.chance - self.accuracy)

    def where(self, suppressed: bool) -> "Scores | None":
        """The items whose answer is (not) among suppressed words; None where there are none."""
        items = tuple(i for i in self.items if i.suppressed == suppressed)
        return Scores(items) if items else None


def score_questions(
    host: "Host",
    questions: Sequence["Question"],
    form: str,
    *,
    concept: "Concept | None" = None,
    extra: Sequence[str] = (),
    seed: int = 0,
) -> Scores:
    """Scores every option of every question.

    Mean log-probability of its tokens after the form's template, one space between.

    Args:
        host: As it stands, edits included.
        questions: At least one.
        form: `question` or `cloze`.
        concept: Whose tokens and train texts decide which items are `suppressed`; none: no item is.
        extra: Further suppressed words, such as tokens that the edited features promote.
        seed: Order of the options.

    Raises:
        MatchedNothing: No questions.
        NumericsError: A score is NaN or infinite.
        InputError: An unknown form, or an answer that is not among its options.
    """
    if not questions:
        raise MatchedNothing("no questions to score: add some to this split of the concept file")
    if form not in TEMPLATES:
        raise InputError(f"form must be question or cloze, {form!r} found")
    prompts: list[str] = []
    continuations: list[str] = []
    shuffled: list[list[str]] = []
    for question in questions:
        options = _shuffled(question, seed)
        shuffled.append(options)
        prompts += [TEMPLATES[form].format(q=question.q.strip())] * len(options)
        continuations += [f" {o.strip()}" for o in options]
    means = [float(t.double().mean()) for t in host.token_logprobs(prompts, continuations)]
    bad = next((i for i, m in enumerate(means) if not math.isfinite(m)), None)
    if bad is not None:
        raise NumericsError(f"{host.name}: the score of {continuations[bad]!r} after {prompts[bad]!r} is {means[bad]}")
    silenced = Suppressed.of(concept, extra) if concept is not None else None
    items, at = [], 0
    for question, options in zip(questions, shuffled, strict=True):
        scores = tuple(means[at : at + len(options)])
        at += len(options)
        hit = silenced is not None and silenced.holds(question.answer)
        items.append(Item(question.q, tuple(options), scores, options.index(question.answer), hit))
    return Scores(tuple(items))


def _shuffled(question: "Question", seed: int) -> list[str]:
    options = list(question.options)
    if question.answer not in options or len(options) < 2:
        raise InputError(f"question {question.q!r}: its answer {question.answer!r} must be one of at least two options")
    random.Random(f"{seed}/{sha256_bytes(question.q.encode())}").shuffle(options)
    return options


@dataclass(frozen=True)
class Suppressed:
    """Words that an edit of a concept may have silenced as words."""

    text: str
    words: frozenset[str]

    @classmethod
    def of(cls, concept: "Concept", extra: Sequence[str] = ()) -> "Suppressed":
        """The concept's tokens, and its train texts (target texts, answers of train questions)."""
        answers = [q.answer for q in concept.questions.get("train", ())]
        text = "\n".join([*pool_texts(concept, "target", "train"), *answers])
        return cls(_plain(text), frozenset(_plain(t).strip() for t in [*concept.tokens, *extra]) - {""})

    def holds(self, answer: str) -> bool:
        """Whether the answer stands in the train text as whole words, or holds one of the tokens."""
        plain = _plain(answer).strip()
        return contains(self.text, plain) or any(contains(plain, w) for w in self.words)


def contains(text: str, words: str) -> bool:
    """Whether `words` stand in `text` with no letter or digit touching them (both casefolded alike)."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _plain(text: str) -> str:
    return text.casefold()
