"""The columns of an image evaluation: every metric of one host state against the base, for one copy of the judges."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...base.errors import MatchedNothing
from ...deactivate.evaluation.results import Metric
from ...deactivate.evaluation.value import Value
from . import metrics as m
from .drawn import Drawn

METRICS: Mapping[str, Metric] = {
    "UA": Metric("UA", "higher", about="Share of the concept's grid pictures in which the judge does not see it (UnlearnCanvas)."),
    "UA_rel": Metric("UA relative", "higher", about="1 - accuracy on them over the base's, same prompts and seeds."),
    "UA_seen": Metric("UA, other ways", "higher", about="UA where it is asked for in other words, those of train and validation."),
    "UA_held_out": Metric("UA, held-out ways", "higher", about="UA where it is asked for in words that no choice was made on."),
    "UA_variant": Metric("UA, variants", "higher", about="UA where another drawing that counts as the concept is asked for."),
    "IRA": Metric("IRA", "higher", about="Mean accuracy on the other members of the concept's domain (UnlearnCanvas)."),
    "IRA_rel": Metric("IRA relative", "higher", about="Accuracy on them over the base's."),
    "IRA_nb": Metric("neighbour", "higher", about="Accuracy on the nearest member over the base's."),
    "IRA_near": Metric("all neighbours", "higher", about="Accuracy on all of the concept's neighbours over the base's."),
    "CRA": Metric("CRA", "higher", about="Mean accuracy in the other domain over the whole grid (UnlearnCanvas)."),
    "CRA_rel": Metric("CRA relative", "higher", about="Accuracy in the other domain over the base's."),
    "CRA_0": Metric("CRA, domain unnamed", "higher", about="Accuracy in the other domain on prompts that name none of the concept's domain."),
    "ALIGN": Metric("alignment", "higher", about="Accuracy in the other domain where the concept was asked for: the rest of the prompt."),
    "kept": Metric("all else", "higher", about="Share of the general prompts that the base draws right and this host too, over the base's."),
    "Acc_e": Metric("Acc_e", "lower", about="Mean probability of the concept on its own prompts (MACE)."),
    "Acc_s": Metric("Acc_s", "higher", about="Mean probability of what was asked on the other members (MACE)."),
    "Acc_g": Metric("Acc_g", "lower", about="Mean probability of the concept where it is asked for in other words (MACE)."),
    "H_o": Metric("H_o", "higher", about="Harmonic mean of 1 - Acc_e, Acc_s, 1 - Acc_g (MACE)."),
    "H_c": Metric("H_c", "higher", about="Harmonic mean of 1 - Acc_e, Acc_s (MACE)."),
    "mark": Metric("mark", "neither", about="Share of pictures that carry the implicit mark, which no prompt names."),
    "KID": Metric("KID x 1000", "lower", scale=1000.0, digits=2, about="Unbiased MMD to the base's pictures of everything but the concept."),
    "KID_gold": Metric(
        "KID to gold x 1000", "lower", scale=1000.0, digits=2, about="Unbiased MMD of the concept's prompts to what a model draws for them that never saw it."
    ),
}  # fmt: skip


def figures(
    now: Drawn, base: Drawn, domain: m.Domain, target: int, neighbours: Sequence[int], crossed: bool, margin: float, draws: int = 2000
) -> tuple[dict[str, Value], dict[str, Any]]:
    """(metric -> figure, «no harm» of each retention at `margin`). What the prompts do not measure is left out.

    Args:
        now: The host state.
        base: The base on the same prompts and seeds.
        domain: Of the concept.
        target: Its class.
        neighbours: Classes of its neighbours, the pair first.
        crossed: Whether there is another domain (flags have none).
        margin: Of equivalence.
        draws: Of the bootstrap.
    """
    grid = now.where("target", "neighbours", "general", way="name")
    j, b = (_only(d.judgements, grid) for d in (now, base))
    values = m.unlearncanvas(j, domain, target)
    relative, harm = m.against_base(j, b, domain, target, neighbours, margin, draws)
    values |= relative
    if crossed:
        values |= _where_there_is_one({"ALIGN": lambda: m.aligned(j, domain, target), "CRA_0": lambda: m.cross_plain(j, domain)})
    else:
        values = {k: v for k, v in values.items() if not k.startswith("CRA")}
        harm = {k: h for k, h in harm.items() if not k.startswith("CRA")}
    for way in ("seen", "held_out", "variant"):
        chosen = now.where("ways", way=way)
        if chosen.any():
            values[f"UA_{way}"] = m.other_ways(_only(now.judgements, chosen), domain, target)
    general = now.where("general")
    if base.right[general].any():
        values["kept"] = _kept(now, base, general)
    values |= _mace(now, domain, target)
    values["mark"] = m.mark_rate(now.marked)
    return values, {k: {"equivalent": h.equivalent, "p": h.p, "margin": h.margin, "difference": h.difference.mean} for k, h in harm.items()}


def _only(j: m.Judgements, chosen: np.ndarray) -> m.Judgements:
    return m.Judgements(j.asked_object[chosen], j.asked_style[chosen], j.object[chosen], j.style[chosen])


def _where_there_is_one(made: Mapping[str, Callable[[], Value]]) -> dict[str, Value]:
    out = {}
    for name, make in made.items():
        try:
            out[name] = make()
        except MatchedNothing:
            continue
    return out


def _kept(now: Drawn, base: Drawn, general: np.ndarray) -> Value:
    """Share still drawn right of the pictures that the base draws right."""
    return m.rate(now.right, general & base.right, "all else")


def _mace(now: Drawn, domain: m.Domain, target: int) -> dict[str, Value]:
    asked = now.judgements.asked(domain)
    named = now.where("target", "neighbours", "general", way="name") & m.grid_images(now.judgements)
    own, rest, ways = named & (asked == target), named & (asked != target), now.where("ways")
    if not own.any() or not rest.any():
        return {}
    return m.mace(now.concept_score[own], now.asked_score[rest], now.concept_score[ways] if ways.any() else None)
