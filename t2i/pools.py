"""The general pool of image hosts: prompts of everything that a concept is not, made from the miniature's table."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from ..base.errors import MatchedNothing

if TYPE_CHECKING:
    from ..deactivate.concept import Concept


def with_general(concept: "Concept") -> "Concept":
    """The concept with general prompts in every split: its own, or, where its file has none at all, those of the packaged pool.

    The pool has about 5,600 prompts a split, in templates that no two splits share: 263 things by name, plain and in eight styles, and 201 flags.
    Left out is what names the concept, one of its synonyms or subjects, or stands among its own lines. Labels say what each line asks for.

    Raises:
        MatchedNothing: The concept leaves nothing of the pool.
    """
    if any(concept.general.values()):
        return concept
    own = {t.casefold() for group in (concept.target, concept.neighbours) for texts in group.values() for t in texts}
    names = _names(concept)
    found: dict[str, tuple[str, ...]] = {}
    labels: dict[str, Mapping[str, str]] = dict(concept.labels)
    for split, lines in _pool().items():
        kept = {t: says for t, says in lines.items() if t.casefold() not in own and not names.search(t.casefold())}
        if not kept:
            raise MatchedNothing(
                f"concept {concept.name!r}: nothing of the packaged pool is left in {split}; write `general` into its file"
            )
        found[split] = tuple(kept)
        labels.update(kept)
    return replace(concept, general=found, labels=labels)


def _names(concept: "Concept") -> re.Pattern[str]:
    """Matches the concept's name, synonyms and subjects as whole words."""
    subjects = (r.subject or "" for records in concept.records.values() for r in records)
    words = {w.casefold().strip() for w in (concept.name, *(w for ws in concept.synonyms.values() for w in ws), *subjects)} - {""}
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + r")(?!\w)")


@cache
def _pool() -> dict[str, dict[str, Mapping[str, str]]]:
    """Split -> prompt -> what it asks for."""
    from .icons.concepts import SPLITS, everything
    from .icons.table import packaged_table

    return {split: {line.text: line.labels for line in everything(split, packaged_table())} for split in SPLITS}
