"""Fitting SAeUron: pictures are drawn, mean activations of every step collected, features chosen, the edit put together."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ....base.errors import InputError, MatchedNothing
from ....base.running import log, progress
from ....deactivate.edit import Edit
from ....deactivate.layer import sae_hook_point
from ....deactivate.stepwise import StepFeatures, StepwisePart
from ....llm.pools import choose
from ...denoising import denoiser_points, read_drawing
from ...drawing_config import DrawingConfig
from ..searching import Goal, mildest
from .config import SAeUronConfig
from .math import ConceptMeans, MeanActivations, scores

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import ImageHost


def fit(
    host: "ImageHost",
    concepts: Sequence["Concept"],
    preserve: Sequence[str] | None = None,
    config: SAeUronConfig | None = None,
    saes: Sequence["SAE"] = (),
) -> Edit:
    """Takes concepts out of a pipeline's pictures by scaling features of its U-Net (SAeUron, Cywiński & Deja, ICML 2025).

    Each concept is fitted alone and the lists of each step are put together, so neither order nor company change what is done for one.
    The host is left as it was. The edit has one `hook` part.

    Args:
        host: The pipeline.
        concepts: At least one; each needs `target` prompts in `train`.
        preserve: Prompts that stand for everything else; None: each concept's neighbours and general prompts in `train`.
        config: Settings.
        saes: One SAE at a hook point of the denoiser.

    Raises:
        InputError: Not one SAE, one of a text encoder, a concept without prompts, or `between` without a step in it.
        MatchedNothing: No concept, or no feature is a concept's own at any step.
    """
    config = config or SAeUronConfig()
    if not concepts:
        raise MatchedNothing("no concept given: name at least one with --concept (concepts=[…])")
    sae = the_sae(host, saes)
    drawing = config.drawing(sae.card.get("token_policy") or {})
    found = [concept_means(host, sae, c, preserve, config, drawing) for c in concepts]
    make = partial(_edit, host, sae, concepts, found, drawing)
    if not config.search:
        return make(config)
    goal = Goal(config.n_search, config.enough, config.seed)
    return mildest(host, _candidates(config, make), concepts, goal)


def _candidates(config: SAeUronConfig, make: Callable[[SAeUronConfig], Edit]) -> Iterator[tuple[dict[str, float], Edit]]:
    """(settings, edit) of the grid; a percentile at which a concept has no feature is left out, which is said."""
    for percentile in config.grid_percentile:
        for gamma in config.grid_gamma:
            pair = {"percentile": percentile, "gamma": gamma}
            try:
                edit = make(dataclasses.replace(config, **pair))
            except MatchedNothing as e:
                log.info("percentile %g is left out: %s", percentile, e)
                break
            yield pair, edit


def _edit(
    host: "ImageHost",
    sae: "SAE",
    concepts: Sequence["Concept"],
    found: Sequence[ConceptMeans],
    drawing: DrawingConfig,
    config: SAeUronConfig,
) -> Edit:
    """The lists of each step, put together.

    Raises:
        MatchedNothing: No feature is a concept's own at any step.
    """
    lists = [_steps(c, means, config) for c, means in zip(concepts, found, strict=True)]
    steps = tuple(first.joined(others) for first, *others in zip(*lists, strict=True))
    evidence = [_evidence(c, means, own) for c, means, own in zip(concepts, found, lists, strict=True)]
    return Edit(
        parts=[StepwisePart(sae, steps, config.between, config.everywhere, config.compat)],
        eraser="saeuron",
        config=dataclasses.asdict(config),
        concepts=list(concepts),
        evidence={"concepts": evidence, "drawing": drawing.policy(), "host": host.name, "host_digest": host.digest},
        seeds={"saeuron": config.seed},
    )


def the_sae(host: "ImageHost", saes: Sequence["SAE"]) -> "SAE":
    """The one SAE, which must be the denoiser's.

    Raises:
        InputError: Another number of them, one of a text encoder, of another denoiser, or of another width.
    """
    if len(saes) != 1:
        where = ", ".join(sae_hook_point(s) for s in saes) or "none"
        raise InputError(f"saeuron takes one SAE, at a hook point of the {host.family.denoiser}; found {len(saes)} ({where})")
    denoiser_points(host, [sae_hook_point(saes[0])])
    host.check_sae(saes[0])
    return saes[0]


def concept_means(
    host: "ImageHost", sae: "SAE", concept: "Concept", preserve: Sequence[str] | None, config: SAeUronConfig, drawing: DrawingConfig
) -> ConceptMeans:
    """Mean activations of a concept's `train` prompts and of everything else, at the same steps.

    Raises:
        InputError: The concept has no such prompts.
    """
    target = choose(concept.require("target", "train"), config.prompts, config.seed)
    own = means(host, sae, target, config.seed, drawing, f"{concept.name}: its prompts")
    rest = means(host, sae, rest_prompts(concept, preserve, config), config.seed, drawing, f"{concept.name}: the rest")
    if own.times != rest.times:
        raise InputError(f"the sampler of {host.name} has other steps from one drawing to the next; saeuron needs a fixed list of steps")
    return ConceptMeans(tuple(own.times), own.mean(), rest.mean())


def rest_prompts(concept: "Concept", preserve: Sequence[str] | None, config: SAeUronConfig) -> list[str]:
    """At most `rest` prompts of everything else: `preserve`, or neighbours (half of them at most) and general prompts."""
    if preserve is not None:
        if isinstance(preserve, str) or not preserve:
            raise MatchedNothing(f"preserve must be a list of at least one prompt; found {preserve!r}")
        return choose(preserve, config.rest, config.seed)
    near, general = concept.neighbours.get("train", ()), concept.general.get("train", ())
    if not near and not general:
        concept.require("general", "train")
    some = choose(near, max(1, config.rest // 2) if general else config.rest, config.seed)
    return [*some, *choose(general, config.rest - len(some), config.seed)]


def means(host: "ImageHost", sae: "SAE", prompts: Sequence[str], seed: int, drawing: DrawingConfig, note: str) -> MeanActivations:
    """Mean activations at every step over prompts and patches, each prompt drawn once from noise of its own."""
    point, found = sae_hook_point(sae), MeanActivations(sae.cfg.d_sae)
    seeds = [zlib.crc32(f"{seed}/{p}".encode()) for p in prompts]
    n = drawing.pictures
    for i in progress(range(0, len(prompts), n), desc=note, unit="drawing"):
        for time, acts in read_drawing(host, prompts[i : i + n], seeds[i : i + n], [point], drawing).items():
            found.update(time, sae.encode_sparse(acts[point].to(sae.device, sae.dtype)))
    return found


def _steps(concept: "Concept", means: ConceptMeans, config: SAeUronConfig) -> tuple[StepFeatures, ...]:
    """The concept's list of each step; none at steps outside `between`."""
    steps = means.steps(config.percentile, config.gamma, config.by_mean_or_default, config.n_concepts)
    low, high = config.between or (min(means.times), max(means.times))
    if not any(low <= s.time <= high for s in steps):
        raise InputError(f"between {[low, high]} holds none of the times collected ({max(means.times):g} to {min(means.times):g})")
    if not any(s.features for s in steps if low <= s.time <= high):
        raise MatchedNothing(
            f"{concept.name!r}: no feature is above the percentile {config.percentile:g} at any step, since none fires more on its prompts "
            "than on others; lower percentile, train the SAE longer, or at another hook point"
        )
    return steps


def _evidence(concept: "Concept", means: ConceptMeans, steps: Sequence[StepFeatures]) -> dict[str, Any]:
    """Per step and feature, why it was chosen."""
    score = scores(means.own, means.rest)
    rows = [
        {"time": s.time, "feature": f, "score": float(score[i, f]), "mean": float(means.own[i, f]), "rest": float(means.rest[i, f])}
        for i, s in enumerate(steps)
        for f in s.features
    ]
    return {"name": concept.name, "features": rows}
