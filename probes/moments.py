"""Means and covariances of vectors and labels, read batch by batch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import InputError, MatchedNothing, NumericsError


@dataclass(frozen=True, eq=False)
class Moments:
    """What linear erasers are fitted from; covariances are divided by n - 1."""

    n: int
    mean_x: Float[Tensor, " d"]
    mean_z: Float[Tensor, " k"]
    xx: Float[Tensor, "d d"]
    xz: Float[Tensor, "d k"]
    zz: Float[Tensor, "k k"]


class MomentsFitter:
    """Streams moments: sums of products about the mean of the first batch, corrected at the end; one product a batch.

    Args:
        dtype: Of the sums.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype, self.n = dtype, 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []

    def update(self, x: Float[Tensor, "n d"], z: Float[Tensor, "n k"]) -> "MomentsFitter":
        """Adds a batch; labels are one-hot rows or real values.

        Raises:
            InputError: Other widths than before, or another number of rows of `z` than of `x`.
            NumericsError: NaN or infinity.
        """
        x, z = x.to(self.dtype), z.to(x.device, self.dtype)
        if len(x) != len(z):
            raise InputError(f"moments: {len(x)} vectors and {len(z)} labels; one label a vector")
        if not len(x):
            return self
        if self._shift is None:
            (d, k), kw = (x.shape[1], z.shape[1]), {"dtype": self.dtype, "device": x.device}
            self._shift = x.mean(0), z.mean(0)
            self._sums = [torch.zeros(shape, **kw) for shape in ((d,), (k,), (d, d), (d, k), (k, k))]
        if x.shape[1] != len(self._shift[0]) or z.shape[1] != len(self._shift[1]):
            raise InputError(f"moments: widths {x.shape[1]} and {z.shape[1]}, {len(self._shift[0])} and {len(self._shift[1])} before")
        x, z = x - self._shift[0], z - self._shift[1]
        if not (torch.isfinite(x.sum()) and torch.isfinite(z.sum())):
            raise NumericsError("moments: NaN or infinity in the batch")
        sx, sz, xx, xz, zz = self._sums
        sx += x.sum(0)
        sz += z.sum(0)
        for total, a, b in ((xx, x, x), (xz, x, z), (zz, z, z)):
            total.addmm_(a.T, b)
        self.n += len(x)
        return self

    def moments(self) -> Moments:
        """The moments so far.

        Raises:
            MatchedNothing: Fewer than two vectors.
        """
        if self._shift is None or self.n < 2:
            raise MatchedNothing(f"moments: at least two vectors are needed, {self.n} read")
        sx, sz, xx, xz, zz = self._sums
        mx, mz, m = sx / self.n, sz / self.n, self.n - 1
        cov_x, cov_z = (xx - self.n * mx.outer(mx)) / m, (zz - self.n * mz.outer(mz)) / m
        cov_xz = (xz - self.n * mx.outer(mz)) / m
        return Moments(self.n, mx + self._shift[0], mz + self._shift[1], (cov_x + cov_x.T) / 2, cov_xz, cov_z)
