"""The texts of a concept's pools, in a fixed, seeded choice."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from ..deactivate.concept import Concept

Pool = Literal["target", "neighbours", "general"]
T = TypeVar("T")


def pool_texts(concept: "Concept", pool: Pool, split: str, limit: int | None = None, seed: int = 0) -> list[str]:
    """Texts of a pool in a split; where there are more than `limit`, a seeded choice in file order."""
    return choose(getattr(concept, pool).get(split, ()), limit, seed)


def general_texts(concept: "Concept", split: str, limit: int | None = None, seed: int = 0) -> list[str]:
    """The concept's `general` texts of a split, or, where its file has none at all, those of the packaged pool."""
    if any(concept.general.values()):
        return pool_texts(concept, "general", split, limit, seed)
    from .corpus import general_pool

    return choose(general_pool(split), limit, seed)


def choose(texts: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` of `texts`, in their order."""
    if limit is None or len(texts) <= limit:
        return list(texts)
    return [texts[i] for i in sorted(random.Random(seed).sample(range(len(texts)), limit))]
