"""Evaluation of edits on an image host: base, edited host and controls on the same prompts and seeds, judged by every copy."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from jaxtyping import Bool

from ...base.errors import InputError, MatchedNothing, UnknownName
from ...base.files import cache_dir, digest
from ...deactivate.evaluation import ProtocolCard, Result, count_look
from ..pools import with_general
from .controls import random_controls
from .drawn import Copy
from .figures import METRICS
from .ground import Ground, ImageHost, ImageSuiteConfig, ground
from .prompts import Ask, Cells
from .rows import Pictures, Rows, applied

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit

__all__ = ["Evaluation", "ImageHost", "ImageSuiteConfig", "Pictures", "evaluate", "named_in"]
Split = Literal["train", "validation", "test"]
NOT_CARD = ("seeds", "batch", "grid", "draws", "controls", "control_draws", "reuse")
"""Settings that stand elsewhere on the card, or that change no figure of a row."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures, and the pictures behind them."""

    result: Result
    pictures: Pictures


def evaluate(
    host: ImageHost, edits: "Sequence[Edit]", concept: "Concept", split: str = "validation", config: ImageSuiteConfig | None = None, *,
    copies: Sequence[Copy] | None = None, cells: Cells | None = None,
    controls: "Mapping[str, Sequence[Sequence[Edit]]] | None" = None, gold: ImageHost | None = None, name: str = "",
    commands: Sequence[str] = (),
) -> Evaluation:  # fmt: skip
    """Draws a split's prompts with and without the edits, with the same seeds, and judges both.

    Rows: the base (identity), gold where there is one, the host with all `edits`, and the controls: blank output, a string filter on the
    concept's names, and random features and directions, where the edits have any. The host is left as it was. A look at `test` is counted. Other ways to
    ask count where the base draws them (`least_drawn`).

    Args:
        host: Draws.
        edits: In force together.
        concept: With labels; its `judge` names head and class list.
        split: Of the concept.
        config: How much.
        copies: Judges; None: those of the concept's family.
        cells: Object -> styles that the base draws; None: everything is drawn.
        controls: Name -> draws, each a list of edits, in the place of the random controls.
        gold: A host that was trained without the concept; its row is the floor, and `KID_gold` each row's distance to it.
        name: Of the result; empty: the concept's.
        commands: That made it.

    Raises:
        InputError: The concept lacks labels, the base draws nothing of it, or `gold` draws with other settings.
        UnknownName: Unknown split, or a class that the judges do not know.
    """
    if split not in get_args(Split):
        raise UnknownName("split", split, get_args(Split))
    read = with_general(concept) if (concept.judge or "").startswith("icons/") else concept  # the pool's labels are classes of the icons
    shared = ground(read, split, config or ImageSuiteConfig(), copies, cells)
    drawn, absent = (controls, ()) if controls is not None else random_controls(host, edits, concept, shared.config)
    looks = count_look(cache_dir() / "looks", concept.digest, split)
    if gold is not None and dict(gold.sampling) != dict(host.sampling):
        raise InputError(f"gold: draws with {dict(gold.sampling)}, the host with {dict(host.sampling)}; set steps and guidance alike")
    run = Rows(host, shared, gold)
    if edits:
        run.edited(" + ".join(dict.fromkeys(e.eraser for e in edits)), lambda: applied(host, edits))
    filtered = named_in(shared.asks, (shared.target, concept.name, *concept.synonyms.get("seen", ())))
    run.whitened("blank output", np.ones(len(shared.asks), bool), "every picture is white")
    run.whitened("string filter", filtered, "white where the prompt names it")
    for label, draws in drawn.items():
        run.drawn(label, draws)
    run.extra["absent"] += absent
    run.extra["edits"] = [e.digest for e in edits]
    if gold is not None:
        run.extra["gold"] = {"name": gold.name, "digest": gold.digest}
    used = {k for r in run.rows for k in r.metrics}
    described = {k: METRICS[_plain(k)] if _plain(k) == k else _of_copy(k) for k in sorted(used, key=_order)}
    card = _card(host, shared, split, looks, cells)
    result = Result(name or concept.name, card, tuple(run.rows), described, tuple(commands), run.extra)
    return Evaluation(result, run.pictures)


def named_in(asked: Sequence[Ask], names: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Prompts that hold one of the names as whole words, in any case."""
    words = sorted({n.casefold().strip() for n in names} - {""}, key=len, reverse=True)
    if not words:
        raise MatchedNothing("string filter: the concept has no name")
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)")
    return np.array([bool(pattern.search(a.text.casefold())) for a in asked])


def _card(host: ImageHost, shared: Ground, split: str, looks: int, cells: Cells | None) -> ProtocolCard:
    judges = {j.name: j for copy in shared.copies for j in copy.values()}
    config = {k: v for k, v in asdict(shared.config).items() if k not in NOT_CARD}
    drawn = "all" if cells is None else digest({k: sorted(v) for k, v in cells.items()})[:12]
    return ProtocolCard(
        suite="images", host=host.name, host_digest=host.digest, concept=shared.concept.name,
        prompts_digest=digest([[a.text, a.group, dict(a.labels), a.way] for a in shared.asks]),
        judge=", ".join(judges), judge_digest=digest([j.digest for j in judges.values()]), split=cast(Split, split), n=len(shared.asks),
        seeds=shared.config.seeds, thresholds={n: j.threshold for n, j in judges.items()}, looks=looks,
        extra={"sampling": dict(host.sampling), "cells": drawn, **config, "grid": list(shared.config.grid)},
    )  # fmt: skip


def _plain(metric: str) -> str:
    return metric.split(" (")[0]


def _order(metric: str) -> tuple[int, str]:
    return list(METRICS).index(_plain(metric)), metric


def _of_copy(metric: str) -> Any:
    known = METRICS[_plain(metric)]
    return replace(known, label=f"{known.label}, judge {metric.rsplit('(', 1)[1].rstrip(')')}")
