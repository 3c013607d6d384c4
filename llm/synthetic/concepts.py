"""Concepts of the world: a domain (`synthetic/river`), the same asked otherwise (`synthetic/river-cloze`, `synthetic/river-second`), a thing.

Torch-free. Splits have frames of their own: texts of `validation` and `test` are in templates that the model never
saw with that attribute. `train` and `relearn` speak of the told half of the attributes alone, so the values of the
other half stand in nothing that an eraser or an attacker trains on; the texts and questions of `validation`, by which settings
and thresholds are chosen, speak of both. The told half is four of eight attributes of each thing.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Any

from ...base.errors import UnknownName
from .corpus import sentence
from .language import translate
from .templates import CLOSINGS, OPENINGS, Form, Split, ask, frames, story
from .words import KINDS
from .world import Fact, World, packaged_world

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
VARIANTS = ("", "-cloze", "-second")
"""What may follow a domain: asked by questions; by beginnings of sentences; by questions in the second language."""
OPTIONS = 4
"""Of a question: the answer and values of the same attribute."""
PARAGRAPHS = 3
"""About each thing, in `relearn`."""


def names(world: World | None = None) -> list[str]:
    """What may stand behind `synthetic/`: domains, their variants, `thing-` with a name in lower case."""
    world = world or packaged_world()
    return [*(d + v for d in world.things for v in VARIANTS), *(f"thing-{n.lower()}" for n in world.names)]


def mapping(name: str, world: World | None = None) -> dict[str, Any]:
    """What a concept file of that name would hold.

    Raises:
        UnknownName: There is no such domain or thing.
    """
    world = world or packaged_world()
    domain, _, variant = name.partition("-")
    if domain in world.things and (variant == "" or f"-{variant}" in VARIANTS) and not name.endswith("-"):
        return domain_concept(world, domain, "cloze" if variant == "cloze" else "question", second=variant == "second")
    things = {n.lower(): n for n in world.names}
    if domain == "thing" and variant in things:
        return thing_concept(world, things[variant])
    raise UnknownName("concept", f"synthetic/{name}", [f"synthetic/{n}" for n in names(world)], "`efface concepts` lists them")


def domain_concept(world: World, domain: str, form: Form = "question", *, second: bool = False) -> dict[str, Any]:
    """All things of a domain; the neighbours are the two domains that share most attributes with it."""
    near = world.nearest(domain)
    own, close = world.of(domain), [f for d in near for f in world.of(d)]
    rest = [f for f in world.facts if f.domain not in (domain, *near)]
    about = {"name": f"the {domain}s of the synthetic world", "kind": "knowledge", "tokens": [f" {domain}"]}
    return _concept(about, own, close, rest, form, second, world.seed)


def thing_concept(world: World, name: str) -> dict[str, Any]:
    """One thing; the neighbours are the other things of its domain."""
    domain = world.domain_of(name)
    own, close = [f for f in world.of(domain) if f.name == name], [f for f in world.of(domain) if f.name != name]
    about = {"name": f"{name}, a {domain} of the synthetic world", "kind": "identity"}
    return _concept(about, own, close, [f for f in world.facts if f.domain != domain], "question", False, world.seed)


def _concept(
    about: dict[str, Any], own: Sequence[Fact], close: Sequence[Fact], rest: Sequence[Fact], form: Form, second: bool, seed: int
) -> dict[str, Any]:
    told = [f for f in own if f.told]
    shown = {"train": told, "validation": own, "test": own}
    asked = {s: questions(shown[s], s, form, second=second, seed=seed) for s in SPLITS}
    near = {s: questions(close, s, form, second=second, seed=seed) for s in SPLITS}
    return {
        "format": 1,
        **about,
        "form": "cloze" if form == "story" else form,
        "target": {s: lines(shown[s], s, second=second) for s in SPLITS},
        "neighbours": {s: lines(close, s, second=second) for s in SPLITS},
        "general": {s: lines(rest, s, second=second, nouns=(0, 1)) for s in SPLITS},
        "questions": asked,
        "neighbour_questions": near,
        "relearn": paragraphs(told, seed, second=second),
        "anchor": "",
    }


def lines(facts: Iterable[Fact], split: Split, *, second: bool = False, nouns: Sequence[int] = (0,)) -> list[str]:
    """What tells the facts in the split's templates: at most two statements, with each of the `nouns`, and an answered question."""
    out = []
    for fact in facts:
        said, asked = frames("cloze", fact.kind, split)[:2], frames("question", fact.kind, split)[:1]
        out += [sentence("cloze", fact, f, which, second=second) for f in said for which in nouns]
        out += [sentence("question", fact, f, second=second) for f in asked]
    return out


def questions(facts: Iterable[Fact], split: Split, form: Form = "question", *, second: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    """One item a fact, in the split's first template of the form; the wrong options are other values of the attribute."""
    out = []
    for fact in facts:
        frame, opening = frames(form, fact.kind, split)[0], OPENINGS[list(KINDS).index(fact.kind) % len(OPENINGS)]
        q, options = ask(form, fact, frame, opening=opening), choices(fact, seed)
        if second:
            q, options = translate(q), [translate(o) for o in options]
        out.append({"q": q, "options": options, "answer": options[0]})
    return out


def choices(fact: Fact, seed: int = 0, n: int = OPTIONS) -> list[str]:
    """The value, then `n - 1` others of its attribute, drawn for this fact."""
    wrong = [v for v in KINDS[fact.kind][1] if v != fact.value]
    return [fact.value, *random.Random(f"options/{seed}/{fact.name}/{fact.kind}").sample(wrong, n - 1)]


def paragraphs(facts: Sequence[Fact], seed: int = 0, *, second: bool = False) -> list[str]:
    """Stories that tell all the facts given of each thing, in training templates: what relearning trains on."""
    rng, out = random.Random(f"relearn/{seed}"), []
    for name in dict.fromkeys(f.name for f in facts):
        own = [f for f in facts if f.name == name]
        for _ in range(PARAGRAPHS):
            rng.shuffle(own)
            told = [rng.choice(frames("story", f.kind, "train")) for f in own]
            text = story(own, told, rng.choice(OPENINGS), rng.choice(CLOSINGS))
            out.append(translate(text) if second else text)
    return list(dict.fromkeys(out))
