"""Choosing an image eraser's settings: the mildest with which the concept's prompts no longer show it, on `validation`."""

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...base.errors import InputError, MatchedNothing
from ...base.running import log
from ...deactivate.edit import Edit
from ..evaluation.judging import Judge, class_index, load_judges, verdicts

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ..host import ImageHost


@dataclass(frozen=True)
class Goal:
    """When an edit is strong enough."""

    prompts: int
    """Prompts of a concept that are drawn for each candidate."""
    enough: float
    """Share of them that must not show it."""
    seed: int
    """Choice of prompts, and noise."""


def mildest(
    host: "ImageHost",
    candidates: Iterable[tuple[Mapping[str, Any], Edit]],
    concepts: Sequence["Concept"],
    goal: Goal,
    judges: Sequence[Judge] | None = None,
) -> Edit:
    """The first candidate with which enough of the drawn prompts show none of the concepts; else the one with which fewest do.

    What was tried stands in the edit's evidence under `search`.

    Args:
        host: Draws.
        candidates: (settings, edit without a gate), mildest first; made one after another, and none after the first that is enough.
        concepts: Each names its judge; prompts are drawn by lot from `validation`.
        goal: When to stop.
        judges: One a concept; None: the first copy of those named.

    Raises:
        InputError: A concept has no judge, no labels, or no prompts in `validation`.
        MatchedNothing: No candidate.
    """
    asked = [_asked(c, goal) for c in concepts]
    judges = judges or [load_judges(c.require("judge"))[0] for c in concepts]
    classes = [class_index(j, _class(c)) for j, c in zip(judges, concepts, strict=True)]
    n, tried, best = sum(map(len, asked)), list[dict[str, Any]](), None
    for settings, edit in candidates:
        gone = 0
        with edit.applied(host):
            for prompts, judge, target in zip(asked, judges, classes, strict=True):
                images = host.generate(prompts, seed=goal.seed)
                gone += int((verdicts(judge, judge.scores(images)) != target).sum())
        tried.append({**settings, "gone": gone / n})
        log.info("%s: %.0f %% no longer drawn", ", ".join(f"{k} {v:g}" for k, v in settings.items()), 100 * gone / n)
        if best is None or gone > best[0]:
            best = gone, edit
        if gone >= goal.enough * n:
            break
    if best is None:
        raise MatchedNothing("search: there is nothing to try; give its grid at least one value")
    return dataclasses.replace(best[1], evidence={**dict(best[1].evidence), "search": tried})  # type: ignore[arg-type]


def _asked(concept: "Concept", goal: Goal) -> list[str]:
    prompts = list(concept.require("target", "validation"))
    if len(prompts) <= goal.prompts:
        return prompts
    return [prompts[i] for i in sorted(random.Random(goal.seed).sample(range(len(prompts)), goal.prompts))]


def _class(concept: "Concept") -> str:
    head = concept.require("judge").rpartition("/")[2]
    for record in concept.records["validation"]:
        if head in record.labels:
            return record.labels[head]
    raise InputError(f"concept {concept.name!r}: no line of target.validation has a label {head!r}: {{text: …, labels: {{{head}: class}}}}")
