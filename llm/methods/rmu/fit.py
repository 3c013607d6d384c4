"""Fitting RMU: one layer's activations on the concept are led to a fixed random vector, elsewhere they stay."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....base.errors import MatchedNothing
from ....deactivate.edit import Edit
from ...tuning.fit import tuned
from ...tuning.frozen import at_points
from ...tuning.texts import Batches, Mixed, Row, forget_rows, retain_pools
from ...tuning.trained import Trained
from .config import RmuConfig
from .math import control_vector, forget_loss, retain_loss

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import Host

MEASURED = 32
"""Forget texts of which the activations' norm is measured."""


def fit(
    host: "Host",
    concepts: "Sequence[Concept]",
    preserve: Sequence[str] | None = None,
    config: RmuConfig | None = None,
    saes: "Sequence[SAE]" = (),
) -> Edit:
    """Takes concepts out by misdirecting activations on their texts (Li et al., arXiv:2403.03218); each has a vector of its own.

    The host is left as it was. The edit has one `weights` part: the changes of the down-projections, dense (`rank` 0).

    Args:
        host: The model; edits that lie on it are trained on top of.
        concepts: At least one; each needs what `forget` and `retain` name.
        preserve: Further texts that must stay.
        config: Settings.
        saes: Not read.

    Raises:
        InputError: A concept lacks a field, or a layer is not there or gets no gradient.
    """
    config = config or RmuConfig()
    layer, layers = config.place(host.n_layers)
    return tuned(host, concepts, config, "rmu", layers, lambda t, c, n: RmuTask(host, t, c, config, layer, preserve or (), n), preserve)


class RmuTask:
    """The two losses for one concept."""

    def __init__(
        self,
        host: "Host",
        trained: Trained,
        concept: "Concept",
        config: RmuConfig,
        layer: int,
        preserve: Sequence[str] = (),
        number: int = 0,
    ) -> None:
        self.host, self.trained, self.config, self.layer = host, trained, config, layer
        self.read = at_points(host, [f"layers.{layer}.resid_post"])
        self.forget = forget_rows(host, concept, config)
        self.batches = Batches([len(r) for r in self.forget], config.batch, f"forget/{config.seed}/{number}")
        self.retain = Mixed(retain_pools(host, concept, config, preserve), config.batch, f"retain/{config.seed}/{number}")
        self.norm = config.steering * (self._measured() if config.relative else 1.0)
        generator = torch.Generator().manual_seed(config.seed + 1_000_003 * number)
        self.control = control_vector(host.d_model, self.norm, generator).to(host.device)

    def __call__(self, i: int) -> tuple[Tensor, Mapping[str, float]]:
        """Forget loss and weighted retain loss of the i-th batch."""
        hidden, counted, _ = self._hidden([self.forget[n] for n in self.batches[i]])
        forget = forget_loss(hidden, self.control, counted)
        hidden, _, (ids, mask) = self._hidden(self.retain[i])
        with torch.no_grad(), self.trained.off():
            frozen = self.read(ids, mask)
        every = torch.ones_like(mask) if self.config.compat == "official" else mask
        retain = self.config.keep * retain_loss(hidden, frozen, every.bool())
        return forget + retain, {"forget": float(forget.detach()), "retain": float(retain.detach())}

    def evidence(self) -> dict[str, Any]:
        """Counts, and where activations were led to."""
        texts = {"forget texts": len(self.forget), "retain texts": [len(p) for p in self.retain.pools]}
        return {**texts, "layer": self.layer, "control norm": self.norm}

    def _hidden(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Activations of a batch, which of its tokens can be led elsewhere, and its ids and mask.

        No special token can, no attention sink and no padding; with `compat=official` all of them.
        """
        ids, mask = self.host.pad([r.ids for r in rows])
        counted = torch.ones_like(mask).bool() if self.config.compat == "official" else self.host.keep_mask(ids, mask)
        if not counted.any():
            raise MatchedNothing("a batch holds no token besides special ones and the attention sink; raise batch or length")
        return self.read(ids, mask), counted, (ids, mask)

    @torch.no_grad()
    def _measured(self) -> float:
        """Mean norm of the frozen activations on forget texts."""
        with self.trained.off():
            hidden, counted, _ = self._hidden(self.forget[:MEASURED])
        return float(hidden[counted].float().norm(dim=-1).mean())
