"""Fitting by gradient difference: the likelihood of the concept's texts falls, that of the rest stays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ....deactivate.edit import Edit
from ...tuning.fit import tuned
from ...tuning.likelihood import LikelihoodTask
from ...tuning.texts import Row
from .config import GradDiffConfig
from .math import ascent_loss

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import Host


def fit(
    host: "Host",
    concepts: "Sequence[Concept]",
    preserve: Sequence[str] | None = None,
    config: GradDiffConfig | None = None,
    saes: "Sequence[SAE]" = (),
) -> Edit:
    """Takes concepts out by gradient difference (Liu et al., 2022; as in TOFU, Maini et al., arXiv:2401.06121).

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
    config = config or GradDiffConfig()
    layers = config.layers_of(host.n_layers)
    return tuned(host, concepts, config, "graddiff", layers, lambda t, c, n: GradDiffTask(host, t, c, config, preserve or (), n), preserve)


class GradDiffTask(LikelihoodTask):
    """Forget and retain loss for one concept."""

    def forget(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, float]]:
        """Ascent on the texts."""
        return ascent_loss(self.texts.logprobs(rows)[0], self.config.ceiling), {}
