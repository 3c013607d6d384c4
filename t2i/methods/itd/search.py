"""Choosing the multiplier: the mildest with which the concept's prompts no longer show it, on `validation`."""

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....base.errors import InputError
from ....base.running import log, progress
from ....deactivate.edit import Edit
from ....deactivate.layer import DeactivationPart
from ...evaluation.judging import Judge, class_index, load_judges, verdicts
from .config import ItdConfig

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ...host import ImageHost


def mildest(host: "ImageHost", edit: Edit, concepts: Sequence["Concept"], config: ItdConfig, judges: Sequence[Judge] | None = None) -> Edit:
    """`edit` with the first of `grid_value` at which `enough` of the drawn prompts show none of the concepts (else the best).

    What was tried stands in the edit's evidence under `search`.

    Args:
        host: Draws.
        edit: Without a gate.
        concepts: Each names its judge; prompts are drawn by lot from `validation`.
        config: Settings.
        judges: One a concept; None: the first copy of those named.

    Raises:
        InputError: A concept has no judge, no labels, or no prompts in `validation`.
    """
    asked = [_asked(c, config) for c in concepts]
    judges = judges or [load_judges(c.require("judge"))[0] for c in concepts]
    classes = [class_index(j, _class(c)) for j, c in zip(judges, concepts, strict=True)]
    tried: list[dict[str, float]] = []
    for value in progress(config.grid_value, desc="multiplier", unit="value"):
        gone, n = 0, 0
        with with_value(edit, value).applied(host):
            for prompts, judge, target in zip(asked, judges, classes, strict=True):
                images = host.generate(prompts, seed=config.seed)
                gone += int((verdicts(judge, judge.scores(images)) != target).sum())
                n += len(prompts)
        tried.append({"value": value, "gone": gone / n})
        log.info("multiplier %g: %.0f %% no longer drawn", value, 100 * gone / n)
        if gone >= config.enough * n:
            break
    best = max(range(len(tried)), key=lambda i: (tried[i]["gone"] >= config.enough, tried[i]["gone"], -i))
    found = with_value(edit, tried[best]["value"])
    return dataclasses.replace(found, evidence={**dict(edit.evidence), "search": tried})  # type: ignore[arg-type]


def with_value(edit: Edit, value: float) -> Edit:
    """The edit with another multiplier in every deactivation layer and in its settings."""
    parts = [dataclasses.replace(p, value=value) if isinstance(p, DeactivationPart) else p for p in edit.parts]
    return dataclasses.replace(edit, parts=parts, config={**edit.config, "value": value})


def _asked(concept: "Concept", config: ItdConfig) -> list[str]:
    prompts = list(concept.require("target", "validation"))
    if len(prompts) <= config.n_search:
        return prompts
    return [prompts[i] for i in sorted(random.Random(config.seed).sample(range(len(prompts)), config.n_search))]


def _class(concept: "Concept") -> str:
    head = concept.require("judge").rpartition("/")[2]
    for record in concept.records["validation"]:
        if head in record.labels:
            return record.labels[head]
    raise InputError(f"concept {concept.name!r}: no line of target.validation has a label {head!r}: {{text: …, labels: {{{head}: class}}}}")
