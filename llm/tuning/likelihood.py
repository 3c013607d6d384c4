"""Forget and retain texts of a concept and their likelihoods, for methods whose losses are made of those."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .frozen import Frozen, final_hidden, predictions, states
from .losses import row_weights, to_base, token_logprobs
from .texts import Batches, Mixed, Row, forget_rows, retain_pools
from .trained import Trained

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ..host import Host
    from .config import TuningConfig


def distance_to_base(frozen: Frozen, rows: Sequence[Row], *, hard: bool = False, counted: bool = False) -> Tensor:
    """Cross-entropy from the host to what it was before; see `losses.to_base`.

    Args:
        frozen: Final states of what it was.
        rows: Texts.
        hard: To its most probable token, not to its distribution.
        counted: At the positions alone that predict a token that counts (of questions: the answer's), every row alike; else at all
            positions, all alike.
    """
    host, ids = frozen.host, [r.ids for r in rows]
    at = [r.places(counted) for r in rows]
    student = [h[p] for h, p in zip(states(host, frozen.read, ids), at, strict=True)]
    with torch.no_grad():
        base = host.head(torch.cat([h[p] for h, p in zip(frozen(ids), at, strict=True)])).float()
    weights = row_weights([len(h) for h in student]) if counted else None
    return to_base(host.head(torch.cat(student)).float(), base, hard=hard, weights=weights)


class Likelihoods:
    """Batches of one concept's texts, and what the host gives their tokens, as trained and as it was."""

    def __init__(
        self, host: "Host", trained: Trained, concept: "Concept", config: "TuningConfig", preserve: Sequence[str], number: int
    ) -> None:
        self.host = host
        self.read = final_hidden(host)
        self.frozen = Frozen(host, self.read, trained.off)
        self.forget = forget_rows(host, concept, config)
        self.retain = Mixed(retain_pools(host, concept, config, preserve), config.batch, f"retain/{config.seed}/{number}")
        self._batches = Batches([len(r) for r in self.forget], config.batch, f"forget/{config.seed}/{number}")

    def forgotten(self, i: int) -> list[Row]:
        """Forget texts of the i-th micro-batch."""
        return [self.forget[n] for n in self._batches[i]]

    def logprobs(self, rows: Sequence[Row], *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """The log p of every counted token of the rows (of questions: the answer's), and the number of its row."""
        ids = [r.ids for r in rows]
        hidden = self.frozen(ids) if frozen else states(self.host, self.read, ids)
        logits, wanted, row = predictions(self.host, hidden, rows)
        return token_logprobs(logits, wanted), row

    def retained(self, i: int, kind: Literal["nll", "kl"]) -> Tensor:
        """On the retain texts of the i-th micro-batch: mean - log p of a counted token, or the cross-entropy to the base's law."""
        rows = self.retain[i]
        return -self.logprobs(rows)[0].mean() if kind == "nll" else distance_to_base(self.frozen, rows, counted=True)

    def counts(self) -> dict[str, Any]:
        """How many texts."""
        return {"forget texts": len(self.forget), "retain texts": [len(p) for p in self.retain.pools]}


class LikelihoodTask(ABC):
    """A loss on the likelihood of one concept's texts, and a weighted one that holds the rest; methods differ in the first.

    The config is a `TuningConfig` with `keep`, the weight of what must stay, and `retain_loss`.
    """

    def __init__(
        self, host: "Host", trained: Trained, concept: "Concept", config: Any, preserve: Sequence[str] = (), number: int = 0
    ) -> None:
        self.config = config
        self.texts = Likelihoods(host, trained, concept, config, preserve, number)

    @abstractmethod
    def forget(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, float]]:
        """What is minimised on forget texts, and figures besides the loss."""

    def __call__(self, i: int) -> tuple[Tensor, Mapping[str, float]]:
        """Forget loss and weighted retain loss of the i-th micro-batch."""
        c = self.config
        forget, more = self.forget(self.texts.forgotten(i))
        figures = {"forget": float(forget.detach()), **more}
        if not c.keep:
            return forget, figures
        retain = c.keep * self.texts.retained(i, c.retain_loss)
        return forget + retain, {**figures, "retain": float(retain.detach())}

    def evidence(self) -> dict[str, Any]:
        """Counts."""
        return self.texts.counts()
