"""The prompts of one evaluation: a concept's lines of a split with what they ask for, in groups."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...base.errors import InputError, MatchedNothing

if TYPE_CHECKING:
    from ...deactivate.concept import Concept

Group = Literal["target", "ways", "neighbours", "general"]


@dataclass(frozen=True)
class Ask:
    """A prompt and what it asks for."""

    text: str
    group: Group
    labels: Mapping[str, str]
    """Head of a judge (`object`, `style`, `flag`) -> class."""
    way: str = "name"
    """`name`, or how else it asks: `seen`, `held_out`, `variant`."""


def asks(
    concept: "Concept", split: str, *, grid: Sequence[str] = (), general: int = 300, ways: int = 40,
    cells: Mapping[str, Sequence[str]] | None = None, seed: int = 0,
) -> list[Ask]:  # fmt: skip
    """Prompts of a split.

    Args:
        concept: With labels on its lines.
        split: Of it.
        grid: Objects whose cells are asked for whole, so that rates over the grid are over full cells; empty: none is.
        general: Further general prompts, a seeded choice.
        ways: Prompts a way other than by name, a seeded choice.
        cells: Object -> styles that the base draws (`efface icons check`); cells of these objects that are not there are left out.
        seed: Of the choices.

    Raises:
        InputError: A target line has no label for the concept's judge.
        MatchedNothing: No target prompt is left.
    """
    rng = random.Random(f"asks/{seed}")
    concept.require("target", split)
    own = [Ask(r.text, "target", *_labels(r.labels)) for r in concept.records[split]]
    named = [a for a in own if a.way == "name" and _drawn(a, cells)]
    head = (concept.judge or "icons/object").split("/")[1]
    if lacking := [a.text for a in own if head not in a.labels]:
        raise InputError(f"concept {concept.name!r}: target line {lacking[0]!r} has no label {head!r}, so no judge can tell if it is drawn")
    if not named:
        raise MatchedNothing(f"concept {concept.name!r}: no target prompt by name is left in {split}; does the base draw any of its cells?")
    chosen = list(named)
    for way in dict.fromkeys(a.way for a in own if a.way != "name"):
        others = [Ask(a.text, "ways", a.labels, way) for a in own if a.way == way and _drawn(a, cells)]
        chosen += (others[i] for i in sorted(rng.sample(range(len(others)), min(ways, len(others)))))
    near = _labelled(concept, "neighbours", split, cells)
    rest = _labelled(concept, "general", split, cells)
    whole = [a for a in rest if a.way == "name" and a.labels.get("object") in grid]
    beside = [a for a in rest if not (a.way == "name" and a.labels.get("object") in grid)]
    return [*chosen, *near, *whole, *(beside[i] for i in sorted(rng.sample(range(len(beside)), min(general, len(beside)))))]


def _labels(labels: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """(what is asked for, how)."""
    return {k: v for k, v in labels.items() if k != "way"}, labels.get("way", "name")


def _labelled(
    concept: "Concept", group: Literal["neighbours", "general"], split: str, cells: Mapping[str, Sequence[str]] | None
) -> list[Ask]:
    lines = [t for t in getattr(concept, group)[split] if t in concept.labels]
    found = [Ask(t, group, *_labels(concept.labels[t])) for t in lines]
    return [a for a in found if _drawn(a, cells)]


def _drawn(ask: Ask, cells: Mapping[str, Sequence[str]] | None) -> bool:
    """Whether nothing says that the base does not draw it. An object of which no cell was admitted has an empty list."""
    thing, style = ask.labels.get("object"), ask.labels.get("style")
    return cells is None or thing is None or style is None or thing not in cells or style in cells[thing]
