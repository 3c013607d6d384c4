"""The augmentation of `Augmentation` on batches of pictures in [0, 1]; draws from torch's global generator."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .recipe import Augmentation

Images = Float[Tensor, "n 3 h w"]


def augmented(x: Images, how: Augmentation) -> Images:
    """`x` as a small model might draw it, still in [0, 1]; every picture gets its own draw."""
    x = displaced(x, how)
    x = some(x, how.lines, fade_lines)
    x = mixed(x, blurred(x, how.blur), torch.rand(len(x)))
    x = some(x, how.halved, halved)
    x = some(x, 1 / 3, lambda y: quantised(y, how.blocks * torch.rand(len(y)).clamp(min=0.02)))
    x = recoloured(x, how)
    x = some(x, 0.5, lambda y: y + how.noise * torch.rand(len(y), 1, 1, 1) * torch.randn_like(y))
    x = some(x, 0.5, lambda y: y + how.clouds * torch.rand(len(y), 1, 1, 1) * clouds(len(y), y.shape[-1]))
    return wiped(x, how.patch, 1 / 8).clamp(0, 1)


def some(x: Images, share: float, change: Callable[[Images], Images]) -> Images:
    """`change` applied to a share of the pictures."""
    chosen = (torch.rand(len(x)) < share).nonzero()[:, 0]
    return x.index_copy(0, chosen, change(x[chosen])) if len(chosen) else x


def mixed(x: Images, y: Images, share: Float[Tensor, " n"]) -> Images:
    """`share` of `y`, a picture each."""
    return torch.lerp(x, y, share[:, None, None, None])


def _signed(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape) - 1


def displaced(x: Images, how: Augmentation) -> Images:
    """Turned, scaled, shifted and wobbled; what comes in from outside is white."""
    n, side = len(x), x.shape[-1]
    angle, scale = math.radians(how.rotate) * _signed(n), 1 + how.scale * _signed(n)
    cos, sin, move = scale * angle.cos(), scale * angle.sin(), 2 * how.shift / side * _signed(n, 2)
    theta = torch.stack([torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    field = F.interpolate(2 * how.wobble / side * _signed(n, 2, 5, 5), size=(side, side), mode="bilinear", align_corners=True)
    grid = grid + field.permute(0, 2, 3, 1)
    return 1 - F.grid_sample(1 - x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def fade_lines(x: Images) -> Images:
    """Thin dark lines (max over 3 x 3) or thin light ones (min) fade, half each."""
    sign = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, 1.0, -1.0)
    return mixed(x, sign * highest(sign * x), 0.9 * torch.rand(len(x)))


def highest(x: Images) -> Images:
    """Maximum over 3 x 3, rows and columns in turn: equal to `max_pool2d`, which is many times slower on a CPU."""
    for axis in (-2, -1):
        n = x.shape[axis]
        before, after = x.narrow(axis, 0, 1), x.narrow(axis, n - 1, 1)
        wide = torch.cat([before, x, after], axis)
        x = torch.maximum(torch.maximum(wide.narrow(axis, 0, n), x), wide.narrow(axis, 2, n))
    return x


def blurred(x: Images, sigma: float) -> Images:
    """Under a Gaussian; weights that fall outside are given to the rest."""
    place = torch.arange(x.shape[-1], dtype=x.dtype)
    spread = torch.exp(-0.5 * ((place[:, None] - place[None, :]) / sigma) ** 2)
    spread = spread / spread.sum(1, keepdim=True)
    return spread @ x @ spread.T


def halved(x: Images) -> Images:
    """At half the size and back."""
    return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)


def quantised(x: Images, step: Float[Tensor, " n"]) -> Images:
    """Cosine coefficients of 8 x 8 blocks rounded to multiples of step x (1 + sum of the two frequencies / 2)."""
    k = torch.arange(8, dtype=x.dtype)
    basis = torch.cos(math.pi / 8 * (k[None, :] + 0.5) * k[:, None]) * 0.5
    basis[0] *= math.sqrt(0.5)  # orthonormal
    blocks = rearrange(x, "n c (a h) (b w) -> n c a b h w", h=8, w=8)
    q = step[:, None, None, None, None, None] * (1 + (k[:, None] + k[None, :]) / 2)
    rounded = torch.round(basis @ blocks @ basis.T / q) * q
    return rearrange(basis.T @ rounded @ basis, "n c a b h w -> n c (a h) (b w)")


def recoloured(x: Images, how: Augmentation) -> Images:
    """Saturation (distance from grey), contrast (distance from the mean), gain and offset a channel, as one affine map of the colours."""
    n, grey, same = len(x), torch.full((3, 3), 1 / 3), torch.eye(3)
    saturation, contrast = 1 + how.saturation * _signed(n, 1, 1), 1 + how.contrast * _signed(n, 1, 1)
    gain = 1 + how.colour * _signed(n, 3, 1)
    matrix = gain * contrast * torch.lerp(grey.expand(n, 3, 3), same.expand(n, 3, 3), saturation)
    offset = gain * (1 - contrast) * x.mean((1, 2, 3))[:, None, None] + how.brightness * _signed(n, 3, 1)
    return torch.baddbmm(offset, matrix, x.flatten(2)).unflatten(2, x.shape[-2:])


def clouds(n: int, side: int) -> Images:
    """Noise of unit variance at its nodes, 8 pixels apart."""
    return F.interpolate(torch.randn(n, 3, side // 8, side // 8), size=(side, side), mode="bilinear", align_corners=False)


def wiped(x: Images, most: int, share: float) -> Images:
    """A patch of up to `most` pixels takes the picture's mean colour in a share of the pictures."""
    n, side = len(x), x.shape[-1]
    least = min(4, most)
    size = (torch.rand(n, 2) * (most - least) + least) * (torch.rand(n) < share)[:, None]
    at, pixel = torch.rand(n, 2) * side, torch.arange(side)
    inside = (pixel[None, None] - at[..., None]).abs() < size[..., None] / 2
    mask = inside[:, 0, :, None] & inside[:, 1, None, :]
    return torch.where(mask[:, None], x.mean((2, 3), keepdim=True), x)
