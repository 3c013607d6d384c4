"""Fitting Interpret-then-Deactivate: concept -> features -> deactivation layer -> gate. No gradients, no pictures."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ....base.errors import InputError, MatchedNothing
from ....deactivate.any_gate import AnyGate
from ....deactivate.change_gate import ChangeGate
from ....deactivate.concepts_gate import ConceptsGate, Group
from ....deactivate.edit import Edit
from ....deactivate.gate import Gate
from ....deactivate.layer import DeactivationPart, sae_hook_point
from ....deactivate.parts import Part
from ....deactivate.replacement import ReplacementPart
from ...aliases import ALIASES, packaged_saes
from .config import ItdConfig
from .fitted import FittedGates, fitted_gates
from .official import official_features, official_gate
from .reading import one_reader, read_peaks
from .selection import EmptySelection, Selected, select_features

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import ImageHost


@dataclass(frozen=True)
class Chosen:
    """One concept's features in one SAE."""

    concept: "Concept"
    found: Selected
    n_target: int
    n_retain: int


def fit(
    host: "ImageHost",
    concepts: Sequence["Concept"],
    preserve: Sequence[str] | None = None,
    config: ItdConfig | None = None,
    saes: Sequence["SAE"] = (),
) -> Edit:
    """Takes concepts out of what a text encoder hands to the denoiser (arXiv:2503.09446).

    Nothing is trained: each concept's features are those that are active in its `train` prompts and not in its neighbours' and
    general ones; several concepts are the union of their sets. The host is left as it was.

    Args:
        host: The pipeline.
        concepts: Each needs `target` and retain prompts (`neighbours` or `general`, or `preserve`) in `train`; for gate=energy
            `general` in `validation` too.
        preserve: Further prompts that the features must stay away from.
        config: Settings.
        saes: One at a hook point of a text encoder; of several encoders one each, and the gate reads the first.

    Returns:
        An edit of one `hook` part an SAE (form=replace: one `tokens` part), behind one gate.

    Raises:
        InputError: SAEs or concepts are unfit; names the field.
        MatchedNothing: No feature is a concept's alone; says which retain prompts took them.
    """
    config = config or ItdConfig()
    if not concepts:
        raise MatchedNothing("no concept given: name at least one with --concept (concepts=[…])")
    if not saes:
        own = f"; {host.name} has one of its own, --sae {host.name}" if host.name in ALIASES and packaged_saes(host.name) else ""
        raise InputError(f"itd needs an SAE of a text encoder: saes=[SAE.load(DIR)] (--sae DIR){own}; `efface train` makes one")
    one_reader(host, saes)
    if config.form == "replace" and len(saes) > 1:
        raise InputError("form=replace rewrites the prompt, which all text encoders read: give one SAE")
    gates = fitted_gates(host, saes[0], concepts, config, preserve or ()) if _fits(config) else None
    chosen = [choose(host, sae, concepts, preserve or (), config, gates=None if i else gates) for i, sae in enumerate(saes)]
    if config.expand_rounds:
        from .expansion import expanded

        chosen[0] = expanded(host, saes[0], chosen[0], preserve or (), config)
    edit = Edit(
        parts=[part_of(sae, some, config) for sae, some in zip(saes, chosen, strict=True)],
        eraser="itd",
        config=dataclasses.asdict(config),
        concepts=list(concepts),
        evidence=_evidence(host, saes, chosen),
        seeds={"itd": config.seed},
    )
    if config.search:
        from .search import mildest

        edit = mildest(host, edit, concepts, config)
    layer = layer_of(edit.parts[0])
    gate = gate_of(host, layer, chosen[0], config, gates)
    return edit if gate is None else edit.gated(gate)


def retain_prompts(concept: "Concept", concepts: Sequence["Concept"], preserve: Sequence[str], config: ItdConfig) -> list[str]:
    """Neighbours, a draw of the general prompts, and `preserve`; without prompts that ask for one of the erased concepts.

    Raises:
        InputError: There is none; says which field to fill.
    """
    erased = {t for c in concepts for lines in c.target.values() for t in lines}
    near = [t for t in concept.neighbours.get("train", ()) if t not in erased]
    general = [t for t in concept.general.get("train", ()) if t not in erased]
    n = max(0, config.n_retain - len(near))
    if len(general) > n:
        general = [general[i] for i in sorted(random.Random(config.seed).sample(range(len(general)), n))]
    found = list(dict.fromkeys([*near, *general, *preserve]))
    return found or concept.require("neighbours", "train")


def choose(
    host: "ImageHost", sae: "SAE", concepts: Sequence["Concept"], preserve: Sequence[str], config: ItdConfig,
    further: Sequence[Sequence[str]] = (), gates: FittedGates | None = None,
) -> list[Chosen]:  # fmt: skip
    """Each concept's features; `further` are more target prompts of each, `gates` what `fitted_gates` gave for this SAE."""
    retains = [retain_prompts(c, concepts, preserve, config) for c in concepts]
    targets = [[*c.require("target", "train"), *(further[i] if further else ())] for i, c in enumerate(concepts)]
    if config.rule_or_default == "fitted":
        found = (gates or fitted_gates(host, sae, concepts, config, preserve)).gates
        return [Chosen(c, by_weight(found[c.name], c), len(t), len(r)) for c, t, r in zip(concepts, targets, retains, strict=True)]
    texts = list(dict.fromkeys(t for lines in (*targets, *retains) for t in lines))
    at, peaks = {t: i for i, t in enumerate(texts)}, read_peaks(host, sae, texts, config.batch)
    out = []
    for concept, target, retain in zip(concepts, targets, retains, strict=True):
        own, other = (peaks.select_rows(torch.tensor([at[t] for t in lines])) for lines in (target, retain))
        try:
            if config.compat:
                found = official_features(own, other, config.k_sel)
            else:
                found = select_features(
                    own, other, config.rule_or_default, k_sel=config.k_sel, least_target=config.least_target,
                    most_retain=config.most_retain, n_contrast=config.n_contrast,
                )  # fmt: skip
        except EmptySelection as e:
            raise e.explained(retain, concept.name) from None
        out.append(Chosen(concept, found, len(target), len(retain)))
    return out


def by_weight(gate: Gate, concept: "Concept") -> Selected:
    """The features of a fitted gate that speak for the concept, by their weight over their scale, strongest first.

    Raises:
        MatchedNothing: None does.
    """
    source = gate.sources[0]
    found = sorted(((w / s, f) for f, w, s in zip(source.features, source.weights, gate.scale, strict=True) if w > 0), reverse=True)
    if not found:
        raise MatchedNothing(f"{concept.name!r}: no feature has a positive weight; train a wider SAE, or at another hook point")
    return Selected(tuple(f for _, f in found), tuple(w for w, _ in found))


def part_of(sae: "SAE", chosen: Sequence[Chosen], config: ItdConfig) -> Part:
    """The union of the concepts' features as a part: order does not matter.

    Raises:
        InputError: form=replace, and a concept has no anchor or they differ.
    """
    union = tuple(sorted({f for c in chosen for f in c.found.features}))
    if config.form == "replace":
        anchors = {c.concept.require("anchor") for c in chosen}
        if len(anchors) > 1:
            raise InputError(f"form=replace: one anchor for all concepts of an edit; found {', '.join(map(repr, sorted(anchors)))}")
        return ReplacementPart(DeactivationPart(sae, union, 0.0, "scale", spare_first=True), anchors.pop(), config.share)
    mode = "scale" if config.form == "scale" else "clamp"
    return DeactivationPart(sae, union, config.value, mode, keep_error=config.keep_error_or_default, spare_first=True)


def layer_of(part: Part) -> DeactivationPart:
    """The deactivation layer of a part."""
    layer = part.layer if isinstance(part, ReplacementPart) else part
    assert isinstance(layer, DeactivationPart)
    return layer


def _fits(config: ItdConfig) -> bool:
    return "fitted" in (config.rule_or_default, config.gate_or_default)


def gate_of(
    host: "ImageHost", layer: DeactivationPart, chosen: Sequence[Chosen], config: ItdConfig, gates: FittedGates | None = None
) -> AnyGate | None:
    """The gate of the config: calibrated on the concepts' `train` prompts as published, or on `validation`.

    `gates` are what `fitted_gates` gave for the layer's SAE, where it was called already.
    """
    if config.gate_or_default == "always":
        return None
    if config.gate_or_default == "reconstruction":
        target = [t for c in chosen for t in c.concept.target["train"]]
        if config.compat:
            return official_gate(host, layer, target, config)
        return ChangeGate(layer, "reconstruction").as_published(host, target, batch=config.batch)
    if config.gate_or_default == "fitted":
        return (gates or fitted_gates(host, layer.sae, [c.concept for c in chosen], config)).gate()
    groups = tuple(Group(c.concept.name, c.found.features) for c in chosen)
    concepts = [c.concept for c in chosen]
    erased = {t for c in concepts for lines in c.target.values() for t in lines}
    kept = {n: [[t for t in getattr(c, n).get("validation", ()) if t not in erased] for c in concepts] for n in ("general", "neighbours")}
    for concept, pool in zip(concepts, kept["general"], strict=True):
        if not pool:
            concept.require("general", "validation")
    targets = [c.target.get("validation", ()) for c in concepts]
    return ConceptsGate(layer, groups).calibrated(
        host, targets, kept["general"], kept["neighbours"], fpr=config.fpr, batch=config.batch
    )  # fmt: skip


def _evidence(host: "ImageHost", saes: Sequence["SAE"], chosen: Sequence[Sequence[Chosen]]) -> dict[str, Any]:
    rows = []
    for sae, some in zip(saes, chosen, strict=True):
        for c in some:
            scored = [{"feature": f, "score": s} for f, s in zip(c.found.features, c.found.scores, strict=True)]
            taken = {"taken by retain prompts": len(c.found.taken)}
            counts = {"target prompts": c.n_target, "retain prompts": c.n_retain}
            rows.append({"concept": c.concept.name, "hook_point": sae_hook_point(sae), "features": scored, **taken, **counts})
    return {"concepts": rows, "host": host.name, "host_digest": host.digest}
