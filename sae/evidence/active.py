"""The active entries of a forward pass: their peaks, their values along a stretch of text, their random priority."""

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ...base.errors import NumericsError
from ..sparse import SparseActs


class Active:
    """Entries (row, feature, value) in the order of rows, then features.

    Raises:
        NumericsError: NaN or infinity among the values.
    """

    def __init__(self, acts: SparseActs) -> None:
        self.d_sae = acts.d_sae
        row, feature, value = acts.rows.cpu(), acts.indices.cpu().long(), acts.values.cpu().float()
        if not torch.isfinite(value).all():
            raise NumericsError("NaN or infinity in the SAE's activations")
        key, order = (row * self.d_sae + feature).sort()
        self.key: Int[Tensor, " nnz"] = key
        self.row, self.feature, self.value = row[order], feature[order], value[order]

    def peaks(self, group: Int[Tensor, " nnz"], among: Int[Tensor, " m"]) -> Int[Tensor, " p"]:
        """Of the entries `among`, the strongest of each feature in each group (the earliest of equals)."""
        order = among[self.value[among].sort(descending=True, stable=True).indices]
        key, by_key = (group[order] * self.d_sae + self.feature[order]).sort(stable=True)
        new = torch.ones(len(key), dtype=torch.bool)
        new[1:] = key[1:] != key[:-1]
        return order[by_key[new]]

    def along(self, feature: Int[Tensor, " m"], rows: Int[Tensor, "m s"]) -> Float[Tensor, "m s"]:
        """Each feature's value at its row of `rows`, 0 where it is not active."""
        if not len(self.key):
            return torch.zeros(rows.shape)
        wanted = rows * self.d_sae + feature[:, None]
        at = torch.searchsorted(self.key, wanted).clamp(max=len(self.key) - 1)
        return torch.where(self.key[at] == wanted, self.value[at], 0.0)

    def features_in(self, first: int, end: int) -> Int[Tensor, " f"]:
        """Features active anywhere in rows `first` to `end - 1`, ascending."""
        low, high = torch.searchsorted(self.key, torch.tensor([first * self.d_sae, end * self.d_sae])).tolist()
        return self.feature[low:high].unique()

    @cached_property
    def entry(self) -> Int[Tensor, " nnz"]:
        """Its own number: 0, 1, 2 and so on."""
        return torch.arange(len(self.key))


def priority(seed: int, *numbers: Int[Tensor, " m"]) -> Float64[Tensor, " m"]:
    """A number in [0, 1) that depends on nothing but `seed` and the numbers: whoever keeps the largest draws evenly.

    So a choice does not depend on batches or on the order of documents. SplitMix64's finaliser: Fast Splittable
    Pseudorandom Number Generators (Steele, Lea and Flood, 2014), Fig. 18.
    """
    z = np.full(len(numbers[0]), seed + 1, dtype=np.uint64)
    for number in numbers:
        z = (z ^ number.numpy().astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)
