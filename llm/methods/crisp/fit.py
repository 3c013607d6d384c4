"""Fitting CRISP: adapters that silence a concept's features, and leave activations elsewhere as they are."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....base.errors import InputError, MatchedNothing
from ....deactivate.edit import Edit
from ...scanning import check_saes, layer_of
from ...tuning.fit import tuned
from ...tuning.frozen import Frozen, at_points, final_hidden, kept_tokens, states
from ...tuning.texts import Batches, Mixed, Row, forget_rows, retain_pools
from ...tuning.trained import Trained
from .config import CrispConfig
from .math import distance, firing_loss, suppression_loss
from .select import salient

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import Host

MEASURED = 32
"""Texts on which scales are measured."""


def fit(
    host: "Host",
    concepts: "Sequence[Concept]",
    preserve: Sequence[str] | None = None,
    config: CrispConfig | None = None,
    saes: "Sequence[SAE]" = (),
) -> Edit:
    """Takes concepts out by adapters that suppress their SAE features (Ashuach et al., arXiv:2508.13650).

    The host is left as it was. The edit has one `weights` part: a change of rank `rank` of each adapted matrix.

    Args:
        host: The model. The SAEs must be its own, so no edit may lie on it unless `other_model`.
        concepts: At least one; each needs target texts and what `forget` and `retain` name.
        preserve: Further texts that must stay.
        config: Settings.
        saes: One or more, each at another hook point.

    Raises:
        InputError: SAEs or concepts are unfit, or no trained layer reaches a feature.
        MatchedNothing: No feature carries a concept.
    """
    config = config or CrispConfig()
    if not concepts:
        raise MatchedNothing("no concept given: name at least one with --concept (concepts=[…])")
    places = check_saes(host, saes, other_model=config.other_model)
    layers = config.layers_of(host.n_layers, max(layer_of(s) for s in saes))
    chosen = [salient(host, c, places, config, preserve or ()) for c in concepts]

    def make(trained: Trained, concept: "Concept", number: int) -> CrispTask:
        features = chosen[number]
        used = {p: [e.id for e in features if e.hook_point == p] for p in places}
        task = CrispTask(host, trained, concept, config, {p: (places[p], ids) for p, ids in used.items() if ids}, preserve or (), number)
        task.told = [dataclasses.asdict(e) for e in features]
        return task

    with _without_gradients(saes):
        return tuned(host, concepts, config, "crisp", layers, make, preserve, saes)


@contextmanager
def _without_gradients(saes: "Sequence[SAE]") -> Iterator[None]:
    """Gradients pass through the SAEs in the block, and none is kept for their weights."""
    flags = [(p, p.requires_grad) for s in saes for p in s.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


class CrispTask:
    """The three losses for one concept."""

    def __init__(
        self,
        host: "Host",
        trained: Trained,
        concept: "Concept",
        config: CrispConfig,
        features: "Mapping[str, tuple[SAE, list[int]]]",
        preserve: Sequence[str] = (),
        number: int = 0,
    ) -> None:
        self.host, self.config, self.features = host, config, features
        self.widths = [host.resolve(p).d for p in features]
        self.read, self.last = at_points(host, list(features)), final_hidden(host)
        self.frozen, self.frozen_last = Frozen(host, self.read, trained.off), Frozen(host, self.last, trained.off)
        self.forget = forget_rows(host, concept, config)
        self.batches = Batches([len(r) for r in self.forget], config.batch, f"forget/{config.seed}/{number}")
        self.retain = Mixed(retain_pools(host, concept, config, preserve), config.batch, f"retain/{config.seed}/{number}")
        self.near = self._neighbours(concept) if config.coherence else None
        self.told: list[dict[str, Any]] = []
        self.scales = self._scales()

    def __call__(self, i: int) -> tuple[Tensor, Mapping[str, float]]:
        """The weighted sum of the i-th micro-batch."""
        c = self.config
        acts = self._acts(self._counted(self.read, [self.forget[n] for n in self.batches[i]]))
        fires = firing_loss(acts) if c.compat == "official" else suppression_loss(acts, self.scales["features"])
        parts = {"features": (1 - c.balance) * fires, "retain": c.balance * self._moved(self.read, self.frozen, self.retain[i], "points")}
        if self.near is not None:
            parts["coherence"] = c.balance * c.coherence * self._moved(self.last, self.frozen_last, self.near[i], "last")
        return torch.stack(list(parts.values())).sum(), {k: float(v.detach()) for k, v in parts.items()}

    def evidence(self) -> dict[str, Any]:
        """The features, and counts."""
        texts = {"forget texts": len(self.forget), "retain texts": [len(p) for p in self.retain.pools]}
        return {"features": self.told, **texts}

    def _counted(self, read: Any, rows: Sequence[Row]) -> Tensor:
        """States `[n d]` at the tokens that count."""
        ids = [r.ids for r in rows]
        return torch.cat([h[k] for h, k in zip(states(self.host, read, ids), kept_tokens(self.host, ids), strict=True)])

    def _acts(self, found: Tensor) -> list[Tensor]:
        """Activations of the chosen features, a hook point each."""
        parts = found.split(self.widths, -1)
        return [sae.encode_features(x.to(sae.W_enc), ids).to(x.device) for x, (sae, ids) in zip(parts, self.features.values(), strict=True)]

    def _moved(self, read: Any, frozen: Frozen, rows: Sequence[Row], scale: str) -> Tensor:
        """How far states are from the frozen host's, at the tokens that count."""
        ids = [r.ids for r in rows]
        keep = kept_tokens(self.host, ids)
        before = torch.cat([h[k] for h, k in zip(frozen(ids), keep, strict=True)])
        now = torch.cat([h[k] for h, k in zip(states(self.host, read, ids), keep, strict=True)])
        return distance(now, before, self.scales[scale][0])

    def _neighbours(self, concept: "Concept") -> Mixed:
        """What coherence is read on."""
        config = dataclasses.replace(self.config, retain=("neighbours",))
        try:
            return Mixed(retain_pools(self.host, concept, config), self.config.batch, f"coherence/{self.config.seed}")
        except InputError as e:
            raise InputError(f"{str(e).partition('; or leave')[0]}; or leave the coherence loss out (--set coherence=0)") from None

    @torch.no_grad()
    def _scales(self) -> dict[str, list[float]]:
        """What losses are divided by: 1, or their scale on the frozen host."""
        ones = {"features": [1.0] * len(self.features), "points": [1.0], "last": [1.0]}
        if not self.config.relative:
            return ones
        target = self._frozen(self.frozen, self.forget[:MEASURED])
        stay = [r for pool in self.retain.pools for r in pool[: MEASURED // len(self.retain.pools) + 1]]
        features = [max(float(a.float().mean()), 1e-6) for a in self._acts(target)]
        read = {"points": self.frozen} if self.near is None else {"points": self.frozen, "last": self.frozen_last}
        return {**ones, "features": features, **{k: [float(self._frozen(f, stay).float().square().mean())] for k, f in read.items()}}

    def _frozen(self, frozen: Frozen, rows: Sequence[Row]) -> Tensor:
        ids = [r.ids for r in rows]
        return torch.cat([h[k] for h, k in zip(frozen(ids), kept_tokens(self.host, ids), strict=True)])
