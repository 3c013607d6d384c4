"""Gates with fitted weights for any number of concepts: all their prompts are read once, and what a concept gets is its own affair."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ....base.errors import InputError, MatchedNothing
from ....base.running import progress
from ....deactivate.any_gate import AnyGate
from ....deactivate.calibration import Calibration, calibrate
from ....deactivate.gate import Gate, GateSource
from ....deactivate.layer import sae_digest
from ....deactivate.union_gate import UnionGate
from ....llm.gating import LEAST_TEXTS, POOL, TEXTS, fitted_weights
from ....llm.pools import choose
from ....sae.sparse import SparseActs
from ...pools import with_general
from .config import ItdConfig
from .reading import read_peaks

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import ImageHost


@dataclass(frozen=True)
class FittedGates:
    """A calibrated gate a concept, and what they do together."""

    gates: Mapping[str, Gate]
    together: Calibration
    """Rates on `validation` of the prompts that open any of them."""

    def gate(self) -> AnyGate:
        """The one gate, or the union of several."""
        return next(iter(self.gates.values())) if len(self.gates) == 1 else UnionGate(self.gates, self.together)


Pools = Mapping[tuple[str, str], Sequence[str]]
"""(pool, split) -> prompts."""


def fitted_gates(
    host: "ImageHost", sae: "SAE", concepts: Sequence["Concept"], config: ItdConfig, preserve: Sequence[str] = ()
) -> FittedGates:
    """A calibrated gate a concept: L1 logistic regression on the peaks of features, as `llm.gating.concept_gate`.

    Neighbours, general prompts and `preserve` count as what is not the concept, prompts of other erased concepts among them.

    Raises:
        InputError: A concept has no prompts of what it is not, or is given twice; names the field.
        MatchedNothing: A concept has no target prompts in `train`, or no feature tells it from the rest.
    """
    names = [c.name for c in concepts]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"concepts: {twice[0]!r} is given twice; give each concept once, under a name of its own")
    for concept in concepts:
        if not (concept.neighbours.get("train") or concept.general.get("train") or preserve):
            concept.require("neighbours", "train")
    wanted = [_pools(with_general(c), preserve, config.seed) for c in concepts]
    texts = list(dict.fromkeys(t for pools in wanted for lines in pools.values() for t in lines))
    at, peaks, known = {t: i for i, t in enumerate(texts)}, read_peaks(host, sae, texts, config.batch), sae_digest(sae)
    gates = dict[str, Gate]()
    for concept, pools in zip(progress(concepts, desc="gates", unit="concept", enabled=len(concepts) > 4), wanted, strict=True):
        rows = {k: peaks.select_rows(torch.tensor([at[t] for t in lines])) for k, lines in pools.items() if lines}
        gates[concept.name] = _gate(sae, known, concept.name, rows, config)
    return FittedGates(gates, _together(list(gates.values()), wanted, at, peaks, config.fpr))


def _pools(concept: "Concept", preserve: Sequence[str], seed: int) -> Pools:
    concept.require("target", "train")
    if not concept.general.get("validation"):
        concept.require("general", "validation")
    limits = {("general", "train"): TEXTS, ("general", "validation"): POOL}
    own = {t for lines in concept.target.values() for t in lines}
    found = {}
    for split in ("train", "validation"):
        found["target", split] = list(concept.target.get(split, ()))
        for pool in ("neighbours", "general"):
            found[pool, split] = choose(getattr(concept, pool).get(split, ()), limits.get((pool, split)), seed)
    found["general", "train"] += [t for t in preserve if t not in own]
    return found


def _gate(sae: "SAE", known: str, name: str, rows: Mapping[tuple[str, str], SparseActs], config: ItdConfig) -> Gate:
    often = rows["target", "train"].counts() >= min(LEAST_TEXTS, rows["target", "train"].shape[0])
    ids = often.nonzero()[:, 0]
    if not len(ids):
        raise MatchedNothing(f"gate: no feature fires on {LEAST_TEXTS} prompts of {name!r}; train a wider SAE, or at another hook point")
    columns = {k: acts.select(ids) for k, acts in rows.items()}
    train, validation = (_of(columns, split) for split in ("train", "validation"))
    weights, scale = fitted_weights(train, validation if "target" in validation else {})
    used = np.flatnonzero(weights)
    if not len(used):
        raise MatchedNothing(f"gate: no weight of any feature tells {name!r} from other prompts; train a wider SAE")
    source = GateSource(sae, tuple(int(ids[i]) for i in used), tuple(float(weights[i]) for i in used), known)
    gate = Gate([source], scale=tuple(float(scale[i]) for i in used))
    scores = {pool: gate.standardised(columns[pool, split][:, used].double()).numpy() for pool, split in columns if split == "validation"}
    found = calibrate(scores.get("target", ()), scores["general"], scores.get("neighbours", ()), fpr=config.fpr)
    return dataclasses.replace(gate, calibration=found)


def _together(gates: Sequence[Gate], wanted: Sequence[Pools], at: Mapping[str, int], peaks: SparseActs, fpr: float) -> Calibration:
    """Rates of the largest margin over gates; what asks for one of the concepts is neither general nor a neighbour."""
    pools = {k: {t for pools in wanted for t in pools[k, "validation"]} for k in ("target", "general", "neighbours")}
    erased = {t for pools in wanted for split in ("train", "validation") for t in pools["target", split]}
    lines = {k: sorted(some if k == "target" else some - erased) for k, some in pools.items()}
    scores = {}
    for k, some in lines.items():
        rows = peaks.select_rows(torch.tensor([at[t] for t in some], dtype=torch.int64))
        margins = [g.standardised(rows.select(g.sources[0].features).double()) - g.bound for g in gates]
        scores[k] = torch.stack(margins).amax(0).numpy()
    found = calibrate(scores["target"], scores["general"], scores["neighbours"], fpr=fpr, at=0.0)
    return dataclasses.replace(found, note=f"{len(gates)} concepts, each at its own bound; rates of all together")


def _of(columns: Mapping[tuple[str, str], torch.Tensor], split: str) -> dict[str, np.ndarray]:
    return {pool: x.numpy() for (pool, s), x in columns.items() if s == split}
