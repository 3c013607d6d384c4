"""A second opinion in closed form: edges and colours against the mean of every drawing and flag, by linear discriminants.

The network learns from a few dozen views of each drawing; a discriminant needs eight, because all drawings share one covariance.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ....base.errors import InputError

BINS = 8
"""Directions of an edge, dark to light, over the full circle."""
RIDGE = 0.02
"""Added to the variances, as a share of their mean."""


def edges_and_colours(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """Half the colours of squares of 4 pixels, and the root of the strength of edges a direction in squares of 8.

    An edge is taken from the channel where it is strongest, and shared by the directions within 90 degrees of it as cos^3.
    """
    smooth = F.avg_pool2d(x, 3, 1, 1)
    across, down = smooth[:, :, 1:-1, 2:] - smooth[:, :, 1:-1, :-2], smooth[:, :, 2:, 1:-1] - smooth[:, :, :-2, 1:-1]
    squared = across.square() + down.square()
    best = squared.argmax(1, keepdim=True)
    across, down, strength = (a.gather(1, best) for a in (across, down, squared.sqrt() + 1e-9))
    angle = 2 * math.pi / BINS * torch.arange(BINS, dtype=x.dtype)[:, None, None]
    shared = strength * F.relu((across * angle.cos() + down * angle.sin()) / strength) ** 3
    cells = F.avg_pool2d(F.pad(shared, (1, 1, 1, 1)), 8)
    return torch.cat([0.5 * F.avg_pool2d(x, 4).flatten(1), cells.clamp(min=0).sqrt().flatten(1)], 1)


class Discriminant(nn.Module):
    """Log-likelihood of each class, up to a constant: Gaussians of one covariance in the `rank` directions that tell most.

    Linear discriminant analysis of reduced rank (The Elements of Statistical Learning, Hastie et al. 2009, section 4.3.3).

    Args:
        n: Classes.
        rank: Directions.
        side: Of the pictures.
    """

    centre: Tensor
    projection: Tensor
    means: Tensor

    def __init__(self, n: int, rank: int, side: int = 64) -> None:
        super().__init__()
        width = 3 * (side // 4) ** 2 + BINS * (side // 8) ** 2
        for name, shape in (("centre", (width,)), ("projection", (width, rank)), ("means", (n, rank))):
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Of pictures in [0, 1]."""
        place = (edges_and_colours(x) - self.centre) @ self.projection
        return place @ self.means.T - 0.5 * self.means.square().sum(1)

    @torch.no_grad()
    def fit(self, draws: Iterable[Iterable[Float[Tensor, "b 3 h w"]]]) -> None:
        """From pictures of every class in order, batch by batch, drawn again and again.

        Everything is rounded to half precision on the way, so that what is saved is what was fitted.

        Raises:
            InputError: Fewer than two draws.
        """
        first, total, squares, n = None, torch.zeros(()), torch.zeros(len(self.centre), len(self.centre)), 0
        for draw in draws:
            found = torch.cat([edges_and_colours(x) for x in draw])
            first = found if first is None else first
            change = found - first  # small numbers, so that their squares can be summed
            total, squares, n = total + change, squares + change.T @ change, n + 1
        if first is None or n < 2:
            raise InputError(f"discriminant: at least 2 draws of every class expected, {n} found")
        change = total / n
        means = first + change
        within = (squares - n * change.T @ change) / ((n - 1) * len(means))
        ridge = RIDGE * within.diagonal().mean() * torch.eye(len(within))
        lower = torch.linalg.cholesky(within + ridge)
        centre = means.mean(0).half().float()
        apart = torch.linalg.solve_triangular(lower, (means - centre).T, upper=False)
        directions = torch.linalg.eigh(apart @ apart.T)[1].flip(1)[:, : self.projection.shape[1]]
        projection = torch.linalg.solve_triangular(lower.T, directions, upper=True).half().float()
        self.centre.copy_(centre)
        self.projection.copy_(projection)
        self.means.copy_(((means - centre) @ projection).half().float())
