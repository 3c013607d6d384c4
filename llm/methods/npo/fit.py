"""Fitting NPO: the likelihood of the concept's texts falls, the less the further it has fallen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....deactivate.edit import Edit
from ...tuning.fit import tuned
from ...tuning.likelihood import LikelihoodTask
from ...tuning.losses import row_sums
from ...tuning.texts import Row
from .config import NpoConfig
from .math import npo_loss, npo_weight

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import Host


def fit(
    host: "Host",
    concepts: "Sequence[Concept]",
    preserve: Sequence[str] | None = None,
    config: NpoConfig | None = None,
    saes: "Sequence[SAE]" = (),
) -> Edit:
    """Takes concepts out by negative preference optimisation of their texts (Zhang et al., arXiv:2404.05868).

    The host is left as it was. The edit has one `weights` part: a change of rank `rank` of each adapted matrix.

    Args:
        host: The model; edits that lie on it are trained on top of.
        concepts: At least one; each needs what `forget` and `retain` name.
        preserve: Further texts that must stay.
        config: Settings.
        saes: Not read.

    Raises:
        InputError: A concept lacks a field, or a layer is not there.
    """
    config = config or NpoConfig()
    layers = config.layers_of(host.n_layers)
    return tuned(host, concepts, config, "npo", layers, lambda t, c, n: NpoTask(host, t, c, config, preserve or (), n), preserve)


class NpoTask(LikelihoodTask):
    """Forget and retain loss for one concept."""

    def forget(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, float]]:
        """NPO's loss on the texts, and the mean weight of their gradients."""
        logp, row = self.texts.logprobs(rows)
        with torch.no_grad():
            before, _ = self.texts.logprobs(rows, frozen=True)
        now, then = self._per_text(logp, row, rows), self._per_text(before, row, rows)
        beta = self.config.beta
        return npo_loss(now, then, beta), {"weight": float(npo_weight(now, then, beta).detach().mean())}

    def _per_text(self, logp: Tensor, row: Tensor, rows: Sequence[Row]) -> Tensor:
        total = row_sums(logp, row, len(rows))
        return total / row_sums(torch.ones_like(logp), row, len(rows)) if self.config.per_token else total
