"""One pass of texts through a host and its SAEs.

How often each feature fires, how strongly, and its maximum in each text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError, MatchedNothing, NumericsError
from ..base.running import progress
from ..deactivate.layer import width_at

if TYPE_CHECKING:
    from ..sae import SAE
    from .host import Host


def hook_point_of(sae: "SAE") -> str:
    """Where an SAE belongs, from its card.

    Raises:
        InputError: The card names no hook point.
    """
    point = sae.card.get("hook_point")
    if not point:
        raise InputError("the SAE names no hook point: write it into hook_point of its efface.json (as in layers.8.mlp_out)")
    return str(point)


def layer_of(sae: "SAE") -> int:
    """The layer number in an SAE's hook point."""
    return int(hook_point_of(sae).split(".")[1])


def check_saes(host: "Host", saes: Sequence["SAE"], *, other_model: bool = False) -> dict[str, "SAE"]:
    """Hook point -> SAE, each checked against the host (place, width, the model it was trained on).

    Raises:
        InputError: No SAE, two at one hook point, another width, or (unless `other_model`) trained on another model.
        HookPointNotFound: The host has no such hook point.
    """
    if not saes:
        raise InputError("no SAE given: name one or more with --sae DIR (saes=[…])")
    found: dict[str, SAE] = {}
    for sae in saes:
        point = hook_point_of(sae)
        d = width_at(host, sae, point)
        if d != sae.cfg.d_in:
            raise InputError(f"SAE at {point}: d_in is {sae.cfg.d_in}, but {host.name} has width {d} there")
        trained_on = sae.card.get("model_digest")
        if trained_on and trained_on != host.digest and not other_model:
            raise InputError(
                f"SAE at {point} was trained on another model ({sae.card.get('model', 'unnamed')}) than {host.name}, or on the same in another "
                "dtype or before an edit; train one on this host, or name the model yourself (--model; a method's --set other_model=true)"
            )
        if point in found:
            raise InputError(f"two SAEs for {point}: give one a hook point")
        found[point] = sae
    return found


@dataclass
class Scan:
    """What one SAE's features did on a list of texts."""

    n_texts: int
    d_sae: int
    fired: Int[Tensor, " d_sae"] = field(init=False)
    """Tokens on which each feature was active."""
    total: Float[Tensor, " d_sae"] = field(init=False)
    """Sum of each feature's activations, float64."""
    n_tokens: int = 0
    _text: list[Tensor] = field(default_factory=list)
    _feature: list[Tensor] = field(default_factory=list)
    _value: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fired = torch.zeros(self.d_sae, dtype=torch.int64)
        self.total = torch.zeros(self.d_sae, dtype=torch.float64)

    def update(self, numbers: Int[Tensor, " b"], text: Int[Tensor, " n"], rows: Int[Tensor, " nnz"], ids: Tensor, values: Tensor) -> None:
        """Adds one batch: `numbers` are its texts', `text` is each kept token's text in the batch.

        `rows`, `ids`, `values` are the active entries.
        """
        if not torch.isfinite(values).all():
            raise NumericsError("NaN or infinity in the SAE's activations")
        ids = ids.long()
        self.n_tokens += len(text)
        self.fired += torch.bincount(ids, minlength=self.d_sae)
        self.total.index_add_(0, ids, values.double())
        n = int(text.max()) + 1 if len(text) else 0
        flat = torch.zeros(n * self.d_sae, dtype=torch.float32)
        flat.scatter_reduce_(0, text[rows] * self.d_sae + ids, values.float(), "amax")
        at = flat.nonzero()[:, 0]
        self._text.append(numbers[at // self.d_sae])
        self._feature.append(at % self.d_sae)
        self._value.append(flat[at])

    def maxima(self, ids: Int[Tensor, " r"]) -> Float[Tensor, "n_texts r"]:
        """The largest activation of the features `ids` in each text (0 where they do not fire)."""
        out = torch.zeros(self.n_texts, len(ids))
        if not self._text or not len(ids):
            return out
        column = torch.full((self.d_sae,), -1, dtype=torch.int64)
        column[ids] = torch.arange(len(ids))
        columns = column[torch.cat(self._feature)]
        hit = columns >= 0
        out[torch.cat(self._text)[hit], columns[hit]] = torch.cat(self._value)[hit]
        return out


@torch.no_grad()
def scan(host: "Host", texts: Sequence[str], saes: dict[str, "SAE"], *, batch: int = 16, max_length: int = 128) -> dict[str, Scan]:
    """Runs `texts` once through the host, up to the deepest hook point, and through every SAE.

    Texts of like length are read together. Padding and special tokens are left out. Results lie on the CPU, one `Scan` a hook point.

    Raises:
        MatchedNothing: No text, or no token left.
    """
    if not texts:
        raise MatchedNothing("no texts to read features from")
    scans = {p: Scan(len(texts), s.cfg.d_sae) for p, s in saes.items()}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in progress(range(0, len(texts), batch), desc="reading texts", unit="batch", inner=True):
        numbers = order[first : first + batch]
        ids, mask = host.encode_texts([texts[i] for i in numbers], max_length=max_length)
        keep = host.keep_mask(ids, mask)
        text = keep.nonzero()[:, 0].cpu()
        acts = host.activations(ids, mask, list(saes))
        for point, sae in saes.items():
            x = acts[point][keep].to(sae.W_enc)
            sparse = sae.encode_sparse(x)
            scans[point].update(torch.tensor(numbers), text, sparse.rows.cpu(), sparse.indices.cpu(), sparse.values.cpu())
    if not next(iter(scans.values())).n_tokens:
        raise MatchedNothing("the texts hold no token besides special ones")
    return scans
