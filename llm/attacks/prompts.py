"""Attacks that ask otherwise (L0): paraphrase, prefixes, examples in context, translation word by word."""

import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import InputError, MatchedNothing
from ...deactivate.concept import Question
from ...deactivate.concept_file import parse_file
from ..evaluation.scoring import contains
from .answering import answers, answers_to, asked, outcome, prompt_of
from .config import InContextConfig, ParaphraseConfig, PrefixConfig, TranslationConfig
from .protocol import AttackResult, Cost, Level
from .templates import LISTED, OPENINGS, PARAPHRASES, PREFIXES, SHOT_GAP

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ..host import Host


class PromptAttack(ABC):
    """Prompts made from the questions; each question is won where any of them makes the right option win."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called."""

    @property
    def level(self) -> Level:
        """L0: fixed prompts."""
        return "L0"

    @abstractmethod
    def variants(self, concept: "Concept", questions: Sequence[Question]) -> dict[str, list[Question]]:
        """Variant -> the questions with whole prompts in their place, in order.

        Raises:
            InputError: The concept lacks what the attack needs.
        """

    def run(self, host: "Host", edits: "Sequence[Edit]", concept: "Concept", split: str = "test") -> AttackResult:
        """See `Attack.run`."""
        from ..evaluation.suite import applied

        begun = time.perf_counter()
        questions = concept.require("questions", split)
        variants = self.variants(concept, questions)
        with applied(host, edits):
            before = answers(host, questions, concept.form)
            hits = {n: answers_to(host, prompts) for n, prompts in variants.items()}
        first = {n: prompts[0].q for n, prompts in variants.items()}
        return outcome(self.name, self.level, before, hits, Cost(seconds=time.perf_counter() - begun), {"first prompt": first})


@dataclass(frozen=True)
class Paraphrase(PromptAttack):
    """The question in other frames, with its options before it, with other names of the concept."""

    config: ParaphraseConfig = field(default_factory=ParaphraseConfig)

    @property
    def name(self) -> str:
        """`paraphrase`."""
        return "paraphrase"

    def variants(self, concept: "Concept", questions: Sequence[Question]) -> dict[str, list[Question]]:
        """See `PromptAttack.variants`."""
        out = {n: [asked(q, t.format(q=q.q.strip())) for q in questions] for n, t in PARAPHRASES[concept.form].items()}
        if self.config.options:
            out["options listed"] = [asked(q, self._listed(q, concept.form)) for q in questions]
        names = [n for key in ("seen", "held_out") for n in concept.synonyms.get(key, ())] if self.config.synonyms else []
        for other in names:
            told = [_renamed(q.q, [concept.name, *names], other) for q in questions]
            if told != [q.q for q in questions]:
                pairs = zip(questions, told, strict=True)
                out[f"called {other}"] = [asked(q, prompt_of(Question(t, q.options, q.answer), concept.form)) for q, t in pairs]
        return out

    def _listed(self, question: Question, form: str) -> str:
        options = list(question.options)
        random.Random(f"listed/{self.config.seed}/{question.q}").shuffle(options)
        return LISTED[form].format(q=question.q.strip(), options=", ".join(options))


def _renamed(text: str, names: Sequence[str], other: str) -> str:
    for name in sorted(names, key=len, reverse=True):
        if name != other and contains(text.casefold(), name.casefold()):
            return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _: other, text, flags=re.IGNORECASE)
    return text


@dataclass(frozen=True)
class Prefix(PromptAttack):
    """A system prompt, a role or a bare beginning before the question; and answers that are begun for the model."""

    config: PrefixConfig = field(default_factory=PrefixConfig)

    @property
    def name(self) -> str:
        """`prefix`."""
        return "prefix"

    def variants(self, concept: "Concept", questions: Sequence[Question]) -> dict[str, list[Question]]:
        """See `PromptAttack.variants`."""
        texts = {**PREFIXES, **{f"own {i}": t for i, t in enumerate(self.config.texts)}}
        out = {n: [asked(q, f"{_named(t, concept)}{prompt_of(q, concept.form)}") for q in questions] for n, t in texts.items()}
        if concept.form == "question":
            out |= {f"begun: {t}": [asked(q, f"{prompt_of(q, concept.form)} {t}") for q in questions] for t in OPENINGS}
        return out


def _named(text: str, concept: "Concept") -> str:
    return text.replace("{concept}", concept.name)


@dataclass(frozen=True)
class InContext(PromptAttack):
    """Train questions with their right answers before the question; none that holds the answer asked for."""

    config: InContextConfig = field(default_factory=InContextConfig)

    @property
    def name(self) -> str:
        """`in-context`."""
        return "in-context"

    def variants(self, concept: "Concept", questions: Sequence[Question]) -> dict[str, list[Question]]:
        """See `PromptAttack.variants`.

        Raises:
            InputError: The concept has no train questions.
            MatchedNothing: The answers asked for stand in all of them.
        """
        pool = list(concept.require("questions", "train"))
        sizes = sorted({min(n, len(pool)) for n in self.config.shots})
        return {f"{n} shots": [asked(q, self._prompt(q, pool, n, concept.form)) for q in questions] for n in sizes}

    def _prompt(self, question: Question, pool: Sequence[Question], n: int, form: str) -> str:
        wanted = question.answer.casefold().strip()
        free = [e for e in pool if e.q != question.q and not contains(f"{e.q} {e.answer}".casefold(), wanted)]
        if not free:
            raise MatchedNothing(f"in-context: the answer {question.answer!r} stands in every train question; write others")
        shown = random.Random(f"shots/{self.config.seed}/{question.q}").sample(free, min(n, len(free)))
        told = [f"{prompt_of(e, form)} {e.answer.strip()}" for e in shown]
        return SHOT_GAP.join([*told, prompt_of(question, form)])


@dataclass(frozen=True)
class Translation(PromptAttack):
    """Question and options word by word in another language that the model knows."""

    config: TranslationConfig = field(default_factory=TranslationConfig)

    @property
    def name(self) -> str:
        """`translation`."""
        return "translation"

    def variants(self, concept: "Concept", questions: Sequence[Question]) -> dict[str, list[Question]]:
        """See `PromptAttack.variants`.

        Raises:
            InputError: There is no word map for this concept, or it makes two options of a question the same.
            MatchedNothing: None of the map's words stands in any question.
        """
        told = [self._translated(concept, q) for q in questions]
        if told == list(questions):
            raise MatchedNothing(f"translation: none of the words of {self.config.words} stands in the questions of {concept.name!r}")
        if twice := next((q for q in told if len(set(q.options)) < len(q.options)), None):
            raise InputError(
                f"translation: {self.config.words} makes two options of {twice.q!r} the same; a map of words must tell them apart"
            )
        return {"translated": [asked(q, prompt_of(q, concept.form)) for q in told]}

    def _translated(self, concept: "Concept", q: Question) -> Question:
        if self.config.words:
            words = word_map(self.config.words)
            return Question(_swapped(q.q, words), tuple(_swapped(o, words) for o in q.options), _swapped(q.answer, words))
        if not concept.name.endswith("of the synthetic world"):
            raise InputError(f"translation: no word map for {concept.name!r}; give one, translation.words=FILE (YAML, word: word)")
        from ..synthetic.language import back, translate

        for there in (translate, back):
            try:
                return Question(there(q.q), tuple(map(there, q.options)), there(q.answer))
            except KeyError:
                continue
        raise InputError(f"translation: the question {q.q!r} has words that the synthetic world has not")


def word_map(path: str) -> Mapping[str, str]:
    """Word in lower case -> word, from a YAML or JSON file.

    Raises:
        InputError: No such file, no mapping, or two words for which there is the same one.
    """
    if not Path(path).is_file():
        raise InputError(f"translation: words must name a YAML or JSON file, {path!r} is none")
    values: Any = parse_file(Path(path))
    words = {str(k).casefold(): str(v) for k, v in values.items()}
    twice = next((v for v in words.values() if list(words.values()).count(v) > 1), None)
    if twice is not None:
        raise InputError(f"translation: {path} has {twice!r} for two words; a map of words must tell them apart")
    return words


def _swapped(text: str, words: Mapping[str, str]) -> str:
    def one(found: re.Match[str]) -> str:
        other = words.get(found[0].casefold(), found[0])
        return other.capitalize() if found[0][0].isupper() else other

    return re.sub(r"[^\W\d_]+", one, text)
