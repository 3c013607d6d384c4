"""Which documents of the embedded corpus come first when only a part of it will be read."""

import random
from typing import TYPE_CHECKING

from .read import records
from .write import subjects

if TYPE_CHECKING:
    from ...deactivate.concept import Concept

SHARE = 3
"""One document near the concept stands behind so many minus one of the rest."""


def areas_near(concept: "Concept") -> tuple[str, ...]:
    """The corpus's areas about a concept and about its neighbours (they stand in pairs); none for a concept it does not know."""
    names = list(subjects())
    plain = [n.lstrip("*+") for n in names]
    key = concept.name.casefold()
    return tuple(plain[plain.index(key) : plain.index(key) + 2]) if key in plain else ()


def documents(concept: "Concept", seed: int = 0) -> list[str]:
    """All documents, shuffled, those near the concept spread so that they make up a third of the reading until they run out."""
    rng, wanted = random.Random(seed), areas_near(concept)
    found = list(records("corpus"))
    rng.shuffle(found)
    near = [r["text"] for r in found if r["area"] in wanted]
    rest = [r["text"] for r in found if r["area"] not in wanted]
    mixed: list[str] = []
    while near and rest:
        mixed += [near.pop(), *(rest.pop() for _ in range(min(SHARE - 1, len(rest))))]
    return mixed + near + rest
