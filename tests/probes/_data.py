"""Vectors with classes in them."""

import torch

from efface.probes import Moments, MomentsFitter


def classes(k: int = 3, n: int = 900, d: int = 12, seed: int = 0, size: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated Gaussian vectors whose means differ by class, float64, and the classes."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    x = torch.randn(n, d, generator=g).double() @ torch.randn(d, d, generator=g).double()
    return x + size * torch.randn(k, d, generator=g).double()[y] + 5, y


def one_hot(y: torch.Tensor) -> torch.Tensor:
    """As float64."""
    return torch.nn.functional.one_hot(y).double()


def read(x: torch.Tensor, z: torch.Tensor, size: int = 10**9) -> Moments:
    """Moments, `size` vectors at a time."""
    fitter = MomentsFitter()
    for i in range(0, len(x), size):
        fitter.update(x[i : i + size], z[i : i + size])
    return fitter.moments()
