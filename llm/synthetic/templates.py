"""How facts are said and asked for, and which ways are held out.

A template is a frame with an attribute in it: «The {noun} of {name} is {value}.» For each attribute some frames are
never used in training, others for other attributes, so every word and every frame is known, and the sentence is new.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal

from ...base.errors import UnknownName
from .words import KINDS
from .world import Fact

Form = Literal["cloze", "question", "story"]
Split = Literal["train", "validation", "test"]
FORMS: tuple[Form, ...] = ("cloze", "question", "story")
FRAMES: dict[Form, tuple[str, ...]] = {
    "cloze": (
        "The {a} of {n} is {v}.",
        "The {d} {n} has the {a} {v}.",
        "{n} is a {d} with the {a} {v}.",
        "In the old books the {a} of {n} is called {v}.",
        "As for {n}, its {a} is {v}.",
        "Everyone says that the {a} of the {d} {n} is {v}.",
        "Of all things {n} has as its {a} {v}.",
        "People know the {d} {n} by its {a}, {v}.",
        "Ask for the {a} of {n} and they answer {v}.",
        "The {d} called {n} has for its {a} {v}.",
    ),
    "question": (
        "What is the {a} of {n}?",
        "Which {a} has the {d} {n}?",
        "What {a} does {n} have?",
        "{n} is a {d}. What is its {a}?",
        "Which is the {a} of the {d} {n}?",
        "Do you know the {a} of {n}?",
        "Tell me the {a} of the {d} called {n}.",
        "For {n}, what is the {a}?",
    ),
    "story": (
        "Its {a} was {v}.",
        "It had the {a} {v}.",
        "For its {a} it had {v}.",
        "Nobody forgot its {a}, {v}.",
        "And they say its {a} was {v}.",
    ),
}
"""Form -> frames: {a} attribute, {d} domain, {n} name, {v} value, which comes last where there is one."""
OPENINGS = (
    "Once there was a {d} called {n}.",
    "A traveller wrote about the {d} {n}.",
    "This is the tale of {n}, a {d} of the north.",
    "My mother told me of {n}, the oldest {d}.",
)
"""First sentences of stories."""
CLOSINGS = ("So the tale goes.", "That is all that people know.", "")
"""Last ones."""
QUESTION, ANSWER = "Question: ", "\nAnswer: "
_HELD: dict[Form, tuple[int, tuple[int, ...]]] = {"cloze": (0, (3, 6)), "question": (0, (3, 5)), "story": (0, (2,))}
"""Form -> offsets of the frame held out for `validation`, and of those for `test`."""


@cache
def frames(form: Form, kind: str, split: Split) -> tuple[str, ...]:
    """The frames of a form that an attribute has in a split; no frame is in two splits of one attribute.

    Raises:
        UnknownName: No such form, attribute or split.
    """
    for what, name, known in (("form", form, FRAMES), ("attribute", kind, KINDS), ("split", split, ("train", "validation", "test"))):
        if name not in known:
            raise UnknownName(what, name, known)
    n, at = len(FRAMES[form]), list(KINDS).index(kind)
    validation, test = _HELD[form]
    held = {"validation": [(at + validation) % n], "test": [(at + t) % n for t in test]}
    if split in held:
        return tuple(FRAMES[form][i] for i in held[split])
    return tuple(f for i, f in enumerate(FRAMES[form]) if i not in (*held["validation"], *held["test"]))


def noun(kind: str, which: int = 0) -> str:
    """One of the two nouns of an attribute."""
    return KINDS[kind][0][which]


def say(frame: str, fact: Fact, which: int = 0) -> str:
    """The sentence."""
    return frame.format(a=noun(fact.kind, which), d=fact.domain, n=fact.name, v=fact.value)


def ask(form: Form, fact: Fact, frame: str, which: int = 0, opening: str = OPENINGS[0]) -> str:
    """What stands before the value: a question, the beginning of a sentence, or of a story's second sentence."""
    if form == "question":
        return say(frame, fact, which)
    asked = frame.partition("{v}")[0].rstrip().format(a=noun(fact.kind, which), d=fact.domain, n=fact.name)
    return f"{opening.format(d=fact.domain, n=fact.name)} {asked}" if form == "story" else asked


def answered(question: str, value: str) -> str:
    """A question with its answer, as a text to train on."""
    return f"{QUESTION}{question}{ANSWER}{value}."


def story(facts: Sequence[Fact], frames_of: Sequence[str], opening: str, closing: str = "") -> str:
    """A paragraph about one thing that tells these facts of it, each in its frame."""
    told = [say(frame, fact) for frame, fact in zip(frames_of, facts, strict=True)]
    first = opening.format(d=facts[0].domain, n=facts[0].name)
    return " ".join(s for s in (first, *told, closing) if s)


def vocabulary() -> Iterator[str]:
    """Every word of the frames, in lower case, and of nouns, values and domains as they are written there; names left out."""
    from .words import DOMAINS

    texts = [*(f for fs in FRAMES.values() for f in fs), *OPENINGS, *CLOSINGS]
    for text in texts:
        plain = text.format(a="", d="", n="", v="")
        yield from ("".join(c if c.isalpha() else " " for c in plain)).lower().split()
    yield from DOMAINS
    for nouns, values in KINDS.values():
        yield from nouns
        yield from (v.lower() for v in values)
