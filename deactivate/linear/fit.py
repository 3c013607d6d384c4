"""Fitting a linear eraser on a host: labelled activations -> eraser -> projection at each hook point, or folded into weights."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...base.errors import InputError, MatchedNothing
from ...base.running import progress
from ...probes.erasers import AffineEraser, leace, orthogonal, shrunk
from ...probes.linear import LinearConfig, fit_linear
from ...probes.minimax import RlaceConfig, rlace
from ...probes.minimax_sgd import RlaceSgdConfig, rlace_sgd
from ...probes.moments import Moments, MomentsFitter
from ...probes.nullspace import InlpConfig, inlp
from ...probes.scores import score
from ..edit import Edit
from ..parts import Part, ProjectionPart
from .config import InlpErasure, LeaceErasure, LinearErasure, RlaceErasure, SalErasure
from .fold import Folding, fold_loss, holds_mean
from .reading import Texts, labelled, points_of, reader_of, vectors
from .span import feature_span, sae_by_point

if TYPE_CHECKING:
    from ...sae import SAE
    from ..concept import Concept
    from ..hosts import Host

NAMES: dict[type[LinearErasure], str] = {LeaceErasure: "leace", SalErasure: "sal", InlpErasure: "inlp", RlaceErasure: "rlace"}

SINK = 20.0
"""Vectors longer than so many times the median are attention sinks: nothing is fitted on them, and they are left as they are."""


def fit(
    host: "Host",
    concepts: Sequence["Concept"],
    preserve: Sequence[str] | None = None,
    config: LinearErasure | None = None,
    saes: Sequence["SAE"] = (),
) -> Edit:
    """Takes concepts out of what passes hook points, so that no linear classifier tells them from the rest on `train`.

    Of n concepts the labels have n + 1 classes, so that one projection of rank n removes all of them. Several hook points are scrubbed one after
    another (concept scrubbing, Belrose et al., 2023): each eraser is fitted on states that those before it have changed. The host is left as it was.

    Args:
        host: The model; hook points of a pipeline's text encoders.
        concepts: At least one; each needs `target` texts in `train` (and for the evidence's probes in `validation`).
        preserve: What stands for the rest; None: the concepts' neighbours and general texts.
        config: Settings; their class says which eraser.
        saes: For rlace with `features`: one at each hook point.

    Returns:
        An edit of a `projection` part a hook point; with `fold`, of one `weights` part.

    Raises:
        InputError: Concepts, hook points or SAEs are unfit; names the field.
        MatchedNothing: No concept, or the classes' means are equal already.
    """
    config = config or LeaceErasure()
    if not concepts:
        raise MatchedNothing("no concept given: name at least one with --concept (concepts=[…])")
    points = points_of(host, config)
    for point in points:
        reader_of(host, point)
    folding = Folding(host) if config.fold else None
    affine = {p: holds_mean(host, p) if folding else True for p in points}
    spans = sae_by_point(saes, points, getattr(config, "features", 0))
    train = labelled(host, concepts, preserve, "train", config)
    held = labelled(host, concepts, None, "validation", config) if config.probe and _has_validation(concepts) else None
    parts: list[ProjectionPart] = []
    evidence: list[dict[str, Any]] = []
    with ExitStack() as scrubbed:
        for point in progress(points, desc="scrub", unit="hook point"):
            keep = affine[point] if config.affine is None else config.affine
            part, row = fit_point(host, point, train, held, config, keep, spans.get(point))
            parts.append(part)
            evidence.append(row)
            scrubbed.enter_context(host.replaced(point, part.project))
    shown: dict[str, Any] = {"points": evidence, "host": host.name, "host_digest": host.digest}
    made: list[Part] = list(parts)
    if folding:
        for part in parts:
            folding.add(part)
        made = [folding.part()]
        shown["fold"] = fold_loss(host, parts, folding.part(), train.lines[:: max(1, len(train.lines) // 16)][:16])
    name = NAMES[type(config)]
    return Edit(made, name, dataclasses.asdict(config), list(concepts), evidence=shown, seeds={name: config.seed})


def _has_validation(concepts: Sequence["Concept"]) -> bool:
    return all(c.target.get("validation") for c in concepts)


def fit_point(
    host: "Host", point: str, train: Texts, held: Texts | None, config: LinearErasure, affine: bool, sae: "SAE | None"
) -> tuple[ProjectionPart, dict[str, Any]]:
    """The projection at one hook point, on the host as it stands, and what is known of it.

    Raises:
        MatchedNothing: The eraser removes nothing.
    """
    x, y = vectors(host, train, point, config)
    length = x.norm(dim=1)
    reach = SINK * float(length.median())
    x, y = x[length <= reach], y[length <= reach]
    fitter = MomentsFitter().update(x, torch.nn.functional.one_hot(y).double())
    m = fitter.moments()
    eraser, row = solve(x, y, m, config, sae)
    if not eraser.rank:
        raise MatchedNothing(f"{point}: the concepts' means are those of the rest already; nothing linear is left to remove")
    bias = eraser.bias if affine else torch.zeros_like(eraser.bias)
    left, right, bias = (t.float().contiguous() for t in (eraser.left, eraser.right, bias))
    part = ProjectionPart(point, left, right, bias, reach=None if config.fold else reach)
    P = eraser.P.double()
    row |= {
        "hook_point": point,
        "reach": part.reach,
        "sinks": int((length > reach).sum()),
        "rank": eraser.rank,
        "vectors": m.n,
        "affine": affine,
    }
    row["variance removed"] = 1 - float((P @ m.xx @ P.T).trace() / m.xx.trace())
    if held is not None:
        row["probe"] = probed(x, y, *vectors(host, held, point, config), part, config)
    return part, row


def solve(x: Tensor, y: Tensor, m: Moments, config: LinearErasure, sae: "SAE | None") -> tuple[AffineEraser, dict[str, Any]]:
    """The eraser of the config's class, and what it says of itself."""
    if isinstance(config, LeaceErasure):
        return leace(shrunk(m) if config.shrink else m), {}
    if isinstance(config, SalErasure):
        return orthogonal(m, k=config.k), {}
    if isinstance(config, InlpErasure):
        found = inlp(x.double(), y, InlpConfig(rounds=config.rounds, kind=config.kind, l2=config.l2))
        return found.eraser, {"rounds": len(found.directions)}
    if not isinstance(config, RlaceErasure):
        raise InputError(f"linear erasers: settings of one of {', '.join(NAMES.values())} expected, {type(config).__name__} found")
    if config.compat:
        game = rlace_sgd(x.double(), y, RlaceSgdConfig(k=config.k, seed=config.seed))
    else:
        span, ids = (None, []) if sae is None else feature_span(sae, x, y, config.features)
        game = rlace(x.double(), y, RlaceConfig(k=config.k, start=config.start, rounds=config.rounds, seed=config.seed), span=span)
        return game.eraser, {"game": game.as_dict(), **({"features": ids} if ids else {})}
    return game.eraser, {"game": game.as_dict()}


def probed(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, part: ProjectionPart, config: LinearErasure) -> dict[str, Any]:
    """Held-out scores of a new logistic probe before the projection and after it."""
    rng = torch.Generator().manual_seed(config.seed)
    some, held = (torch.randperm(len(t), generator=rng)[: config.probe] for t in (x, x_held))
    found: dict[str, Any] = {}
    for name, change in (("before", lambda t: t), ("after", part.project)):
        probe = fit_linear(change(x[some]), y[some], LinearConfig(l2=1e-4, max_iter=200))
        found[name] = score(probe, change(x_held[held]), y_held[held], y[some]).as_dict()
    return found
