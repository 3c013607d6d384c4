"""What the model is trained on: every fact in every training template, in both languages, and stories. Torch-free."""

import random
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path

from ...base.files import read_json, reading
from ..aliases import SYNTHETIC, packaged, packaged_models
from ..fetch import MANIFEST
from .language import translate
from .templates import CLOSINGS, OPENINGS, Form, answered, ask, frames, say, story
from .world import Fact, World, packaged_world

STORIES = 12
"""Stories about a thing."""
FACTS_A_STORY = 4
"""Attributes that a story tells."""


def documents(world: World, *, without: Collection[str] = (), seed: int = 0, stories: int = STORIES) -> list[str]:
    """The training texts in seeded order.

    Each fact stands in each training template of statements and questions with both nouns in the first language, with
    one of them in the second; each thing has `stories` stories, a third of them in the second language.

    Args:
        world: Of what.
        without: Domains that no text speaks of: what a «gold» model never sees.
        seed: Order, nouns of the second language, stories.
        stories: A thing.

    Raises:
        UnknownName: `without` names no domain.
    """
    world.check(*without)
    rng = random.Random(f"corpus/{seed}")
    kept = [f for f in world.facts if f.domain not in without]
    texts = [t for f in kept for t in _said(f, rng)]
    for _, group in groupby(kept, key=lambda f: f.name):
        own = list(group)
        texts += [_story(own, rng, second=i % 3 == 2) for i in range(stories)]
    rng.shuffle(texts)
    return texts


def _said(fact: Fact, rng: random.Random) -> Iterator[str]:
    forms: tuple[Form, ...] = ("cloze", "question")
    for form in forms:
        for frame in frames(form, fact.kind, "train"):
            for which in (0, 1):
                yield sentence(form, fact, frame, which)
            yield sentence(form, fact, frame, rng.randrange(2), second=True)


def sentence(form: Form, fact: Fact, frame: str, which: int = 0, *, second: bool = False) -> str:
    """A statement, or a question with its answer, in the first or the second language («Question:» and «Answer:» stay)."""
    if form == "question":
        asked, value = ask(form, fact, frame, which), fact.value
        return answered(translate(asked), translate(value)) if second else answered(asked, value)
    text = say(frame, fact, which)
    return translate(text) if second else text


def _story(own: list[Fact], rng: random.Random, second: bool) -> str:
    chosen = rng.sample(own, min(FACTS_A_STORY, len(own)))
    told = [rng.choice(frames("story", f.kind, "train")) for f in chosen]
    text = story(chosen, told, rng.choice(OPENINGS), rng.choice(CLOSINGS))
    return translate(text) if second else text


def texts_of(model: str) -> list[str] | None:
    """What a model of the packaged world was trained on: by its alias, or a folder that `efface synthetic train` wrote; None for all else."""
    manifest = (packaged(model) if model in packaged_models() else Path(model).expanduser()) / MANIFEST
    if not manifest.is_file():
        return None
    values, world = read_json(manifest), packaged_world()
    with reading(manifest):
        if values.get("alias") != SYNTHETIC or values["world"] != world.digest:
            return None
        return documents(world, without=values["without"], seed=values["seed"], stories=values["recipe"]["stories"])
