"""The prompts of one evaluation: a concept's lines of a split with what they ask for, in groups."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from ...base.errors import InputError, MatchedNothing

if TYPE_CHECKING:
    from ...deactivate.concept import Concept

Group = Literal["target", "ways", "neighbours", "general"]
Cells = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Ask:
    """A prompt and what it asks for."""

    text: str
    group: Group
    labels: Mapping[str, str]
    """Head of a judge (`object`, `style`, `flag`) -> class."""
    way: str = "name"
    """`name`, or how else it asks: `seen`, `held_out`, `variant`."""
    subject: str = ""
    """The words that name what is asked for, where the concept says which."""


def asks(
    concept: "Concept", split: str, *, grid: Sequence[str] = (), general: int = 300, ways: int = 40, neighbours: int | None = None,
    target: int | None = None, cells: Cells | None = None, seed: int = 0,
) -> list[Ask]:  # fmt: skip
    """Prompts of a split.

    Args:
        concept: With labels on its lines.
        split: Of it.
        grid: Objects whose cells are asked for whole, so that rates over the grid are over full cells; empty: none is.
        general: Further general prompts, a seeded choice.
        ways: Prompts a way other than by name, as many of each of its phrases as can be, a seeded choice.
        neighbours: Prompts of neighbours: all of the first neighbour's (the pair), of the others a seeded choice; None: all.
        target: Prompts by name, as many of each phrase as can be, a seeded choice; None: all.
        cells: Object -> styles that the base draws (`efface icons check`); cells of these objects that are not there are left out. A
            style is asked for with these objects alone: what else the base draws in it is not known.
        seed: Of the choices.

    Raises:
        InputError: A target line has no label for the concept's judge.
        MatchedNothing: No target prompt is left.
    """
    concept.require("target", split)
    own = [Ask(r.text, "target", *_labels(r.labels), r.subject or "") for r in concept.records[split]]
    named = [a for a in own if a.way == "name" and _drawn(a, cells)]
    named = [a for a in named if a.labels.get("object") in (cells or ())] or named
    head = (concept.judge or "icons/object").split("/")[1]
    if lacking := [a.text for a in own if head not in a.labels]:
        raise InputError(f"concept {concept.name!r}: target line {lacking[0]!r} has no label {head!r}, so no judge can tell if it is drawn")
    if not named:
        raise MatchedNothing(f"concept {concept.name!r}: no target prompt by name is left in {split}; does the base draw any of its cells?")
    chosen = evenly(named, target, f"asks/name/{seed}")
    for way in dict.fromkeys(a.way for a in own if a.way != "name"):
        others = [Ask(a.text, "ways", a.labels, way, a.subject) for a in own if a.way == way and _drawn(a, cells)]
        chosen += evenly(others, ways, f"asks/{way}/{seed}")
    near = _labelled(concept, "neighbours", split, cells)
    rest = _labelled(concept, "general", split, cells)
    whole = [a for a in rest if a.way == "name" and a.labels.get("object") in grid]
    beside = [a for a in rest if not (a.way == "name" and a.labels.get("object") in grid)]
    return [*chosen, *_near(near, head, neighbours, seed), *whole, *some(beside, general, f"asks/general/{seed}")]


def some(found: Sequence[Ask], most: int | None, seed: str) -> list[Ask]:
    """A seeded choice of at most `most`, in their order."""
    if most is None or len(found) <= most:
        return list(found)
    return [found[i] for i in sorted(random.Random(seed).sample(range(len(found)), most))]


def evenly(found: Sequence[Ask], most: int | None, seed: str) -> list[Ask]:
    """A seeded choice of at most `most` in which every phrase (`subject`) has as many prompts as any other, to one; in their order."""
    if most is None or len(found) <= most:
        return list(found)
    rng, by_phrase = random.Random(seed), dict[str, list[int]]()
    for i, ask in enumerate(found):
        by_phrase.setdefault(ask.subject, []).append(i)
    phrases = list(by_phrase.values())
    rng.shuffle(phrases)
    for places in phrases:
        rng.shuffle(places)
    order = [i for turn in zip_longest(*phrases) for i in turn if i is not None]
    return [found[i] for i in sorted(order[:most])]


def _near(found: list[Ask], head: str, most: int | None, seed: int) -> list[Ask]:
    """The first neighbour whole, and of the others what there is room for."""
    first = next((a.labels.get(head) for a in found), None)
    pair = [a for a in found if a.labels.get(head) == first]
    others = [a for a in found if a.labels.get(head) != first]
    if most is None or not others:
        return some(found, most, f"asks/neighbours/{seed}")
    return [*pair[:most], *some(others, max(0, most - len(pair)), f"asks/neighbours/{seed}")]


def _labels(labels: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """(what is asked for, how)."""
    return {k: v for k, v in labels.items() if k != "way"}, labels.get("way", "name")


def _labelled(concept: "Concept", group: Literal["neighbours", "general"], split: str, cells: Cells | None) -> list[Ask]:
    lines = [t for t in getattr(concept, group)[split] if t in concept.labels]
    found = [Ask(t, group, *_labels(concept.labels[t])) for t in lines]
    return [a for a in found if _drawn(a, cells)]


def _drawn(ask: Ask, cells: Cells | None) -> bool:
    """Whether nothing says that the base does not draw it. An object of which no cell was admitted has an empty list."""
    thing, style = ask.labels.get("object"), ask.labels.get("style")
    return cells is None or thing is None or style is None or thing not in cells or style in cells[thing]
