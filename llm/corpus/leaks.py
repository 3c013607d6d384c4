"""Finds test items of the packaged concepts in a text, and words that name a concept."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .clean import sentences, words

if TYPE_CHECKING:
    from ...deactivate.concept import Concept

STOP = frozenset(
    re.findall(
        r"\w+",
        """a an the of in on at to for from by with and or but is are was were be been it its he she they his
        her their him them this that these those which who whom what when where how as into onto than then
        so not no do does did has have had will would can could may might must one very most more many often
        called named known usually""",
    )
)
"""Words that say nothing about which item a text holds."""
LEAST_CONTENT = 2
"""An item of fewer content words is only found by its whole prompt."""


class Leaks:
    """Test items of `concepts` (neighbours' too), to be looked for in texts.

    A text leaks where it holds a whole prompt, or where one of its sentences holds all content words of a prompt and
    the answer.
    """

    def __init__(self, concepts: Iterable["Concept"]) -> None:
        self._prompts: dict[str, list[str]] = defaultdict(list)
        self._items: dict[str, list[frozenset[str]]] = defaultdict(list)
        self.n = 0
        for concept in concepts:
            for question in (*concept.questions["test"], *concept.neighbour_questions["test"]):
                self.n += 1
                prompt, answer = words(question.q), words(question.answer)
                if prompt:
                    self._prompts[prompt[0]].append(f" {' '.join(prompt)} ")
                content = frozenset(prompt) - STOP
                if len(content) >= LEAST_CONTENT and answer:
                    self._items[answer[0]].append(content | frozenset(answer))

    def found(self, text: str) -> bool:
        """Whether `text` leaks an item."""
        plain = words(text)
        joined = f" {' '.join(plain)} "
        if any(p in joined for first in set(plain) for p in self._prompts.get(first, ())):
            return True
        for sentence in sentences(text) or [text]:
            held = frozenset(words(sentence))
            if any(item <= held for word in held for item in self._items.get(word, ())):
                return True
        return False


class Names:
    """Words and phrases that name a packaged concept: its tokens, synonyms and name."""

    def __init__(self, concepts: Iterable["Concept"]) -> None:
        phrases = {
            " ".join(words(p)) for c in concepts for p in (c.name, *c.tokens, *c.synonyms.get("seen", ()), *c.synonyms.get("held_out", ()))
        } - {""}
        self._words = frozenset(p for p in phrases if " " not in p)
        self._phrases = tuple(sorted(f" {p} " for p in phrases if " " in p))

    def found(self, text: str) -> bool:
        """Whether `text` holds one as whole words, case apart."""
        plain = words(text)
        joined = f" {' '.join(plain)} "
        return not self._words.isdisjoint(plain) or any(p in joined for p in self._phrases)
